"""Runs of the pipelines' steps against a platform, as the commands start them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console

from genaifactory_local.endpoints import Platform
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context


@asynccontextmanager
async def context(platform: Platform, key: str | None, folder: Path) -> AsyncIterator[Context]:
    """What steps work with; progress goes to standard error. folder: the run's."""
    async with platform.connected(key) as channel:
        yield Context(folder, Gateway(channel), Progress(Console(stderr=True)))
