"""Models, adapters and a server that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genaifactory_common import identity
from tests.data import tiny_llama
from tests.full import FULL
from tests.vllm import processes
from tests.vllm.processes import ModelServer, Rendered

ADAPTERS = 50 if FULL else 16


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """Ends a test as nobody, so that the next one is not by chance somebody."""
    yield
    identity.forget()


@pytest.fixture(scope="session")
def llama() -> Path:
    """A small Llama."""
    return tiny_llama.cached("llama")


@pytest.fixture(scope="session")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of it."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: tiny_llama.make_adapter(folder / name, llama, name=name, seed=seed)
        for seed, name in enumerate(("a", "b", "c"))
    }


@pytest.fixture(scope="session")
def many(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As many adapters as come and go."""
    folder = tmp_path_factory.mktemp("many")
    return {
        f"x{i}": tiny_llama.make_adapter(folder / f"x{i}", llama, name=f"x{i}", seed=100 + i) for i in range(ADAPTERS)
    }


@pytest.fixture(scope="session")
def server(llama: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A model server with the Llama, its three adapters, and an embedding model."""
    serve = [{"name": name, "source": str(folder)} for name, folder in adapters.items()]
    engines = [
        processes.entry(
            llama,
            adapters={"max_loaded": processes.MAX_LOADED, "serve": serve},
            tool_parser="hermes",
            max_per_tenant=100,
        ),
        processes.entry(tiny_llama.cached("embedder"), "embedder", args={"max_model_len": 256, "runner": "pooling"}),
    ]
    with processes.started(tmp_path_factory.mktemp("server"), engines) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def rendered(llama: Path) -> Rendered:
    """The model's chat template, as transformers applies it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)

    def render(messages: list[dict[str, Any]], **rest: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **rest))

    return render
