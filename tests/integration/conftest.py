"""Whole platforms: `platform` in this process, `platform_process` as a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform, Process


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    """All six services in this process, with the default factory.yaml and the sample handbook ingested."""
    async with testing.running(tmp_path / "state", options=Options(http_port=0, grpc_port=0)) as running:
        await running.ingest([testing.SAMPLE])
        yield running


@pytest.fixture
async def platform_process(tmp_path: Path) -> AsyncIterator[Process]:
    """`genaifactory run` as a process of its own, with the sample handbook ingested."""
    async with testing.started(tmp_path / "state", str(testing.SAMPLE)) as process:
        yield process
