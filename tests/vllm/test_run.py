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

from tests.data import tiny_llama
from tests.vllm import processes

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / ".venv" / "bin" / "genaifactory"
pytestmark = pytest.mark.skipif(not COMMAND.exists(), reason="the platform is not installed in .venv (make sync)")


@contextmanager
def running(folder: Path, model: Path | str, *documents: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The command; and its output's file."""
    output = folder / "output.txt"
    ports = ("--port", str(processes.free_port()), "--grpc-port", str(processes.free_port()))
    with output.open("w") as file:
        process = subprocess.Popen(
            (COMMAND, "run", *documents, "--state", folder / "state", *ports, "--model", str(model)),
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


def test_a_folder_with_weights_answers_and_is_on_record_and_leaves_nothing_behind(llama: Path, tmp_path: Path) -> None:
    with running(tmp_path, llama) as (process, output):
        wait_until_ready(process, output)
        assert "chat template" not in output.read_text()
        assert "llama: vLLM is loading it." in output.read_text()
        assert genaifactory(tmp_path, "ask", "--route", "chat", "Annual leave").strip()
        (record,) = [json.loads(line) for line in genaifactory(tmp_path, "export").splitlines()]
        assert record["model"] == "llama"
        servers = [
            int(line.split()[0])
            for line in subprocess.run(
                ("ps", "-e", "-o", "pid=,ppid=,args="), capture_output=True, text=True, check=True
            ).stdout.splitlines()
            if int(line.split()[1]) == process.pid
        ]
        assert servers
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        processes.wait_until_gone(servers, seconds=10)


def test_a_base_model_without_a_chat_template_answers_after_a_warning_that_names_it(
    llama: Path, tmp_path: Path
) -> None:
    base = tiny_llama.without_chat_template(llama, tmp_path / "base")
    with running(tmp_path, base) as (process, output):
        wait_until_ready(process, output)
        (warning,) = [line for line in output.read_text().splitlines() if line.startswith("warning: base:")]
        assert "its files hold no chat template" in warning
        assert "engines[0].chat_template" in warning
        assert genaifactory(tmp_path, "ask", "--route", "chat", "Annual leave").strip()
        (record,) = [json.loads(line) for line in genaifactory(tmp_path, "export").splitlines()]
        assert (record["model"], record["outcome"]) == ("base", "answered")


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
