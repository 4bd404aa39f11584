"""Runs of the pipelines' steps against a platform, as the commands start them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from rich.console import Console

from genaifactory_common.errors import Unavailable
from genaifactory_local.endpoints import Platform
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.values import Values

_END_SECONDS = 10.0
"""For a step in another process to end when it is asked to."""


@asynccontextmanager
async def context(platform: Platform, key: str | None, folder: Path) -> AsyncIterator[Context]:
    """What steps work with; progress goes to standard error. folder: the run's."""
    async with platform.connected(key) as channel:
        yield Context(folder, Gateway(channel), Progress(Console(stderr=True)))


async def execute(
    step: Step[Any, Any],
    parameters: Values,
    context: Context,
    interpreters: Mapping[str, Path],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Runs a step: here, or as a process where it has an interpreter of its own; there it does without the gateway.

    A step that is done needs no libraries, and no process. environment: variables of a process, beside this one's.

    Raises FactoryError; typer.Exit when the process has printed why it failed.
    """
    interpreter = interpreters.get(step.name)
    if interpreter is None or await asyncio.to_thread(step.done, parameters, context.run):
        await step.run(parameters, context)
    else:
        await elsewhere(interpreter, step, parameters, context.run, environment)


async def elsewhere(
    interpreter: Path,
    step: Step[Any, Any],
    parameters: Values,
    run: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Runs a step as a process that ends with this one; its progress goes to standard error. Errors as of `execute`."""
    command = ("-m", "genaifactory_pipelines", step.name, "--run", str(run), "--parent", str(os.getpid()))
    process = await asyncio.create_subprocess_exec(
        interpreter,
        *command,
        *("--parameters", "-"),  # an argument has a bound, and is shown to every user of the machine
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,  # the outputs are in the step's folder
    )
    try:
        await process.communicate(parameters.model_dump_json().encode())
    finally:
        await _ended(process)
    status = process.returncode
    assert status is not None, "it has ended"
    if status < 0:
        raise Unavailable(
            f"The step '{step.name}' was ended by {signal.Signals(-status).name}, as the system does when memory is "
            "short. Run the command again: it goes on."
        )
    if status != 0:
        raise typer.Exit(status)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Ends a process that still runs: the command was interrupted."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
