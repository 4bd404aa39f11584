"""MLflow on this machine: where it keeps runs, and the environment that has it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import typer

from genaifactory_common.errors import InvalidArgument
from genaifactory_local import interpreters, state
from genaifactory_pipelines.tracking import client

_LIBRARY = interpreters.OF_STEPS["record"]


def environment(folder: Path) -> dict[str, str]:
    """The variables by which steps find MLflow: the server that the environment names, else the store in the state
    folder. Blocks."""
    named = os.environ.get(client.URI)
    return {client.URI: named or client.embedded(state.State(folder.absolute()).tracking)}


def exists(folder: Path) -> bool:
    """Whether anything can be recorded there yet. Blocks."""
    return client.is_named() or (state.State(folder.absolute()).tracking / client.DATABASE).exists()


def interpreter() -> Path:
    """The one that has MLflow. Blocks. Raises InvalidArgument."""
    found = interpreters.having(_LIBRARY.module, _LIBRARY.beside)
    if found is None:
        raise InvalidArgument(_LIBRARY.missing, field="mlflow")
    return found


def server(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that serves MLflow's UI on this machine alone, and its environment. Blocks.

    Raises InvalidArgument when the environment names a server already, or when MLflow's server is not installed.
    """
    own = environment(folder)
    if client.is_named():
        raise InvalidArgument(f"{client.URI} is set: open that address, or unset it.", field=client.URI)
    python = interpreters.having("flask", _LIBRARY.beside)  # a part of MLflow that only its server needs
    if python is None:
        raise InvalidArgument(_LIBRARY.missing, field="mlflow")
    store = ("--backend-store-uri", own[client.URI], "--default-artifact-root", client.artifacts(own[client.URI]))
    command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]
    return command, {**os.environ, **client.SETTINGS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def call(folder: Path, *arguments: str) -> Any:
    """What a command of genaifactory_pipelines.tracked prints. Blocks. Raises typer.Exit: it has printed an error."""
    done = subprocess.run(  # noqa: S603
        (interpreter(), "-m", "genaifactory_pipelines.tracked", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **environment(folder)},
    )
    if done.returncode != 0:
        raise typer.Exit(done.returncode)
    return json.loads(done.stdout)
