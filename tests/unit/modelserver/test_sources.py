"""Weights from folders, from a mirror on loopback, and from a server that speaks the hub's API."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
import pytest

from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import FactoryError, InvalidArgument, Unavailable
from genaifactory_modelserver import threads
from genaifactory_modelserver.weights import addresses, checksums, locks, mirror, tensors
from genaifactory_modelserver.weights.progress import Meter, Progress
from genaifactory_modelserver.weights.sources import fetch_model
from tests.unit.modelserver import weights
from tests.unit.modelserver.weights import Fault, sha256, sums, tree, web, write

MODEL = weights.model()
SUMS = sums(MODEL)
MIRRORED = {**MODEL, "SHA256SUMS": SUMS}
WEIGHTS = "/m/model.safetensors"

Fetch = Callable[..., Coroutine[None, None, Path]]


@pytest.fixture
def told() -> list[Progress]:
    """What the download has reported."""
    return []


@pytest.fixture
def fetch(tmp_path: Path, told: list[Progress], monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetches a model into a cache of the test's own; without waiting between tries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever the environment says

    async def fetched(source: str, pin: str = "", **rest: object) -> Path:
        options: dict[str, Any] = {
            "cache": tmp_path / "cache",
            "hub_endpoint": None,
            "report": told.append,
            "backoff": Backoff(0, 0),
            **rest,
        }
        return await fetch_model(source, pin, **options)

    return fetched


async def saved(folder: Path, files: dict[str, bytes]) -> Path:
    return await asyncio.to_thread(write, folder, files)


async def read(folder: Path) -> dict[str, bytes]:
    return await asyncio.to_thread(tree, folder)


async def refusal(attempt: Awaitable[object]) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as raised:
        await attempt
    return raised.value


# Folders


async def test_a_folder_is_served_in_place_by_its_path_or_as_a_file_address(fetch: Fetch, tmp_path: Path) -> None:
    folder = await saved(tmp_path / "my model", MODEL)
    assert await fetch(str(folder)) == folder
    assert await fetch(f"file://{str(folder).replace(' ', '%20')}") == folder
    assert await read(tmp_path) == {f"my model/{name}": data for name, data in MODEL.items()}  # nothing was copied


async def test_every_file_of_a_folder_is_verified_when_it_has_sums(fetch: Fetch, tmp_path: Path) -> None:
    folder = await saved(tmp_path / "m", MIRRORED)
    assert await fetch(str(folder), sha256(SUMS)) == folder
    await saved(folder, {"sub/extra.json": b"[]"})
    error = await refusal(fetch(str(folder)))
    assert (error.field, "'sub/extra.json' has the SHA-256" in error.message) == ("source", True)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"config.json": None}, "no config.json"),
        ({"config.json": b"{"}, "no JSON object"),
        ({"config.json": b"[" * 100_000}, "no JSON object"),
        ({"model.safetensors": None}, "no weights"),
        ({"model.safetensors": MODEL["model.safetensors"][:-1]}, "'model.safetensors' in .* is not whole.*cut off"),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"}, "git lfs pull"),
        ({"model.safetensors": b""}, "too few"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "model-00002.safetensors"}}'},
            "'model-00002.safetensors', a part of the weights",
        ),
        ({"SHA256SUMS": SUMS.replace(b"model.safetensors", b"other.safetensors")}, "not in its SHA256SUMS"),
        ({"SHA256SUMS": SUMS + b"0" * 64 + b"  gone.bin\n"}, "'gone.bin', which is not in the folder"),
        ({"SHA256SUMS": b""}, "names no files"),
        ({"added.py": b"import os", "SHA256SUMS": SUMS}, "'added.py' is in the folder and not in its SHA256SUMS"),
    ],
)
async def test_a_folder_that_cannot_be_served_is_refused(
    fetch: Fetch, tmp_path: Path, changed: dict[str, bytes | None], expected: str
) -> None:
    files = {name: data for name, data in {**MODEL, **changed}.items() if data is not None}
    folder = await saved(tmp_path / "m", files)
    with pytest.raises(InvalidArgument, match=expected) as raised:
        await fetch(str(folder))
    assert raised.value.field == "source"


async def test_a_pinned_folder_must_have_the_pinned_sums(fetch: Fetch, tmp_path: Path) -> None:
    folder = await saved(tmp_path / "m", MODEL)
    assert (await refusal(fetch(str(folder), "0" * 64))).field == "sha256"
    await saved(folder, MIRRORED)
    error = await refusal(fetch(str(folder), "0" * 64))
    assert (error.field, sha256(SUMS) in error.message) == ("sha256", True)


@pytest.mark.parametrize(
    "source",
    [
        "models/tiny",
        "/no/such/folder",
        "file://host/models/tiny",
        "ftp://host/m/",
        "http://example.org/m/",
        "https:///m/",
        "https://[::1/m/",
        "https://host/m/?token=hunter2",
        "hf://tiny",
        "hf://org/tiny@../../x",
        "hf://org/../tiny",
        "hf://org/a--b",
    ],
)
async def test_an_address_that_is_none_is_refused_without_its_secrets(fetch: Fetch, source: str) -> None:
    error = await refusal(fetch(source))
    assert error.field == "source"
    assert "hunter2" not in error.message


def test_only_this_machine_is_asked_without_tls() -> None:
    for host in ("example.org", "10.0.0.1", "127.0.0.1.example.org", "localhost.example.org"):
        with pytest.raises(InvalidArgument, match="only https"):
            addresses.mirror(f"http://{host}/m/", field="source")
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert addresses.mirror(f"http://{host}:8000/m", field="source") == f"http://{host}:8000/m/"


# Sums


@pytest.mark.parametrize(
    "line",
    [
        "x" * 64 + "  name",
        "0" * 63 + "  name",
        "0" * 64 + " name",
        "\\" + "0" * 64 + "  back\\nslash",
        "0" * 64 + "  /etc/passwd",
        "0" * 64 + "  ../up",
        "0" * 64 + "  a/../../up",
        "0" * 64 + "  a//b",
        "0" * 64 + "  a/./b",
        "0" * 64 + "  a\\..\\b",
        "0" * 64 + "  bell\a",
        "0" * 64 + "  " + "n" * 2000,
        "0" * 64 + "  a\n" + "1" * 64 + "  a",
        "0" * 64 + "  a\n" + "0" * 64 + "  a/b",
    ],
)
def test_sums_that_are_none_or_lead_out_of_the_folder_are_refused(line: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        checksums.parse(f"{'1' * 64}  fine\n{line}\n".encode(), field="source")
    assert raised.value.field == "source"


def test_sums_are_read_as_sha256sum_and_find_write_them() -> None:
    data = f"{'A' * 64}  config.json\r\n{'b' * 64} *./sub/with space.bin\n{'c' * 64}  SHA256SUMS\n\n"
    assert checksums.parse(data.encode(), field="source") == {
        "config.json": "a" * 64,
        "sub/with space.bin": "b" * 64,
    }


# Mirrors


async def test_a_mirror_is_downloaded_once_and_told_of(fetch: Fetch, told: list[Progress]) -> None:
    async with web(MIRRORED, under="/m/") as server:
        folder = await fetch(f"{server.address}/m")
        asked = len(server.asked)
        assert await fetch(f"{server.address}/m/") == folder
        assert [path for _, path, _ in server.asked[asked:]] == ["/m/SHA256SUMS"]
        asked = len(server.asked)
        assert await fetch(f"{server.address}/m/", sha256(SUMS)) == folder
        assert len(server.asked) == asked  # what is pinned and here needs no question
    assert await read(folder) == MIRRORED
    total = sum(len(data) for data in MODEL.values())
    assert (told[-1].done_bytes, told[-1].total_bytes) == (total, total)


async def test_a_download_goes_on_where_the_connection_broke(fetch: Fetch) -> None:
    async with web(MIRRORED, under="/m/") as server:
        server.faults[WEIGHTS] = [Fault(cut_after=100), Fault(status=503), Fault(cut_after=50)]
        folder = await fetch(f"{server.address}/m/")
        assert [headers.get("range") for headers in server.gets(WEIGHTS)] == [
            None,
            "bytes=100-",
            "bytes=100-",
            "bytes=150-",
        ]
    assert await read(folder) == MIRRORED


async def test_a_mirror_that_falls_silent_is_asked_again(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_TIMEOUT", httpx2.Timeout(0.2))
    async with web(MIRRORED, under="/m/") as server:
        server.faults[WEIGHTS] = [Fault(cut_after=100, hold=asyncio.Event())]
        folder = await fetch(f"{server.address}/m/")
        assert [headers.get("range") for headers in server.gets(WEIGHTS)] == [None, "bytes=100-"]
    assert await read(folder) == MIRRORED


async def test_a_mirror_without_ranges_is_downloaded_from_the_start_again(fetch: Fetch, told: list[Progress]) -> None:
    async with web(MIRRORED, under="/m/") as server:
        server.ranges = False
        server.faults[WEIGHTS] = [Fault(cut_after=100)]
        folder = await fetch(f"{server.address}/m/")
    assert await read(folder) == MIRRORED
    assert told[-1].done_bytes == told[-1].total_bytes


async def test_a_cancelled_download_shows_no_folder_and_is_finished_by_the_next(fetch: Fetch, tmp_path: Path) -> None:
    files = {**MODEL, "more.pt": bytes(3 << 20)}
    pin = sha256(sums(files))
    part = tmp_path / "cache/mirror" / f"{pin}.unfinished/parts" / str(len(MODEL))
    async with web({**files, "SHA256SUMS": sums(files)}, under="/m/") as server:
        server.faults["/m/more.pt"] = [Fault(cut_after=2 << 20, hold=asyncio.Event())]
        task = asyncio.create_task(fetch(f"{server.address}/m/"))
        while await asyncio.to_thread(lambda: not part.exists() or not part.stat().st_size):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # what is on the disk can only be polled
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await asyncio.to_thread((tmp_path / "cache/mirror" / pin).exists)
        kept = await asyncio.to_thread(lambda: part.stat().st_size)
        async with asyncio.timeout(5):  # the lock is free
            folder = await fetch(f"{server.address}/m/")
        assert kept >= 1 << 20
        assert server.gets("/m/more.pt")[-1]["range"] == f"bytes={kept}-"
    assert await read(folder) == {**files, "SHA256SUMS": sums(files)}
    assert not await asyncio.to_thread(part.parent.parent.exists)


async def test_a_killed_process_leaves_what_another_one_finishes(fetch: Fetch, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from genaifactory_modelserver.weights import sources\n"
        "asyncio.run(sources.fetch_model(sys.argv[1], '', cache=Path(sys.argv[2]), hub_endpoint=None,"
        " report=lambda progress: None))"
    )
    async with web(MIRRORED, under="/m/") as server:
        server.faults[WEIGHTS] = [Fault(cut_after=200, hold=asyncio.Event())]
        address = f"{server.address}/m/"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, address, str(tmp_path / "cache"))
        async with asyncio.timeout(60):
            await server.sent.wait()
        waiting = asyncio.create_task(fetch(address))  # the other process holds the lock
        process.send_signal(signal.SIGKILL)
        await process.wait()
        folder = await waiting
    assert await read(folder) == MIRRORED


async def test_two_that_want_the_same_model_download_it_once(fetch: Fetch) -> None:
    async with web(MIRRORED, under="/m/") as server:
        first, second = await asyncio.gather(fetch(f"{server.address}/m/"), fetch(f"{server.address}/m/"))
        assert first == second
        assert len(server.gets(WEIGHTS)) == 1


async def test_a_part_of_another_version_is_thrown_away(fetch: Fetch, tmp_path: Path) -> None:
    unfinished = tmp_path / "cache/mirror" / f"{sha256(SUMS)}.unfinished"
    await saved(unfinished, {"parts/0": b"{", "parts/1": b"x" * 50, "parts/2": b"y" * 9999})
    async with web(MIRRORED, under="/m/") as server:
        folder = await fetch(f"{server.address}/m/")
    assert await read(folder) == MIRRORED


async def test_a_file_that_is_not_as_its_sum_says_is_refused(fetch: Fetch, tmp_path: Path) -> None:
    async with web({**MIRRORED, "config.json": b"{}"}, under="/m/") as server:
        error = await refusal(fetch(f"{server.address}/m/"))
        assert len(server.gets("/m/config.json")) == 1
    assert error.field == "source"
    assert "'config.json'" in error.message
    assert sha256(MODEL["config.json"]) in error.message
    assert not await asyncio.to_thread((tmp_path / "cache/mirror" / sha256(SUMS)).exists)


async def test_another_sums_file_than_the_pinned_one_is_refused_before_any_weights(fetch: Fetch) -> None:
    async with web(MIRRORED, under="/m/") as server:
        error = await refusal(fetch(f"{server.address}/m/", "0" * 64))
        assert [path for _, path, _ in server.asked] == ["/m/SHA256SUMS"]
    assert error.field == "sha256"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "has no file 'SHA256SUMS'"),
        ({"SHA256SUMS": b"<html>"}, "Line 1"),
        ({"SHA256SUMS": b"0" * (2 << 20)}, "larger than"),
        ({"SHA256SUMS": sums({"README.md": b""})}, "names no config.json"),
        ({"SHA256SUMS": sums({"config.json": b""})}, "names no weights"),
        ({"SHA256SUMS": SUMS, "config.json": MODEL["config.json"]}, "has no file"),
    ],
)
async def test_a_mirror_without_a_model_is_refused(fetch: Fetch, files: dict[str, bytes], expected: str) -> None:
    async with web(files, under="/m/") as server:
        with pytest.raises(InvalidArgument, match=expected) as raised:
            await fetch(f"{server.address}/m/")
    assert raised.value.field == "source"


@pytest.mark.parametrize(("status", "error"), [(403, InvalidArgument), (401, InvalidArgument), (503, Unavailable)])
async def test_a_mirror_that_refuses_says_no_password(fetch: Fetch, status: int, error: type[FactoryError]) -> None:
    async with web(MIRRORED, under="/m/") as server:
        server.statuses["/m/SHA256SUMS"] = status
        address = server.address.replace("://", "://user:hunter2@")
        with pytest.raises(error) as raised:
            await fetch(f"{address}/m/")
        assert "authorization" in server.asked[0][2]  # it was sent
        assert len(server.asked) == (1 + mirror.RETRIES if status == 503 else 1)
    assert "hunter2" not in raised.value.message
    assert str(status) in raised.value.message


async def test_a_mirror_that_leads_on_to_an_address_without_tls_is_refused(fetch: Fetch) -> None:
    async with web(MIRRORED, under="/m/") as server:
        server.statuses["/m/SHA256SUMS"] = 302
        server.headers["/m/SHA256SUMS"] = {"location": "http://example.org/SHA256SUMS"}
        error = await refusal(fetch(f"{server.address}/m/"))
    assert (error.field, "without https" in error.message) == ("source", True)


async def test_what_was_downloaded_is_served_while_the_mirror_is_away(fetch: Fetch) -> None:
    async with web(MIRRORED, under="/m/") as server:
        folder = await fetch(f"{server.address}/m/")
        server.statuses["/m/SHA256SUMS"] = 503
        assert await fetch(f"{server.address}/m/") == folder
        with pytest.raises(Unavailable):
            await fetch(f"{server.address}/m/", "0" * 64)


async def test_a_download_that_does_not_fit_the_disk_is_not_begun(fetch: Fetch) -> None:
    async with web(MIRRORED, under="/m/") as server:
        server.claimed_bytes[WEIGHTS] = 1 << 60
        with pytest.raises(Unavailable, match=r"has too little room: .* are free, .* are needed") as raised:
            await fetch(f"{server.address}/m/")
        assert server.gets(WEIGHTS) == []
    assert raised.value.field is None


# The hub


@pytest.fixture
def hub_files() -> dict[str, bytes]:
    """A model on the hub, with files that nobody needs."""
    return {**MODEL, "pytorch_model.bin": b"pickle", "README.md": b"#", "onnx/model.json": b"{}", ".gitattributes": b""}


async def test_a_model_of_the_hub_is_downloaded_with_what_vllm_needs(
    fetch: Fetch, hub_files: dict[str, bytes], told: list[Progress]
) -> None:
    async with web() as server:
        weights.hub(server, "org/tiny", hub_files)
        folder = await fetch("hf://org/tiny", hub_endpoint=server.address)
    assert await read(folder) == MODEL
    total = sum(len(data) for data in MODEL.values())
    assert (told[-1].done_bytes, told[-1].total_bytes) == (total, total)


async def test_a_model_in_pickle_alone_is_downloaded_as_well(fetch: Fetch) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    async with web() as server:
        weights.hub(server, "org/old", files)
        assert await read(await fetch("hf://org/old", hub_endpoint=server.address)) == files
    assert await read(await fetch("hf://org/old", hub_endpoint=server.address)) == files  # the server is gone


async def test_a_revision_of_the_hub_is_what_was_asked_for(fetch: Fetch) -> None:
    async with web() as server:
        weights.hub(server, "org/tiny", {**MODEL, "config.json": b'{"v": 2}'}, revision="v2", commit="d" * 40)
        folder = await fetch("hf://org/tiny@v2", hub_endpoint=server.address)
        assert (await read(folder))["config.json"] == b'{"v": 2}'
        path = "/api/models/org/tiny/revision/v3"
        server.statuses[path], server.headers[path] = 404, {"x-error-code": "RevisionNotFound"}
        error = await refusal(fetch("hf://org/tiny@v3", hub_endpoint=server.address))
    assert "no revision 'v3'" in error.message


async def test_a_pinned_model_of_the_hub_is_verified(fetch: Fetch) -> None:
    files = {**MODEL, "README.md": b"#"}
    listed = sums(files)
    async with web() as server:
        weights.hub(server, "org/tiny", {**files, "SHA256SUMS": listed})
        await fetch("hf://org/tiny", sha256(listed), hub_endpoint=server.address)
        weights.hub(server, "org/bare", files)
        error = await refusal(fetch("hf://org/bare", sha256(listed), hub_endpoint=server.address))
    assert error.field == "sha256"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "RepoNotFound", "not there, or is private"),
        (401, "RepoNotFound", "not there, or is private"),
        (401, "", "HF_TOKEN"),
        (403, "GatedRepo", "gated.*HF_TOKEN"),
    ],
)
async def test_what_the_hub_refuses_is_said(fetch: Fetch, status: int, code: str, expected: str) -> None:
    async with web() as server:
        server.statuses["/api/models/org/tiny"] = status
        server.headers["/api/models/org/tiny"] = {"x-error-code": code}
        with pytest.raises(InvalidArgument, match=expected) as raised:
            await fetch("hf://org/tiny", hub_endpoint=server.address)
        assert len(server.asked) == 1
    assert raised.value.field == "source"


async def test_a_hub_that_is_away_is_tried_again_and_then_what_is_there_is_served(fetch: Fetch) -> None:
    async with web() as server:
        weights.hub(server, "org/tiny", MODEL)
        path = f"/org/tiny/resolve/{'c' * 40}/model.safetensors"
        server.faults[path] = [Fault(status=500)]
        folder = await fetch("hf://org/tiny", hub_endpoint=server.address)
        assert len(server.gets(path)) == 2
        server.statuses["/api/models/org/tiny"] = 500
        assert await fetch("hf://org/tiny", hub_endpoint=server.address) == folder
    assert await fetch("hf://org/tiny", hub_endpoint=server.address) == folder
    with pytest.raises(Unavailable, match=r"cannot be reached.*mirror"):
        await fetch("hf://org/other", hub_endpoint=server.address)


async def test_without_a_hub_the_cache_serves_and_the_error_names_the_other_ways(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with web() as server:
        weights.hub(server, "org/tiny", MODEL)
        folder = await fetch("hf://org/tiny", hub_endpoint=server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        asked = len(server.asked)
        assert await fetch("hf://org/tiny", hub_endpoint=server.address) == folder
        error = await refusal(fetch("hf://org/other", hub_endpoint=server.address))
        assert len(server.asked) == asked
    assert error.field == "source"
    assert "HF_HUB_OFFLINE" in error.message
    assert "mirror" in error.message


async def test_a_cancelled_download_from_the_hub_ends_and_is_not_served(fetch: Fetch) -> None:
    held = asyncio.Event()
    path = f"/org/tiny/resolve/{'c' * 40}/model.safetensors"
    async with web() as server:
        weights.hub(server, "org/tiny", MODEL)
        server.faults[path] = [Fault(cut_after=100, hold=held)]
        task = asyncio.create_task(fetch("hf://org/tiny", hub_endpoint=server.address))
        await server.sent.wait()
        task.cancel()
        held.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(Unavailable):
        await fetch("hf://org/tiny", hub_endpoint=server.address)


# What they are made of


async def test_progress_is_told_at_most_once_a_second() -> None:
    now, told = 100.0, list[Progress]()
    meter = Meter(told.append, clock=lambda: now)
    meter.expect(30)
    for _ in range(20):
        now += 0.25
        meter.add(1, "a")
    await meter.finish()
    assert [progress.done_bytes for progress in told] == [1, 5, 9, 13, 17, 20]
    assert told[-1] == Progress(20, 30, "a")


async def test_work_in_a_thread_has_ended_when_its_cancelled_task_has() -> None:
    begun, ended = asyncio.Event(), False
    loop = asyncio.get_running_loop()

    def work(stop: threads.Stop) -> None:
        nonlocal ended
        loop.call_soon_threadsafe(begun.set)
        try:
            while True:
                stop.wait(60)
        finally:
            ended = True

    task = asyncio.create_task(threads.run(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


@pytest.mark.parametrize("turns", [0, 1, 2, 50])
async def test_a_cancelled_wait_for_a_lock_leaves_it_to_the_next(tmp_path: Path, turns: int) -> None:
    order = []

    async def hold(name: str) -> None:
        async with locks.locked(tmp_path / "lock"):
            order.append(name)

    async with locks.locked(tmp_path / "lock"):
        cancelled, waiting = asyncio.create_task(hold("cancelled")), asyncio.create_task(hold("waiting"))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert order == []
    async with asyncio.timeout(5):
        await waiting
    assert order == ["waiting"]


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
        b'{"a": 3}',
        b"[]",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_header_that_is_none_is_found_out(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(tensors.Corrupt):
        tensors.read_header(path)
