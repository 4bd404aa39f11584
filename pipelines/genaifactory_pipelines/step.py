"""A step of the loop: a typed function that runs the same in a test, in `make pipeline` and in a pod.

Steps of one run share a folder, and each has its own folder in it:

    RUN/collect/result.json  interactions.jsonl  ...
    RUN/curate/result.json   dataset/  report.html

A step reads only the folders of the steps that it needs. `result.json` is written last, after `environment.json`, which
says what the step was run by; `.attempt` is first, with everything that the result depends on, contents of files
included: a step that is run again with the same returns its result, and one that was killed goes on from what its
folder holds. With anything else the folder is emptied first.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from genaifactory_common import files
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.space import is_full, out_of_space
from genaifactory_pipelines import environment
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.values import INPUT, Values

RESULT = "result.json"
ATTEMPT = ".attempt"


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

    async def run(self, parameters: Parameters, context: Context) -> Outputs:
        """The step's outputs, from an earlier run when nothing that they depend on has changed. Raises FactoryError."""
        folder = context.run / self.name
        known = await asyncio.to_thread(self._prepare, parameters, context.run)
        if known is not None:
            context.progress.line(f"{self.name}: nothing has changed since it was run")
            return known
        try:
            outputs = await self.work(parameters, context, folder)
            await asyncio.to_thread(_write, folder, outputs)
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

    def _prepare(self, parameters: Parameters, run: Path) -> Outputs | None:
        """The result, if the folder has it of the same attempt; else a folder for the attempt. Blocks."""
        attempt = Attempt(
            step=self.name,
            version=version("genaifactory-pipelines"),
            parameters=parameters.model_dump(mode="json"),
            files=_digests(parameters),
            needs={each.name: each.of(run).model_dump(mode="json") for each in self.needs},
        )
        text = json.dumps(attempt.model_dump(), sort_keys=True, indent=2).encode() + b"\n"
        folder = run / self.name
        try:
            same = (folder / ATTEMPT).read_bytes() == text
        except OSError:
            same = False
        if not same:  # what an attempt with other parameters has left is of no use
            if folder.exists() and not (folder / ATTEMPT).exists() and any(folder.iterdir()):
                raise InvalidArgument(f"{folder} holds other files. Give a folder of its own for the run.", field="run")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
            files.write(folder / ATTEMPT, text)
        if not (folder / RESULT).exists():
            return None
        return self.of(run)


def _write(folder: Path, outputs: Values) -> None:
    files.write(folder / environment.FILE, environment.here().model_dump_json(indent=2).encode() + b"\n")
    files.write(folder / RESULT, outputs.model_dump_json(indent=2).encode() + b"\n")


def _digests(parameters: Values) -> dict[str, str]:
    """Of the files that the parameters name as inputs; one that is missing is left to the step to report."""
    found = {}
    for name, field in type(parameters).model_fields.items():
        path = getattr(parameters, name)
        if INPUT in field.metadata and path is not None and path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
