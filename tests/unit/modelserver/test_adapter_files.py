"""Adapters from every place they may be in, verified, and the store that keeps them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path

import numpy as np
import pytest

from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import FactoryError, InvalidArgument, NotFound, TooLarge, Unavailable, Unimplemented
from genaifactory_modelserver.adapters.files import Adapter, Base, fetch_adapter, remove_unreferenced
from tests.unit.modelserver import weights
from tests.unit.modelserver.weights import Array, Fault, lora, sha256, sums, tree, web, write

GOOD = weights.adapter()
DIGEST = sha256(GOOD["adapter_model.safetensors"])
Q = "base_model.model.model.layers.0.self_attn.q_proj"

Fetch = Callable[..., Coroutine[None, None, Adapter]]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A model of two layers."""
    return Base("tiny", "hf://org/tiny@v1", write(tmp_path / "base", weights.model()), max_rank=8, aliases=("small",))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where adapters are kept."""
    return tmp_path / "store"


@pytest.fixture
def fetch(base: Base, store: Path) -> Fetch:
    """Fetches an adapter; without waiting between tries."""

    async def fetched(source: object, pin: str = "", *, base: Base = base) -> Adapter:
        return await fetch_adapter("support", str(source), pin, store=store, base=base, backoff=Backoff(0, 0))

    return fetched


async def saved(folder: Path, files: dict[str, bytes]) -> Path:
    return await asyncio.to_thread(write, folder, files)


async def kept(store: Path) -> dict[str, bytes]:
    return await asyncio.to_thread(tree, store)


async def refused(attempt: Awaitable[object], store: Path, kind: type[FactoryError] = InvalidArgument) -> FactoryError:
    """The error; the store must be as empty as before."""
    with pytest.raises(kind) as raised:
        await attempt
    assert await asyncio.to_thread(lambda: list(store.iterdir()) if store.exists() else []) == []
    return raised.value


async def test_an_adapter_is_copied_into_the_store_with_the_files_that_count(
    fetch: Fetch, tmp_path: Path, store: Path
) -> None:
    source = await saved(tmp_path / "a", {**GOOD, "README.md": b"#", "optimizer.pt": b"x" * 999})
    adapter = await fetch(source)
    assert adapter.folder.parent == store
    assert await kept(adapter.folder) == GOOD
    assert (adapter.sha256, adapter.rank, adapter.target_modules) == (DIGEST, 4, ("q_proj", "v_proj"))
    assert adapter.metadata["data_version"] == "7"
    await saved(source, {"adapter_model.safetensors": b"changed later"})
    assert await kept(adapter.folder) == GOOD
    with pytest.raises(InvalidArgument):
        await fetch(source)
    assert await asyncio.to_thread(os.listdir, store) == [adapter.folder.name]


async def test_the_same_adapter_is_kept_once_and_another_configuration_beside_it(
    fetch: Fetch, tmp_path: Path, store: Path
) -> None:
    source = await saved(tmp_path / "a", GOOD)
    first, *others = await asyncio.gather(*(fetch(source) for _ in range(4)))
    assert {other.folder for other in others} == {first.folder}
    await saved(source, weights.adapter(config={"lora_alpha": 64}))  # other answers from the same weights
    second = await fetch(source)
    assert (second.sha256, second.folder == first.folder) == (first.sha256, False)
    assert len(await asyncio.to_thread(os.listdir, store)) == 2


async def test_a_damaged_copy_in_the_store_is_replaced(fetch: Fetch, tmp_path: Path) -> None:
    source = await saved(tmp_path / "a", GOOD)
    adapter = await fetch(source)
    await asyncio.to_thread((adapter.folder / "adapter_model.safetensors").unlink)
    assert (await fetch(source)).folder == adapter.folder
    assert await kept(adapter.folder) == GOOD


@pytest.mark.parametrize("name", ["tiny", "small", "hf://org/tiny@v1", "org/tiny@v1", "org/tiny"])
async def test_every_name_of_the_base_model_is_known(fetch: Fetch, tmp_path: Path, name: str) -> None:
    source = await saved(tmp_path / "a", weights.adapter(metadata={"base_model": name}))
    assert (await fetch(f"file://{source}")).metadata["base_model"] == name


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
async def test_the_number_formats_of_training_are_taken(fetch: Fetch, tmp_path: Path, dtype: str) -> None:
    import ml_dtypes  # numpy's bfloat16

    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    values = {name: value.astype(kind) for name, value in lora().items()}
    assert (await fetch(await saved(tmp_path / "a", weights.adapter(weights=values)))).rank == 4
    values[f"{Q}.lora_A.weight"][1, 2] = np.inf
    with pytest.raises(InvalidArgument, match=rf"{Q}.lora_A.weight' holds values that are infinite") as raised:
        await fetch(await saved(tmp_path / "b", weights.adapter(weights=values)))
    assert raised.value.field == "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"peft_type": "IA3"}, "peft_type", "LORA is served"),
        ({"peft_type": None}, "peft_type", "LORA is served"),
        ({"use_dora": True}, "use_dora", "DoRA"),
        ({"lora_bias": True}, "lora_bias", "a bias"),
        ({"bias": "all"}, "bias", "bias='none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", "whole modules"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights", "changes the base model"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens", "activated"),
        ({"layer_replication": [[0, 1]]}, "layer_replication", "replicated"),
        ({"target_modules": None}, "target_modules", "which modules"),
        ({"lora_alpha": "8"}, "lora_alpha", "number"),
        ({"r": 0}, "r", "above 0"),
        ({"r": True}, "r", "above 0"),
        ({"r": 16}, "r", "takes up to 8"),
        ({"rank_pattern": {"q_proj": 64}}, "rank_pattern.q_proj", "takes up to 8"),
        ({"rank_pattern": [4]}, "rank_pattern", "no object"),
        ([], None, "no JSON object"),
    ],
)
async def test_what_vllm_cannot_serve_is_refused(
    fetch: Fetch, tmp_path: Path, store: Path, change: object, field: str | None, expected: str
) -> None:
    source = await saved(tmp_path / "a", weights.adapter(config=change))
    error = await refused(fetch(source), store)
    assert error.field == ("adapter_config.json" if field is None else f"adapter_config.json.{field}")
    assert expected in error.message


@pytest.mark.parametrize("init", [True, False, "gaussian", "EVA"])
async def test_the_ways_to_begin_that_leave_the_base_alone_are_taken(
    fetch: Fetch, tmp_path: Path, init: object
) -> None:
    assert await fetch(await saved(tmp_path / "a", weights.adapter(config={"init_lora_weights": init})))


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"base_model": "other"}, ".base_model", "adapter 'support' was trained for 'other'; this server has 'tiny'"),
        ({"base_model": None}, ".base_model", "must say in base_model"),
        ({"base_model": ["tiny"]}, ".base_model", "must say in base_model"),
        ({"sha256": "0" * 64}, ".sha256", DIGEST),
        ({"sha256": "none"}, ".sha256", "no SHA-256"),
        ({"sha256": 7}, ".sha256", "no SHA-256"),
        ("tiny", "", "no JSON object"),
    ],
)
async def test_metadata_that_do_not_match_are_refused(
    fetch: Fetch, tmp_path: Path, store: Path, change: object, field: str, expected: str
) -> None:
    error = await refused(fetch(await saved(tmp_path / "a", weights.adapter(metadata=change))), store)
    assert (error.field, expected in error.message) == (f"metadata.json{field}", True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("metadata.json", 'must hold {"base_model"'),
        ("adapter_config.json", "has no adapter_config.json"),
        ("adapter_model.safetensors", "save_pretrained"),
    ],
)
async def test_a_missing_file_is_named(fetch: Fetch, tmp_path: Path, store: Path, name: str, expected: str) -> None:
    source = await saved(tmp_path / "a", {key: data for key, data in GOOD.items() if key != name})
    error = await refused(fetch(source), store)
    assert (error.field, expected in error.message) == (name, True)


async def test_the_weights_have_the_checksum_that_was_asked_for(fetch: Fetch, tmp_path: Path, store: Path) -> None:
    source = await saved(tmp_path / "a", weights.adapter(metadata={"sha256": None}))
    error = await refused(fetch(source, "0" * 64), store)
    assert (error.field, DIGEST in error.message) == ("sha256", True)
    assert (await refused(fetch(source, "abc"), store)).field == "sha256"
    assert (await fetch(source, DIGEST.upper())).sha256 == DIGEST


def changed(**changes: Array | None) -> dict[str, Array]:
    """Weights with q_proj of layer 0 changed; None takes a side out."""
    made: dict[str, Array | None] = {**lora()}
    for side, value in changes.items():
        made[f"{Q}.lora_{side}.weight"] = value
    return {name: value for name, value in made.items() if value is not None}


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (changed(A=zeros(4, 32)), r"is for a module of \(16, 32\), and the base model has one of \(16, 16\)"),
        (changed(B=zeros(8, 4)), r"is for a module of \(8, 16\)"),
        (changed(A=zeros(2, 16), B=zeros(16, 2)), "has the ranks 2 and 2; adapter_config.json says 4"),
        (changed(A=zeros(4, 16), B=zeros(16, 2)), "has the ranks 4 and 2"),
        (changed(A=zeros(4, 4, 16)), "has the shapes"),
        (changed(A=zeros(0, 16), B=zeros(16, 0)), "has the shapes"),
        (changed(B=None), "has a lora_A alone"),
        (changed(A=zeros(4, 16, dtype="float64")), "is F64; F32, F16, BF16 are taken"),
        (changed(A=np.full((4, 16), np.nan, np.float32)), "no numbers"),
        ({**lora(), f"{Q}.lora_magnitude_vector": zeros(16)}, "no weight of a LoRA"),
        (lora(layers=3), "layers.2.self_attn.q_proj' is for a module that the base model has not"),
        ({}, "holds no weights"),
    ],
)
async def test_weights_that_do_not_fit_are_refused(
    fetch: Fetch, tmp_path: Path, store: Path, values: dict[str, Array], expected: str
) -> None:
    source = await saved(tmp_path / "a", weights.adapter(weights=values))
    with pytest.raises(InvalidArgument, match=expected):
        await fetch(source)
    assert (await refused(fetch(source), store)).field == "adapter_model.safetensors"


async def test_ranks_may_differ_as_the_configuration_says(fetch: Fetch, tmp_path: Path) -> None:
    values = changed(A=zeros(8, 16), B=zeros(16, 8))
    source = await saved(tmp_path / "a", weights.adapter(weights=values, config={"rank_pattern": {"0.q_proj": 8}}))
    assert (await fetch(source)).rank == 8


async def test_of_a_quantised_base_the_shapes_are_not_asked(fetch: Fetch, tmp_path: Path, base: Base) -> None:
    quantised = {**weights.model(), "config.json": b'{"quantization_config": {"quant_method": "awq"}}'}
    other = Base("tiny", "/q", await saved(tmp_path / "q", quantised), max_rank=8)
    source = await saved(tmp_path / "a", weights.adapter(weights=changed(A=zeros(4, 32))))
    assert (await fetch(source, base=other)).rank == 4


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
async def test_cut_off_weights_are_refused(fetch: Fetch, tmp_path: Path, store: Path, cut: int) -> None:
    data = GOOD["adapter_model.safetensors"][:cut]
    files = {**weights.adapter(metadata={"sha256": None}), "adapter_model.safetensors": data}
    error = await refused(fetch(await saved(tmp_path / "a", files)), store)
    assert (error.field, "damaged" in error.message) == ("adapter_model.safetensors", True)


async def test_an_adapter_that_is_too_large_is_not_copied_on(
    fetch: Fetch, tmp_path: Path, base: Base, store: Path
) -> None:
    small = Base(base.name, base.source, base.folder, base.max_rank, max_bytes=1000)
    source = await saved(tmp_path / "a", GOOD)
    assert (await refused(fetch(source, base=small), store, TooLarge)).field == "source_uri"
    async with web({**GOOD, "SHA256SUMS": sums(GOOD)}, under="/a/") as server:
        await refused(fetch(f"{server.address}/a/", base=small), store, TooLarge)
    await saved(source, {"metadata.json": b" " * (2 << 20)})
    assert (await refused(fetch(source), store, TooLarge)).field == "source_uri"


async def test_what_is_no_file_is_refused(fetch: Fetch, tmp_path: Path, store: Path) -> None:
    source = await saved(tmp_path / "a", {"metadata.json": b"{}"})
    await asyncio.to_thread(os.mkfifo, source / "adapter_config.json")
    async with asyncio.timeout(5):
        error = await refused(fetch(source), store)
    assert (error.field, "is no file" in error.message) == ("source_uri", True)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("/no/such/folder", NotFound),
        ("adapters/support", InvalidArgument),
        ("file://host/a", InvalidArgument),
        ("http://example.org/a/", InvalidArgument),
        ("hf://org/adapter", InvalidArgument),
        ("models:/support", InvalidArgument),
        ("models:/support/latest/../x", InvalidArgument),
        ("models:/support/1", InvalidArgument),  # MLFLOW_TRACKING_URI is not set
        ("runs:/", InvalidArgument),
    ],
)
async def test_a_place_that_is_none_is_refused(
    fetch: Fetch, store: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: type[FactoryError]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert (await refused(fetch(source), store, kind)).field == "source_uri"


# Mirrors


async def test_an_adapter_comes_from_a_mirror_and_only_what_counts_of_it(fetch: Fetch) -> None:
    files = {**GOOD, "optimizer.pt": b"x"}
    async with web({**files, "SHA256SUMS": sums(files)}, under="/a/") as server:
        server.faults["/a/adapter_model.safetensors"] = [Fault(cut_after=100), Fault(status=502)]
        adapter = await fetch(f"{server.address}/a")
        assert server.gets("/a/optimizer.pt") == []
    assert await kept(adapter.folder) == GOOD


async def test_a_mirror_without_the_adapter_is_not_found_and_one_that_is_away_unavailable(
    fetch: Fetch, store: Path
) -> None:
    async with web() as server:
        assert (await refused(fetch(f"{server.address}/a/"), store, NotFound)).field == "source_uri"
        server.statuses["/a/SHA256SUMS"] = 500
        await refused(fetch(f"{server.address}/a/"), store, Unavailable)


async def test_a_cancelled_fetch_leaves_nothing(fetch: Fetch, store: Path) -> None:
    async with web({**GOOD, "SHA256SUMS": sums(GOOD)}, under="/a/") as server:
        server.faults["/a/adapter_model.safetensors"] = [Fault(cut_after=100, hold=asyncio.Event())]
        task = asyncio.create_task(fetch(f"{server.address}/a/"))
        await server.sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.to_thread(os.listdir, store) == []


async def test_a_pinned_adapter_is_served_from_the_store_when_its_source_is_gone(
    fetch: Fetch, tmp_path: Path, store: Path
) -> None:
    source = await saved(tmp_path / "a", GOOD)
    adapter = await fetch(source)
    await asyncio.to_thread(source.rename, tmp_path / "gone")
    assert await fetch(source, DIGEST) == adapter
    with pytest.raises(NotFound):
        await fetch(source)
    with pytest.raises(NotFound):
        await fetch(source, "0" * 64)
    await asyncio.to_thread((adapter.folder / "metadata.json").unlink)  # a damaged copy is none
    with pytest.raises(NotFound):
        await fetch(source, DIGEST)


# MLflow


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow over files, with the adapter as version 1 of the model "support"; the run that made it."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        client = MlflowClient()
        experiment = client.create_experiment("adapters", artifact_location=f"file://{folder}/artifacts")
        run = client.create_run(experiment).info
        client.log_artifacts(run.run_id, str(write(folder / "trained", {**GOOD, "README.md": b"#"})), "adapter")
        client.create_registered_model("support")
        client.create_model_version("support", f"{run.artifact_uri}/adapter", run.run_id)
        client.set_registered_model_alias("support", "live", "1")
        yield run.run_id


IN_MLFLOW = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its store's own use of SQLAlchemy


@IN_MLFLOW
@pytest.mark.parametrize("source", ["models:/support/1", "models:/support@live", "runs:/RUN/adapter"])
async def test_an_adapter_comes_from_mlflow(fetch: Fetch, registry: str, source: str) -> None:
    adapter = await fetch(source.replace("RUN", registry))
    assert await kept(adapter.folder) == GOOD


@IN_MLFLOW
@pytest.mark.parametrize(
    "source", ["models:/support/9", "models:/other/1", "models:/support@next", "runs:/abc/adapter"]
)
async def test_what_mlflow_has_not_is_not_found(fetch: Fetch, registry: str, store: Path, source: str) -> None:
    assert (await refused(fetch(source), store, NotFound)).field == "source_uri"


# Object storage


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points the libraries' environment at a server."""

    def pointed(address: str) -> None:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hunter2",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)

    return pointed


