"""`genaifactory run --model …`: the whole platform on a laptop, answering with a model of one's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import ports
from tests.data import tiny_llama
from tests.full import FULL
from tests.vllm import processes

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / ".venv" / "bin" / "genaifactory"
pytestmark = pytest.mark.skipif(not COMMAND.exists(), reason="the platform is not installed in .venv (make sync)")


@contextmanager
def running(folder: Path, model: Path | str | None, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The command; and its output's file."""
    output = folder / "output.txt"
    chosen = ["--port", str(ports.free_port()), "--grpc-port", str(ports.free_port())]
    if model is not None:
        chosen += ["--model", str(model)]
    with output.open("w") as file:
        process = subprocess.Popen(
            (COMMAND, "run", *arguments, "--state", folder / "state", *chosen),
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process, output
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def genaifactory(folder: Path, *arguments: str) -> str:
    """Another command's output."""
    done = subprocess.run(
        (COMMAND, *arguments, "--state", folder / "state"), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until_ready(process: subprocess.Popen[str], output: Path) -> None:
    """Returns when the command prints that it is ready."""
    deadline = time.monotonic() + 180
    while "Ready" not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def models(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name: one with a chat template, and one without."""
    return {"llama": llama, "base": tiny_llama.without_chat_template(llama, tmp_path_factory.mktemp("run") / "base")}


@pytest.mark.parametrize("name", ["base", *(["llama"] if FULL else [])])
def test_a_folder_with_weights_answers_and_is_on_record_and_leaves_nothing_behind(
    models: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """And a model without a chat template has a warning that names it."""
    with running(tmp_path, models[name]) as (process, output):
        wait_until_ready(process, output)
        printed = output.read_text()
        assert f"{name}: vLLM is loading it." in printed
        warnings = [line for line in printed.splitlines() if "chat template" in line]
        assert len(warnings) == (name == "base")
        for warning in warnings:
            assert warning.startswith("warning: base: its files hold no chat template")
            assert "engines[0].chat_template" in warning
        assert genaifactory(tmp_path, "ask", "--route", "chat", "Annual leave").strip()
        (record,) = [json.loads(line) for line in genaifactory(tmp_path, "export").splitlines()]
        assert (record["model"], record["outcome"]) == (name, "answered")
        servers = processes.children(process.pid)
        assert servers
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        processes.wait_until_gone(servers, seconds=10)


def test_a_folder_without_a_model_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with running(tmp_path, empty) as (process, output):
        assert process.wait(120) == 1
        assert "The model 'empty' cannot be served: There is no config.json" in output.read_text()


def test_what_is_no_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with running(tmp_path, "./nowhere") as (process, output):
        assert process.wait(60) == 1
        assert "no folder here" in output.read_text()
        assert "Traceback" not in output.read_text()
