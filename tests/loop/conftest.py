"""One platform for all tests here: it takes half a minute to start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from tests.loop import stage
from tests.loop.stage import Stage


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The whole platform, whose route `chat` the Llama answers, with a month on record."""
    first = stage.last_month(datetime.now(UTC).date())
    async with stage.running(tmp_path_factory.mktemp("loop"), first) as running:
        yield running
