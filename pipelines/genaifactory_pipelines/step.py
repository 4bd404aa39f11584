"""A step of the loop: a typed function that runs the same in a test, in `make pipeline` and in a pod.

Steps of one run share a folder, and each has its own folder in it:

    RUN/collect/result.json  interactions.jsonl  ...
    RUN/curate/result.json   dataset/  report.html

A step reads only the folders of the steps that it needs. `result.json` is written last, after `environment.json`, which
says what the step was run by; `.attempt` is first, with everything that the result depends on, contents of files
included: a step that is run again with the same returns its result, and one that was killed goes on from what its
folder holds. With anything else the folder is emptied first. Two processes never work on one step of a run: the second
waits for the first and returns its result, or ends after a minute with an error that passes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import Timeout
from pydantic import ValidationError

from genaifactory_common import files
from genaifactory_common.errors import Conflict, InvalidArgument, Unavailable
from genaifactory_common.file_locks import file_lock
from genaifactory_common.space import is_full, out_of_space
from genaifactory_pipelines import environment
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.values import INPUT, Values

RESULT = "result.json"
ATTEMPT = ".attempt"
_LOCK_SECONDS = 60.0
"""How long a step waits for another process that works on it: one that was killed ends within a second."""
_LOCK_LOOK_SECONDS = 0.2


Parameters = TypeVar("Parameters", bound=Values)
Outputs = TypeVar("Outputs", bound=Values)


class Attempt(Values):
    """Everything that a result depends on."""

    step: str
    version: str
    """Of this package."""
    parameters: dict[str, Any]
    files: dict[str, str]
    """SHA-256, hex, of the parameters that are files, by the parameter's name."""
    needs: dict[str, Any]
    """Outputs of the steps that it needs, by their names."""


@dataclass(frozen=True)
class Context:
    """What a step works with."""

    run: Path
    """The run's folder."""
    gateway: Gateway
    progress: Progress


@dataclass(frozen=True)
class Step(Generic[Parameters, Outputs]):
    """One step."""

    name: str
    parameters: type[Parameters]
    outputs: type[Outputs]
    work: Callable[[Parameters, Context, Path], Awaitable[Outputs]]
    """Gets the step's own folder, which a killed attempt may have left half filled. Raises FactoryError."""
    needs: tuple[Step[Any, Any], ...] = ()
    acts_outside: bool = False
    """Whether it changes something outside of its folder, which others may have changed back: it is done each time."""

    async def run(self, parameters: Parameters, context: Context) -> Outputs:
        """The step's outputs, from an earlier run when nothing that they depend on has changed.

        Raises FactoryError: Unavailable when another process works on the step for longer than a minute.
        """
        async with _alone(context.run, self.name):
            return await self._run(parameters, context)

    async def _run(self, parameters: Parameters, context: Context) -> Outputs:
        folder = context.run / self.name
        known = await asyncio.to_thread(self._prepare, parameters, context.run)
        if known is not None and not self.acts_outside:
            context.progress.line(f"{self.name}: nothing has changed since it was run")
            return known
        where = await asyncio.to_thread(environment.here)  # the code may be another one when the work is done
        try:
            outputs = await self.work(parameters, context, folder)
            if outputs != known:
                await asyncio.to_thread(_write, folder, outputs, where)
        except OSError as error:
            if is_full(error):
                raise out_of_space(folder) from None
            raise
        return outputs

    def of(self, run: Path) -> Outputs:
        """The outputs of a step that another needs. Raises InvalidArgument when it was not run."""
        try:
            return self.outputs.model_validate_json((run / self.name / RESULT).read_bytes())
        except (OSError, ValidationError):
            raise InvalidArgument(
                f"{run / self.name} holds no result of '{self.name}': run that step first.", field="run"
            ) from None

    def attempt(self, run: Path) -> Attempt:
        """What the result in a run's folder depends on. Blocks. Raises InvalidArgument when the step was not run."""
        try:
            return Attempt.model_validate_json((run / self.name / ATTEMPT).read_bytes())
        except (OSError, ValidationError):
            raise InvalidArgument(
                f"{run / self.name} holds no attempt of '{self.name}': run that step first.", field="run"
            ) from None

    def done(self, parameters: Parameters, run: Path) -> bool:
        """Whether `run` has nothing to do but to return the result of before. Blocks. Raises InvalidArgument."""
        folder = run / self.name
        return not self.acts_outside and (folder / RESULT).exists() and _is_of(folder, self._attempt(parameters, run))

    def _prepare(self, parameters: Parameters, run: Path) -> Outputs | None:
        """The result, if the folder has it of the same attempt; else a folder for the attempt. Blocks."""
        folder, attempt = run / self.name, self._attempt(parameters, run)
        if not _is_of(folder, attempt):  # what an attempt with other parameters has left is of no use
            require_own(folder)
            _begin(folder, attempt)
        if not (folder / RESULT).exists():
            return None
        return self.of(run)

    def _attempt(self, parameters: Parameters, run: Path) -> bytes:
        """The content of the file that stands for an attempt with these parameters."""
        attempt = Attempt(
            step=self.name,
            version=version("genaifactory-pipelines"),
            parameters=parameters.model_dump(mode="json"),
            files=_digests(parameters),
            needs={each.name: each.of(run).model_dump(mode="json") for each in self.needs},
        )
        return json.dumps(attempt.model_dump(), sort_keys=True, indent=2).encode() + b"\n"


