"""Whole platforms: `platform` in this process, `platform_process` as a process of its own; `shared_…` once for a file.

Tests with a shared one leave nothing that another test of the file could notice, and run in the loop of the module:
`pytest.mark.asyncio(loop_scope="module")`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform, Process


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    """All six services in this process, with the default factory.yaml and the sample handbook ingested."""
    async with testing.running(tmp_path / "state", options=Options(http_port=0, grpc_port=0)) as running:
        await running.ingest([testing.SAMPLE])
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """As `platform`, for all tests of a file."""
    folder = tmp_path_factory.mktemp("platform")
    async with testing.running(folder / "state", options=Options(http_port=0, grpc_port=0)) as running:
        await running.ingest([testing.SAMPLE])
        yield running


@pytest.fixture
async def platform_process(tmp_path: Path) -> AsyncIterator[Process]:
    """`genaifactory run` as a process of its own, with the sample handbook ingested."""
    async with testing.started(tmp_path / "state", str(testing.SAMPLE)) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """As `platform_process`, for all tests of a file."""
    async with testing.started(tmp_path_factory.mktemp("process") / "state", str(testing.SAMPLE)) as process:
        yield process
