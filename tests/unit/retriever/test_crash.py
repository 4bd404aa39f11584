"""A retriever killed at any moment opens again with the old or the new state of every document, never a mixture."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import IO

import pytest

from genaifactory_common.minilm import MiniLM

ROOT = Path(__file__).resolve().parents[3]
ROUNDS = 10


class Progress:
    """The child's output, line by line, and the present duration of its steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds of the last complete step of each kind, "write" and "build"."""

    def until_begins(self, aim: str, lines: IO[str], *, later: int) -> list[str]:
        """Reads until the first step of the kind with a known duration begins, or the one `later` steps after it."""
        said = []
        step, begun = "", 0.0
        while line := lines.readline():
            said.append(line)
            now = time.monotonic()
            if step:
                self.seconds[step] = now - begun
            step, begun = line.removeprefix("begins ").strip() if line.startswith("begins ") else "", now
            if step == aim and aim in self.seconds:
                if not later:
                    break
                later -= 1
        return said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_killed_at_random_moments_leaves_whole_documents(
    tmp_path: Path, model_dir: Path, model: MiniLM
) -> None:
    chance = random.Random(3)
    progress = Progress()
    answered = 0
    cut: Counter[str] = Counter()
    for turn in range(ROUNDS):
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
                pytest.fail(f"the state after the last kill does not open: {child.stderr.read()[-2000:]}")
            aim = ("write", "build")[turn % 2]
            said = progress.until_begins(aim, child.stdout, later=chance.randrange(2))
            # A random moment within the step, on machines of any speed.
            time.sleep(chance.uniform(0, progress.seconds.get(aim, 0)))
            child.kill()
            said += child.stdout.read().splitlines()
            errors = child.stderr.read()
        assert child.returncode < 0, f"the process ended by itself: {errors[-2000:]}"
        answered = max([answered, *(int(line.split()[1]) for line in said if line.startswith("edition"))])
        if said[-1].startswith("begins"):
            cut[said[-1].split()[1]] += 1
    assert cut["write"] > 0
    assert cut["build"] > 0
    assert cut.total() >= ROUNDS // 3