Execute = Callable[[Step[Any, Any], Values, Context], Awaitable[None]]
"""Runs a step, where its libraries are; raises FactoryError."""


def _is_of(folder: Path, attempt: bytes) -> bool:
    """Whether a step's folder is that of an attempt."""
    try:
        return (folder / ATTEMPT).read_bytes() == attempt
    except OSError:
        return False


def require_own(folder: Path) -> None:
    """Raises InvalidArgument for a step's folder that holds files of something else. Blocks."""
    if folder.exists() and not (folder / ATTEMPT).exists() and any(folder.iterdir()):
        raise InvalidArgument(f"{folder} holds other files. Give a folder of its own for the run.", field="run")


def _begin(folder: Path, attempt: bytes) -> None:
    """Replaces a folder with one that holds the attempt alone: a kill leaves it as it was, absent or as it shall be."""
    new, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    files.write(new / ATTEMPT, attempt)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path, outputs: Values, where: environment.Environment) -> None:
    files.write(folder / environment.FILE, where.model_dump_json(indent=2).encode() + b"\n")
    files.write(folder / RESULT, outputs.model_dump_json(indent=2).encode() + b"\n")


@asynccontextmanager
async def _alone(run: Path, step: str) -> AsyncIterator[None]:
    """Holds the lock on a step of a run. Raises Unavailable."""
    await asyncio.to_thread(run.mkdir, mode=0o700, parents=True, exist_ok=True)
    lock = file_lock(run / f".{step}.lock")
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            await asyncio.to_thread(lock.acquire, timeout=0)
            break
        except Timeout:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Another process has worked on '{step}' in {run} for a minute. Wait for its end, or end it.",
                    field="run",
                ) from None
            await asyncio.sleep(_LOCK_LOOK_SECONDS)
    try:
        yield
    finally:
        await asyncio.to_thread(lock.release)


def times(step: Step[Any, Any], run: Path) -> tuple[datetime, datetime]:
    """When the first attempt began whose result the folder holds, and when that was written. Blocks. Raises OSError."""
    found = [(run / step.name / name).stat().st_mtime for name in (ATTEMPT, RESULT)]
    return datetime.fromtimestamp(found[0], UTC), datetime.fromtimestamp(found[1], UTC)


def digest(path: Path) -> str:
    """A file's SHA-256, hex, as of Attempt.files. Blocks. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_unchanged(attempt: Attempt, name: str, path: Path) -> None:
    """Raises Conflict when a file is not what a step was run with. Blocks. Raises OSError.

    name: of the step's parameter.
    """
    sha256 = attempt.files.get(name, "")
    if not path.is_file() or digest(path) != sha256:
        raise Conflict(
            f"{path} is not the file that '{attempt.step}' was run with as '{name}' (SHA-256 {sha256 or 'none'}). "
            f"Restore it, or run '{attempt.step}' and the steps after it again.",
            field=name,
        )


def _digests(parameters: Values) -> dict[str, str]:
    """Of the files that the parameters name as inputs; one that is missing is left to the step to report."""
    found = {}
    for name, field in type(parameters).model_fields.items():
        path = getattr(parameters, name)
        if INPUT in field.metadata and path is not None and path.is_file():
            found[name] = digest(path)
    return found