async def test_an_adapter_comes_from_object_storage(fetch: Fetch, credentials: Callable[[str], None]) -> None:
    async with web({**GOOD, "optimizer.pt": b"x"}, under="/bucket/some/adapter/") as server:
        for path in server.files:
            server.headers[path] = {"etag": '"1"', "last-modified": "Wed, 25 Nov 2026 12:00:00 GMT"}
        credentials(server.address)
        adapter = await fetch("s3://bucket/some/adapter/")
        assert "hunter2" not in str(server.asked)
        assert {path for _, path, _ in server.asked} == {f"/bucket/some/adapter/{name}" for name in GOOD}
    assert await kept(adapter.folder) == GOOD


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (403, InvalidArgument), (401, InvalidArgument), (400, Unavailable)]
)
async def test_what_the_storage_refuses_is_said(
    fetch: Fetch, credentials: Callable[[str], None], store: Path, status: int, kind: type[FactoryError]
) -> None:
    async with web() as server:
        for name in GOOD:
            server.statuses[f"/bucket/a/{name}"] = status
        credentials(server.address)
        error = await refused(fetch("s3://bucket/a"), store, kind)
    assert "hunter2" not in error.message


@pytest.mark.parametrize(
    ("source", "module", "extra"), [("s3://bucket/a", "obstore", "storage"), ("models:/a/1", "mlflow", "mlflow")]
)
async def test_a_library_that_is_not_installed_is_named(
    fetch: Fetch, store: Path, monkeypatch: pytest.MonkeyPatch, source: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = await refused(fetch(source), store, Unimplemented)
    assert f"genaifactory-modelserver[{extra}]" in error.message


# The store


async def test_what_nobody_needs_is_removed_and_what_is_young_is_spared(
    fetch: Fetch, tmp_path: Path, store: Path
) -> None:
    old = await fetch(await saved(tmp_path / "a", GOOD))
    needed = await fetch(await saved(tmp_path / "b", weights.adapter(rank=2)))
    young = await fetch(await saved(tmp_path / "c", weights.adapter(rank=1)))
    await saved(store, {".incoming-killed/adapter_model.safetensors": b"x", "foreign/file": b"x"})

    def age() -> None:
        for path in [store, *store.rglob("*")]:
            if young.folder not in (path, *path.parents):
                os.utime(path, (1e9, 1e9))

    await asyncio.to_thread(age)
    await asyncio.to_thread(remove_unreferenced, store, {needed.sha256})
    left = set(await asyncio.to_thread(os.listdir, store))
    assert left == {needed.folder.name, young.folder.name, "foreign"}
    await fetch(tmp_path / "a")
    assert await asyncio.to_thread(old.folder.is_dir)
    await asyncio.to_thread(remove_unreferenced, store, set(), min_age_seconds=-1)
    assert await asyncio.to_thread(os.listdir, store) == ["foreign"]
    await asyncio.to_thread(remove_unreferenced, tmp_path / "none", set())
