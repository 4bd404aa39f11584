"""Commands in this process, against a platform that is another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from typer.testing import CliRunner

from genaifactory_common.errors import FactoryError
from genaifactory_local.cli import app


async def genaifactory(state: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs a command against the platform on a state folder, in a thread here; exit code, stdout and its error."""
    environment = {"GENAIFACTORY_STATE": str(state), "COLUMNS": "200"}
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
    if isinstance(result.exception, FactoryError):
        return 1, result.stdout, f"{result.exception.message}\n"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
