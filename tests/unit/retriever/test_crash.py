"""Killed at any moment, the retriever opens again with the old or the new state of every document, never a mixture."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genaifactory_common.minilm import MiniLM

ROOT = Path(__file__).resolve().parents[3]
ROUNDS = 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_killed_at_random_moments_leaves_whole_documents(
    tmp_path: Path, model_dir: Path, model: MiniLM
) -> None:
    chance = random.Random(3)
    answered = 0
    killed_while_writing = 0
    for _ in range(ROUNDS):
        command = [
            sys.executable,
            "-m",
            "tests.unit.retriever.crash_child",
            str(tmp_path),
            str(model_dir),
            str(answered),
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            first = child.stdout.readline()
            if not first.startswith("ready"):
                child.kill()
                pytest.fail(f"what the last kill left does not open: {child.stderr.read()[-2000:]}")
            time.sleep(chance.uniform(0, 0.8))  # the moment is the test's input
            child.kill()
            written = [int(line.split()[1]) for line in child.stdout.read().splitlines() if line.startswith("edition")]
        answered = max([answered, *written])
        killed_while_writing += bool(written)
    assert killed_while_writing >= ROUNDS // 3
