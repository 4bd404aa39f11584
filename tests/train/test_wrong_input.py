"""What cannot be trained is refused before it starts, and what goes wrong later exports nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from genaifactory_common.errors import FactoryError, InvalidArgument, Unimplemented
from genaifactory_pipelines.datasets.contract import Example
from tests.data import tiny_llama
from tests.train import runs

SECRET = "hunter2 is the password"


def long_one(number: int) -> Example:
    """An example of more than 300 tokens."""
    return Example.model_validate({"id": f"long-{number}", "input": f"{SECRET} " * 60, "output": "No."})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A dataset of preferences."""
    examples = runs.questions(16)
    return runs.made(tmp_path / "run", examples, examples[:8])


async def refused(run: Path, kind: type[FactoryError], field: str | None, **values: Any) -> str:
    """The message of the step's error, which exports nothing and holds no text of an example."""
    with pytest.raises(kind) as caught:
        await runs.trained(run, runs.options(values.pop("base"), **values))
    assert caught.value.field == field
    assert SECRET not in caught.value.message
    assert not (run / "train" / "adapter").exists()
    assert not (run / "train" / "result.json").exists()
    return caught.value.message


def without_weights(base: Path) -> None:
    """A model whose weights are missing."""
    (base / "model.safetensors").unlink()


def with_bad_weights(base: Path) -> None:
    """A model whose weights are no numbers."""
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})


def refusing(base: Path) -> None:
    """A model whose template has no role for the user."""
    (base / "chat_template.jinja").write_text("{{ raise_exception('no user') }}")


def forgetting(base: Path) -> None:
    """A model whose template leaves out what was asked once it is answered."""
    (base / "chat_template.jinja").write_text("{{ messages[-1].content }}")


def unknown(base: Path) -> None:
    """A model of an architecture that transformers does not know."""
    (base / "config.json").write_text('{"model_type": "of-tomorrow"}')


def with_code(base: Path) -> None:
    """A model that brings code of its own, which would leave a file."""
    (base / "config.json").write_text('{"model_type": "of-tomorrow", "auto_map": {"AutoConfig": "code.Config"}}')
    (base / "code.py").write_text(f"from pathlib import Path\nPath({str(base / 'ran')!r}).touch()\n")


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (with_code, "base", "is not one that transformers knows"),
        (without_weights, "base", "The weights in .* cannot be loaded"),
        (with_bad_weights, "sft.learning_rate", "The loss is nan at step 0, so nothing was exported"),
        (refusing, "base", "chat template refuses the messages of the example 'q-000'"),
        (forgetting, "base", "chat template writes a question otherwise when its answer follows"),
        (unknown, "base", "is not one that transformers knows"),
    ],
)
async def test_a_base_that_cannot_be_trained_on_is_refused(
    change: Callable[[Path], None], field: str, message: str, llama: Path, run: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    change(base)
    with pytest.raises(InvalidArgument, match=message) as caught:
        await runs.trained(run, runs.options(base))
    assert caught.value.field == field
    assert not (base / "ran").exists()


async def test_what_is_no_chat_model_is_refused(llama: Path, run: Path, tmp_path: Path) -> None:
    bare = tiny_llama.without_chat_template(llama, tmp_path / "bare")
    embedder = tiny_llama.cached("embedder")
    for base, message in (
        (Path("/nowhere"), "There is no model in /nowhere"),
        (embedder, "is no causal language model; its architecture is: BertModel"),
        (bare, "has no chat template"),
        ("hf://no name", "is no model of a hub; write hf://ORG/NAME"),
    ):
        assert message in await refused(run, InvalidArgument, "base", base=base)


async def test_layers_that_the_base_does_not_have_are_named_with_those_that_it_has(llama: Path, run: Path) -> None:
    for name in ("query", "lm_head", "norm"):
        lora = {"target_modules": ["q_proj", name]}
        message = await refused(run, InvalidArgument, "lora.target_modules", base=llama, lora=lora)
        assert f"no linear layer {name} that" in message
        assert "down_proj, gate_proj, k_proj" in message


async def test_only_the_named_layers_are_changed(llama: Path, run: Path) -> None:
    lora = {"rank": 4, "target_modules": ["q_proj", "v_proj"]}
    await runs.trained(run, runs.options(llama, lora=lora))
    weights = load_file(run / "train" / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "v_proj"}


async def test_quantisation_needs_its_library_and_a_gpu(
    llama: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await refused(run, Unimplemented, None, base=llama, quantisation="4bit")
    assert "needs bitsandbytes" in message
    assert "genaifactory-pipelines[qlora]" in message
    (tmp_path / "bitsandbytes.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    message = await refused(run, InvalidArgument, "quantisation", base=llama, quantisation="4bit")
    assert "needs a GPU with CUDA" in message


async def test_dpo_without_preferences_is_refused(llama: Path, tmp_path: Path) -> None:
    some = runs.questions(16)
    none = runs.without_rejected(some)
    for name, train, validation in (("train", none, some), ("validation", some, none)):
        run = runs.made(tmp_path / name, train, validation)
        for method in ("dpo", "sft+dpo"):  # found before the first stage
            message = await refused(run, InvalidArgument, "method", base=llama, method=method)
            assert f"The {name} split holds no preference" in message
            assert not (run / "train" / "checkpoints").exists()


async def test_an_empty_train_split_is_refused(llama: Path, tmp_path: Path) -> None:
    run = runs.made(tmp_path, [], runs.questions(8))
    assert "train.jsonl: it holds no example" in await refused(run, InvalidArgument, "train.jsonl", base=llama)


async def test_examples_that_are_too_long_are_counted_and_nothing_else_is_refused(
    llama: Path, tmp_path: Path, written: StringIO
) -> None:
    short = runs.without_rejected(runs.questions(16))
    run = runs.made(tmp_path / "some", [*short, long_one(1), long_one(2)], [*short[:8], long_one(3)])
    outputs = await runs.trained(run, runs.options(llama, max_tokens=300), written)
    assert outputs.stages["sft"].too_long == {"train": 2, "validation": 1}
    assert outputs.stages["sft"].examples == {"train": 16, "validation": 8}
    assert "train: sft: 2 examples of the train split are too long" in written.getvalue()
    for split, parts in (("train", ([long_one(1)], short)), ("validation", (short, [long_one(1)]))):
        run = runs.made(tmp_path / split, *parts)
        message = await refused(run, InvalidArgument, "max_tokens", base=llama, max_tokens=300)
        assert f"Each of the 1 examples of the {split} split has more than 300 tokens" in message


async def test_an_example_longer_than_the_bases_context_is_too_long(llama: Path, tmp_path: Path) -> None:
    short = runs.without_rejected(runs.questions(16))
    endless = Example.model_validate({"id": "endless", "input": "why " * 3000, "output": "So."})
    run = runs.made(tmp_path, [*short, endless], short[:8])
    outputs = await runs.trained(run, runs.options(llama, max_tokens=100_000))
    assert outputs.stages["sft"].too_long["train"] == 1


async def test_a_loss_that_is_no_number_ends_the_training_at_once_and_exports_nothing(llama: Path, run: Path) -> None:
    diverging = {"epochs": 4, "learning_rate": 1e30}  # 8 steps, evaluated after the last
    message = await refused(run, InvalidArgument, "sft.learning_rate", base=llama, sft=diverging)
    assert message.startswith("The loss is nan at step 3, so nothing was exported. Lower the learning rate")
