"""What the tests of this folder share: the small Llama, and one whole training of it."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.steps.train import Outputs
from tests.data import tiny_llama
from tests.train import runs


@dataclass(frozen=True)
class Learnt:
    """A training of 100 steps."""

    run: Path
    examples: list[Example]
    outputs: Outputs

    @property
    def adapter(self) -> Path:
        """Its folder."""
        return self.run / "train" / "adapter"


@pytest.fixture(scope="session")
def llama() -> Path:
    """A small Llama."""
    return tiny_llama.cached("llama")


@pytest.fixture(scope="session")
def learnt(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """40 questions and their answers, the first eight of which are the validation split too."""
    examples = runs.questions()
    run = runs.made(tmp_path_factory.mktemp("learnt"), runs.without_rejected(examples), examples[:8])
    wanted = runs.options(llama, sft={"epochs": 20, "evaluate_every": 50}, prompt_version="rag@1")
    return Learnt(run, examples, runs.train_now(run, wanted))


@pytest.fixture
def written() -> StringIO:
    """What a run writes."""
    return StringIO()
