"""Tests of this folder need a GPU and vLLM; without them they are skipped, with the reason."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genaifactory_common import identity
from tests.data import tiny_llama
from tests.gpu import large_llama


def missing() -> str:
    """What is not there; empty when nothing is."""
    for package in ("vllm", "torch"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (make vllm-gpu)"
    import torch

    if not torch.cuda.is_available():
        return "torch.cuda is not available: there is no GPU, or torch is built without it"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what cannot run."""
    if reason := missing():
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure() -> None:
    """Keeps transformers from asking a hub for what is in a folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """Ends a test as nobody, so that the next one is not by chance somebody."""
    yield
    identity.forget()


@pytest.fixture(scope="session")
def llama() -> Path:
    """A small Llama that has learnt to write."""
    return tiny_llama.cached("llama")


@pytest.fixture(scope="session")
def large() -> Path:
    """A Llama of a billion parameters that has learnt nothing."""
    return large_llama.cached()
