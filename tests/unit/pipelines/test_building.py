"""How long a re-index waits for the build of another attempt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common.errors import Conflict, FactoryError, Unavailable
from genaifactory_pipelines.gateway import Patience
from genaifactory_pipelines.indexes import building

pytestmark = pytest.mark.allow_blocking  # a file of the tests' own

Call = tuple[gateway_pb2.BuildIndexResponse | FactoryError | float, ...]

READY = gateway_pb2.BuildIndexResponse(
    index_version="v2", passages_done=9, passages_total=9, state=gateway_pb2.INDEX_STATE_READY
)
STEP = gateway_pb2.BuildIndexResponse(
    index_version="v2", passages_done=4, passages_total=9, state=gateway_pb2.INDEX_STATE_BUILDING
)
BUSY = Conflict("Another build of 'documents' is running; wait for its end.")
AWAY = Unavailable("nobody")
LEFT_SECONDS = 0.4


class Slow(Patience):
    """Waits longer than a build is waited for."""

    async def wait(self, error: FactoryError) -> None:
        """See Patience."""
        await asyncio.sleep(1.5 * LEFT_SECONDS)


class Scripted:
    """Each call does what comes next: messages, seconds that they take, and an error at the end."""

    def __init__(self, *calls: Call) -> None:
        self.calls = iter(calls)
        self.keys: set[str] = set()

    async def indexes(self, knowledge_base: str) -> list[gateway_pb2.Index]:
        """See Platform."""
        return [gateway_pb2.Index(version="v2", state=gateway_pb2.INDEX_STATE_BUILDING)]

    async def build_index(self, knowledge_base: str, key: str) -> AsyncGenerator[gateway_pb2.BuildIndexResponse, None]:
        """See Platform."""
        self.keys.add(key)
        for each in next(self.calls):
            if isinstance(each, FactoryError):
                raise each
            if isinstance(each, float):
                await asyncio.sleep(each)
            else:
                yield each

    def patience(self) -> Patience:
        """See Platform."""
        return Slow(10)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_LEFT_SECONDS", LEFT_SECONDS)
    monkeypatch.setattr(building, "_LOOK_SECONDS", 0.01)


@pytest.mark.parametrize(
    "before",
    [
        [(AWAY,)],
        [(BUSY,), (AWAY,)],
        [(STEP, 1.5 * LEFT_SECONDS, AWAY)],
        [(BUSY,), (STEP, 1.5 * LEFT_SECONDS, BUSY)],
    ],
)
async def test_time_that_passed_before_another_build_was_met_is_not_waited_for_it(
    tmp_path: Path, before: list[Call]
) -> None:
    platform = Scripted(*before, (BUSY,), (BUSY,), (STEP, READY))
    reported: list[int] = []

    def report(done: int, note: str = "") -> None:
        reported.append(done)

    assert await building.build(platform, "documents", tmp_path, report) == READY
    assert reported[-1] == 9
    assert len(platform.keys) == 1


async def test_another_build_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    platform = Scripted(*[(BUSY,)] * 1000)
    begun = time.monotonic()
    with pytest.raises(Conflict, match="Another build"):
        await building.build(platform, "documents", tmp_path, lambda done, note="": None)
    assert time.monotonic() - begun >= LEFT_SECONDS


async def test_a_build_that_gets_no_further_than_the_attempts_before_it_ends(tmp_path: Path) -> None:
    class Failing(Scripted):
        attempts = 0

        async def build_index(
            self, knowledge_base: str, key: str
        ) -> AsyncGenerator[gateway_pb2.BuildIndexResponse, None]:
            """See Platform."""
            self.attempts += 1
            yield STEP
            raise AWAY

        def patience(self) -> Patience:
            """See Platform."""
            return Patience(0.5)

    platform = Failing()
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable, match="nobody"):
            await building.build(platform, "documents", tmp_path, lambda done, note="": None)
    assert platform.attempts > 1
