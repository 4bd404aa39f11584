"""What is collected of the record where an export breaks off."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import FactoryError, Unavailable
from genaifactory_pipelines.gateway import Gateway, Patience
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.steps import collect
from tests.unit.pipelines import tracked


class Breaking(tracked.Platform):
    """Exports from the wanted time on, and breaks off after so many lines."""

    LINES = 3
    MOST_EXPORTS = 30

    def __init__(self, routes: Sequence[str]) -> None:
        super().__init__(routes)
        self.exports = 0

    async def export(
        self, wanted: monitor_pb2.InteractionFilter
    ) -> AsyncGenerator[gateway_pb2.ExportInteractionsResponse, None]:
        """See Gateway."""
        self.exports += 1
        assert self.exports <= self.MOST_EXPORTS, "it makes no progress"
        sent = 0
        async for piece in super().export(wanted):
            if datetime.fromisoformat(json.loads(piece.jsonl)["start_time"]) < wanted.start_time.ToDatetime(UTC):
                continue
            if sent == self.LINES:
                raise Unavailable("away", retry_after_seconds=0)
            sent += 1
            yield piece

    def patience(self) -> Patience:
        """See Gateway."""
        return Eager(60)


class Eager(Patience):
    """Waits for nothing."""

    async def wait(self, error: FactoryError) -> None:
        """See Patience."""
        if not self.passes(error):
            raise error


@pytest.mark.allow_blocking  # the test's own
async def test_an_export_that_breaks_off_among_lines_of_other_routes_goes_on_from_there(tmp_path: Path) -> None:
    breaking = Breaking(("rag",) * 8 + ("quoted",) + ("rag",) * 8 + ("quoted", "rag"))
    context = Context(tmp_path, cast(Gateway, breaking), Progress(Console(file=StringIO())))
    outputs = await collect.collect.run(tracked.window().model_copy(update={"routes": ("quoted",)}), context)
    assert outputs.interactions == 2
    lines = (tmp_path / "collect" / collect.FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["route"] for line in lines] == ["quoted", "quoted"]
    assert len({json.loads(line)["request_id"] for line in lines}) == 2
