"""An adapter is loaded into a running platform and evaluated beside production, on real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.vllm import processes
from tests.vllm.test_run import COMMAND, pytestmark, running, wait_until_ready

__all__ = ["pytestmark"]

QUESTIONS = [f"Tell me about leave number {number} in a few words." for number in range(24)]


def genaifactory(folder: Path, *arguments: str, status: int = 0) -> str:
    """A command's output."""
    done = subprocess.run(
        (COMMAND, *arguments), env={**os.environ, "GENAIFACTORY_STATE": str(folder / "state")},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def factory(llama: Path, tmp_path: Path) -> Path:
    """factory.yaml with the small Llama, which may have adapters."""
    path = tmp_path / "factory.yaml"
    document = {
        "tenants": [{"name": "dev"}],
        "roles": [{"name": "user", "permissions": ["chat"]}],
        "models": [{"name": "llama", "backend": {"type": "modelserver", "model": "tiny"}}],
        "routes": [{"name": "chat", "task": "chat", "models": ["llama"], "max_output_tokens": 12}],
        "policies": [{"name": "default"}],
        "gates": [{"name": "better", "rules": [{"metric": "exact_match", "better_by": 0.5}]}],
        "engines": [processes.entry(llama, adapters={"max_rank": 8}), {"type": "extractive"}, {"type": "minilm"}],
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.timeout(600)
def test_an_adapter_answers_beside_production_and_the_gate_knows_which_is_which(
    factory: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """What an adapter answers is taken for right: then it passes, another adapter does not, and production neither."""
    golden = tmp_path / "golden.jsonl"
    golden.write_text("".join(json.dumps({"input": each, "output": "unknown"}) + "\n" for each in QUESTIONS))
    with running(tmp_path, None, "--config", str(factory)) as (process, output):
        wait_until_ready(process, output)
        for name in ("a", "b"):
            assert "1 replica." in genaifactory(tmp_path, "adapters", "load", name, str(adapters[name]))

        def evaluate(run: str, *more: str, status: int = 0) -> dict[str, dict[str, float]]:
            options = ("--golden", str(golden), "--route", "chat", "-o", str(tmp_path / run), "--json", *more)
            found: dict[str, dict[str, float]] = json.loads(
                genaifactory(tmp_path, "evaluate", *options, status=status)
            )["metrics"]
            return found

        first = evaluate("first", "--adapter", "a")
        assert first["exact_match"]["candidate"] == first["failed"]["candidate"] == 0
        answers = [json.loads(line) for line in (tmp_path / "first/evaluate/candidate.jsonl").read_text().splitlines()]
        said = {answer["item"]: answer["text"] for answer in answers}
        right = [{"input": each, "output": said[f"line-{n}"]} for n, each in enumerate(QUESTIONS, 1)]
        golden.write_text("".join(json.dumps(line) + "\n" for line in right))
        found = evaluate("same", "--adapter", "a", "--gate", "better")
        assert found["exact_match"]["candidate"] == 1
        assert found["exact_match"]["production"] <= 0.2
        other = evaluate("other", "--adapter", "b", "--gate", "better", status=3)
        assert other["exact_match"]["candidate"] <= 0.2
        assert "not loaded any more" in genaifactory(tmp_path, "adapters", "unload", "a")
        options = ("--golden", str(golden), "--route", "chat", "-o", str(tmp_path / "gone"), "--adapter", "a")
        genaifactory(tmp_path, "evaluate", *options, status=1)
