"""Builds an index version once for a run, however often the run is killed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common import files
from genaifactory_common.errors import Conflict, FactoryError
from genaifactory_pipelines.gateway import Patience
from genaifactory_pipelines.indexes import findings
from genaifactory_pipelines.progress import Report

_KEY = "build-key"
_LEFT_SECONDS = 120.0
_LOOK_SECONDS = 0.5


class Platform(Protocol):
    """The calls of the gateway that building needs."""

    async def indexes(self, knowledge_base: str) -> list[gateway_pb2.Index]:
        """See Gateway."""
        ...

    def build_index(self, knowledge_base: str, key: str) -> AsyncGenerator[gateway_pb2.BuildIndexResponse, None]:
        """See Gateway."""
        ...

    def patience(self) -> Patience:
        """See Gateway."""
        ...


async def build(
    platform: Platform, knowledge_base: str, folder: Path, report: Report
) -> gateway_pb2.BuildIndexResponse:
    """The last message of a build, whose state is READY or FAILED; of a version that serves by now, ACTIVE or PREVIOUS.

    folder: keeps the build's key, so that an attempt after this one gets the same version. report: gets the number of
    passages. Waits while the platform is away or the build gets no further, within the platform's patience, and for
    another build two minutes at a time. Raises FactoryError.
    """
    patience = platform.patience()
    clock = asyncio.get_running_loop().time
    best = -1  # passages of the best attempt
    until: float | None = None  # when to wait no longer for another build; None while there is none

    def moved(passages: int) -> None:
        nonlocal best, until
        if passages > best:  # an attempt that gets no further than those before it is no success
            best = passages
            patience.succeeded()
        until = None
        report(passages)

    while True:
        key = await asyncio.to_thread(_key, folder)
        try:
            return await _followed(platform.build_index(knowledge_base, key), moved)
        except Conflict as error:
            if error.field == "idempotency_key" and not await _is_building(platform, knowledge_base):
                await asyncio.to_thread((folder / _KEY).unlink, missing_ok=True)  # dropped since, as another build does
                continue
            # The build of an attempt that was killed ends when the retriever notices it.
            until = until or clock() + _LEFT_SECONDS
            if clock() > until:
                raise
            await asyncio.sleep(_LOOK_SECONDS)
        except FactoryError as error:
            await patience.wait(error)
            until = None


async def _is_building(platform: Platform, knowledge_base: str) -> bool:
    indexes = await platform.indexes(knowledge_base)
    return findings.in_state(indexes, gateway_pb2.INDEX_STATE_BUILDING) is not None


async def _followed(
    steps: AsyncGenerator[gateway_pb2.BuildIndexResponse, None], report: Callable[[int], None]
) -> gateway_pb2.BuildIndexResponse:
    last = gateway_pb2.BuildIndexResponse()
    async with aclosing(steps):
        async for last in steps:
            report(last.passages_done)
    return last


def _key(folder: Path) -> str:
    """Written before it is used. Blocks."""
    path = folder / _KEY
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        key = f"reindex-{uuid.uuid4().hex}"
        files.write(path, key.encode("ascii"))
        return key
