"""A step is run once for what it depends on, and its folder belongs to one run."""

from __future__ import annotations

import asyncio
import errno
import platform
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Annotated

import pydantic
import pytest
from rich.console import Console

from genaifactory_common.errors import InvalidArgument, OutOfSpace, Unavailable
from genaifactory_pipelines import environment, exits, step
from genaifactory_pipelines.environment import Environment
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import RESULT, Attempt, Context, Step
from genaifactory_pipelines.values import INPUT, Values

ROOT = Path(__file__).resolve().parents[3]


class Parameters(Values):
    number: int


class Outputs(Values):
    square: int


async def _square(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    started = folder / "started"
    count = len(await asyncio.to_thread(lambda: started.read_text() if started.exists() else ""))
    await asyncio.to_thread(started.write_text, "x" * (count + 1))
    if count == 0 and parameters.number == 13:
        raise ZeroDivisionError
    return Outputs(square=parameters.number**2)


async def _next(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    found = await asyncio.to_thread(square.of, context.run)
    return Outputs(square=found.square + parameters.number)


async def _slow(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    await asyncio.sleep(0.3)
    return await _square(parameters, context, folder)


slow = Step("slow", Parameters, Outputs, _slow)
square = Step("square", Parameters, Outputs, _square)
acting = Step("acting", Parameters, Outputs, _square, acts_outside=True)
following = Step("following", Parameters, Outputs, _next, needs=(square,))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, None, Progress(Console(file=StringIO())))  # type: ignore[arg-type]  # no step here uses it


async def test_a_step_that_was_run_is_not_run_again(context: Context) -> None:
    for _ in range(2):
        assert await square.run(Parameters(number=3), context) == Outputs(square=9)
    assert await asyncio.to_thread((context.run / "square" / "started").read_text) == "x"


async def test_a_step_is_done_once_its_result_is_that_of_the_same_attempt(context: Context) -> None:
    for step_, done in ((square, True), (acting, False)):  # one that acts outside is never done
        assert not await asyncio.to_thread(step_.done, Parameters(number=3), context.run)
        await step_.run(Parameters(number=3), context)
        assert await asyncio.to_thread(step_.done, Parameters(number=3), context.run) == done
    assert not await asyncio.to_thread(square.done, Parameters(number=4), context.run)
    await asyncio.to_thread((context.run / "square" / RESULT).unlink)
    assert not await asyncio.to_thread(square.done, Parameters(number=3), context.run)


async def test_two_that_run_a_step_at_once_do_its_work_once(context: Context) -> None:
    both = await asyncio.gather(*(slow.run(Parameters(number=3), context) for _ in range(2)))
    assert both == [Outputs(square=9)] * 2
    assert await asyncio.to_thread((context.run / "slow" / "started").read_text) == "x"


async def test_a_step_that_another_process_works_on_for_long_may_be_started_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def work(parameters: Parameters, context: Context, folder: Path) -> Outputs:
        begun.set()
        await end.wait()
        return Outputs(square=9)

    waits = Step("waits", Parameters, Outputs, work)
    monkeypatch.setattr(step, "_LOCK_SECONDS", 0.1)
    first = asyncio.create_task(waits.run(Parameters(number=3), context))
    await begun.wait()
    with pytest.raises(Unavailable, match="Another process has worked on 'waits'") as found:
        await waits.run(Parameters(number=3), context)
    assert exits.of(found.value) == exits.TRANSIENT
    end.set()
    assert await first == await waits.run(Parameters(number=3), context)


async def test_a_step_that_acts_outside_of_its_folder_is_done_each_time(context: Context) -> None:
    for _ in range(2):
        assert await acting.run(Parameters(number=3), context) == Outputs(square=9)
    assert await asyncio.to_thread((context.run / "acting" / "started").read_text) == "xx"


KILLED = """
import asyncio, io, os, sys
from pathlib import Path
from rich.console import Console
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context
from tests.unit.pipelines.test_step import Parameters, square

run = Path(sys.argv[1])

def square_of(number, end_at):
    # In a process of its own, killed at this one of its operations on files of the run. None: it is not killed.
    pid = os.fork()
    if pid == 0:
        seen = 0

        def look(event, arguments):
            nonlocal seen
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(run) in str(arguments[0]):
                seen += 1
                if seen == end_at:
                    os._exit(9)

        sys.addaudithook(look)
        try:
            context = Context(run, None, Progress(Console(file=io.StringIO())))
            found = asyncio.run(square.run(Parameters(number=number), context))
            os._exit(0 if found.square == number**2 else 1)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

killed = 0
for end_at in range(1, 1000):
    assert square_of(3, None) == 0
    ended = square_of(4, end_at)
    assert square_of(4, None) == 0, end_at
    if ended == 0:
        break
    assert ended == 9, ended
    killed += 1
print(killed)
"""
"""Kills a step, whose folder holds the result of other parameters, at each of its operations on files."""


def test_a_step_that_is_killed_at_any_operation_on_a_file_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        (sys.executable, "-c", KILLED, str(tmp_path / "run")), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


async def test_other_parameters_begin_in_an_empty_folder(context: Context) -> None:
    await square.run(Parameters(number=3), context)
    assert await square.run(Parameters(number=4), context) == Outputs(square=16)
    assert await asyncio.to_thread((context.run / "square" / "started").read_text) == "x"


class Files(Values):
    given: Annotated[Path, INPUT]
    state: Path


async def _sizes(parameters: Files, context: Context, folder: Path) -> Outputs:
    before = await asyncio.to_thread(parameters.state.read_text)
    await asyncio.to_thread(parameters.state.write_text, f"{before}x")
    return Outputs(square=len(await asyncio.to_thread(parameters.given.read_text)))


async def test_a_step_is_run_again_when_an_input_has_other_content_and_not_when_another_file_has(
    context: Context, tmp_path: Path
) -> None:
    sizes = Step("sizes", Files, Outputs, _sizes)
    wanted = Files(given=tmp_path / "given", state=tmp_path / "state")
    await asyncio.to_thread(wanted.state.write_text, "")
    for text, runs in (("a", "x"), ("a", "x"), ("ab", "xx")):
        await asyncio.to_thread(wanted.given.write_text, text)
        assert (await sizes.run(wanted, context)).square == len(text)
        assert await asyncio.to_thread(wanted.state.read_text) == runs


async def test_the_folder_says_what_the_result_depends_on_and_what_it_was_run_by(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENAIFACTORY_REVISION", "0123abc")
    environment.here.cache_clear()
    await square.run(Parameters(number=3), context)
    assert await following.run(Parameters(number=1), context) == Outputs(square=10)
    found = await asyncio.to_thread(following.attempt, context.run)
    assert (found.parameters, found.files, found.needs) == ({"number": 1}, {}, {"square": {"square": 9}})
    assert await asyncio.to_thread(square.attempt, context.run) == Attempt(
        step="square", version=found.version, parameters={"number": 3}, files={}, needs={}
    )
    data = await asyncio.to_thread((context.run / "square" / environment.FILE).read_bytes)
    where = Environment.model_validate_json(data)
    environment.here.cache_clear()
    assert (where.revision, where.packages["pydantic"], where.python) == (
        "0123abc",
        pydantic.VERSION,
        platform.python_version(),
    )
    other = where.model_copy(update={"threads": "7", "packages": {**where.packages, "pydantic": "1.0", "new": "2"}})
    assert other.lock() != where.lock() == where.model_copy(update={"threads": "7"}).lock()
    assert where.differences(other) == [
        f"threads {where.threads or 'unset'}, 7", "new none, 2", f"pydantic {pydantic.VERSION}, 1.0",
    ]  # fmt: skip


async def test_what_a_step_was_run_by_is_what_was_there_when_it_began(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pull(parameters: Parameters, context: Context, folder: Path) -> Outputs:
        monkeypatch.setenv("GENAIFACTORY_REVISION", "after")
        return Outputs(square=1)

    monkeypatch.setenv("GENAIFACTORY_REVISION", "before")
    environment.here.cache_clear()
    await Step("pulls", Parameters, Outputs, pull).run(Parameters(number=1), context)
    environment.here.cache_clear()
    data = await asyncio.to_thread((context.run / "pulls" / environment.FILE).read_bytes)
    assert Environment.model_validate_json(data).revision == "before"


def test_a_distribution_without_a_name_is_left_out_and_the_first_of_a_name_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, metadata in (
        ("broken-1.dist-info", None),
        ("Pydantic-0.1.dist-info", "Name: Pydantic\nVersion: 0.1\n"),
    ):
        (tmp_path / folder).mkdir()
        if metadata is not None:
            (tmp_path / folder / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}")
    monkeypatch.syspath_prepend(tmp_path)
    import importlib_metadata  # noqa: F401  # as MLflow does: its finder reports such a folder otherwise

    environment.here.cache_clear()
    packages = environment.here().packages
    environment.here.cache_clear()
    assert packages["pydantic"] == "0.1"
    assert "pytest" in packages


def test_a_commit_is_that_of_the_checkout_that_tracks_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(
            ("git", "-C", str(tmp_path), *named, *arguments), check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    file = tmp_path / "module.py"
    file.touch()
    git("init", "--quiet")
    assert environment.commit(file) == ""  # an installed package in a checkout of something else
    git("add", "module.py")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "HEAD")
    assert environment.commit(file) == commit
    file.write_text("1")
    assert environment.commit(file) == f"{commit}+changes"


async def test_an_attempt_finds_what_the_one_before_has_left(context: Context) -> None:
    with pytest.raises(ZeroDivisionError):
        await square.run(Parameters(number=13), context)
    assert await square.run(Parameters(number=13), context) == Outputs(square=169)
    assert await asyncio.to_thread((context.run / "square" / "started").read_text) == "xx"


async def test_a_step_is_run_again_when_what_it_needs_has_another_result(context: Context) -> None:
    with pytest.raises(InvalidArgument, match="holds no result of 'square'"):
        await following.run(Parameters(number=1), context)
    for number, expected in ((3, 10), (4, 17)):
        await square.run(Parameters(number=number), context)
        assert await following.run(Parameters(number=1), context) == Outputs(square=expected)


async def test_a_folder_with_other_files_and_a_damaged_result_are_refused(context: Context) -> None:
    await square.run(Parameters(number=3), context)
    await asyncio.to_thread((context.run / "square" / RESULT).write_text, "{")
    with pytest.raises(InvalidArgument, match="holds no result of 'square'"):
        await square.run(Parameters(number=3), context)
    await asyncio.to_thread((context.run / "square" / ".attempt").unlink)
    with pytest.raises(InvalidArgument, match="holds other files"):
        await square.run(Parameters(number=3), context)


async def test_a_full_disk_is_named_with_what_to_do(context: Context) -> None:
    async def fill(parameters: Parameters, context: Context, folder: Path) -> Outputs:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutOfSpace, match=rf"The disk that holds {context.run}/fills is full\. Make room on it"):
        await Step("fills", Parameters, Outputs, fill).run(Parameters(number=1), context)


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    written, now = StringIO(), 0.0
    progress = Progress(Console(file=written, width=80), clock=lambda: now)
    with progress.counting("collect", 2000) as report:
        for second in range(25):
            now = float(second)
            report(second * 50)
    assert written.getvalue() == "collect: 500 of 2,000 after 10 s\ncollect: 1,000 of 2,000 after 20 s\n"


def test_progress_says_what_else_there_is_on_a_terminal_and_in_a_log() -> None:
    log, terminal, now = StringIO(), StringIO(), 0.0
    with Progress(Console(file=log, width=80), clock=lambda: now).counting("train", 20) as report:
        now = 10.0
        report(5, "loss 1.25")
    assert log.getvalue() == "train: 5 of 20 after 10 s, loss 1.25\n"
    console = Console(file=terminal, width=120, force_terminal=True, _environ={})
    with Progress(console).counting("train", 20) as report:
        report(5, "loss 1.25")
    assert "loss 1.25" in terminal.getvalue()
