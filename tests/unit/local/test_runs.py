"""Steps that run in an environment of their own: what is missing is named, and how their process ends is reported."""

from __future__ import annotations

import asyncio
import os
import sys
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console

from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.specs.routes import Prompt
from genaifactory_local import interpreters, runs
from genaifactory_local.interpreters import Library
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import record_evaluation, register_prompt, train
from genaifactory_pipelines.training.options import Options
from genaifactory_pipelines.values import Values

WANTED = Options(base="/models/llama")


def interpreter(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_every_environment_that_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))  # nothing is installed beside it
    absent = {name: Library("absent_module", beside, f"Install {name}.") for name, beside in (("a", ".a"), ("b", ".b"))}
    monkeypatch.setattr(interpreters, "OF_STEPS", {**absent, "json": Library("json", ".c", "")})
    with pytest.raises(InvalidArgument, match=r"Install a\. Install b\."):
        interpreters.of(["a", "b", "json", "collect"])
    assert interpreters.of(["json", "collect"]) == {"json": Path(sys.executable)}


@pytest.mark.allow_blocking  # the test's own files
async def test_a_step_that_was_killed_is_reported_and_one_that_failed_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"'train' was ended by SIGKILL.*it goes on"):
        await runs.elsewhere(interpreter(tmp_path, "kill -9 $$"), train.train, WANTED, tmp_path)
    with pytest.raises(typer.Exit) as failed:
        await runs.elsewhere(interpreter(tmp_path, "exit 1"), train.train, WANTED, tmp_path)
    assert failed.value.exit_code == 1


@pytest.mark.allow_blocking
async def test_a_prompt_of_any_length_reaches_a_step_in_another_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An argument may have 131,072 bytes on Linux."""
    prompt = Prompt(name="desk", version=2, system="ệ" * 100_000)
    record = record_evaluation.Parameters(name="desk-2")
    given = register_prompt.Parameters(prompt=prompt, record=record)
    with pytest.raises(typer.Exit):
        await runs.elsewhere(Path(sys.executable), register_prompt.register_prompt, given, tmp_path)
    assert "holds no result of 'evaluate': run that step first." in capfd.readouterr().err


class Number(Values):
    value: int


async def _double(parameters: Number, context: Context, folder: Path) -> Number:
    return Number(value=2 * parameters.value)


double = Step("double", Number, Number, _double)


@pytest.mark.allow_blocking
async def test_a_step_that_is_done_starts_no_process(tmp_path: Path) -> None:
    progress = StringIO()
    context = Context(tmp_path, None, Progress(Console(file=progress)))  # type: ignore[arg-type]  # it asks no gateway
    elsewhere = {"double": interpreter(tmp_path, "exit 9")}
    await double.run(Number(value=1), context)
    await runs.execute(double, Number(value=1), context, elsewhere)
    assert "double: nothing has changed since it was run" in progress.getvalue()
    with pytest.raises(typer.Exit) as failed:
        await runs.execute(double, Number(value=2), context, elsewhere)
    assert failed.value.exit_code == 9


@pytest.mark.allow_blocking
async def test_a_command_that_is_interrupted_leaves_no_step_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = interpreter(tmp_path, f'echo "$$ $*" > {pid}.new; mv {pid}.new {pid}; exec sleep 60')
    running = asyncio.create_task(runs.elsewhere(script, train.train, WANTED, tmp_path / "run"))
    async with asyncio.timeout(30):
        while not pid.exists():  # noqa: ASYNC110  # a process writes it
            await asyncio.sleep(0.05)
    number, *arguments = pid.read_text(encoding="utf-8").split()
    assert arguments[:5] == ["-m", "genaifactory_pipelines", "train", "--run", str(tmp_path / "run")]
    assert str(os.getpid()) in arguments  # the process that it ends with
    assert WANTED.base not in " ".join(arguments)  # which every user of the machine sees
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(int(number), 0)
