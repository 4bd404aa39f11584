"""Registers a run in a process that may kill itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from genaifactory_pipelines.steps import record, register
from genaifactory_pipelines.tracking import client
from genaifactory_pipelines.tracking.client import Tracking
from tests.unit.pipelines import tracked

T = TypeVar("T")
Point = tuple[str, int, bool]
"""A call of MLflow: its name, which one of that name it is, and whether it is not made any more."""
RECORD = record.Parameters(name="november", traces=4)
REGISTER = register.Parameters(model="support", record=RECORD)


class Counted(Tracking):
    """Its process kills itself at a call of MLflow, before it or after it; the names of what was called."""

    called: ClassVar[list[str]] = []
    kill_at: ClassVar[Point | None] = None

    async def call(self, work: Callable[[Any], T]) -> T:
        """See Tracking."""
        name = getattr(getattr(work, "func", work), "__name__", "")
        Counted.called.append(name)
        now = (name, Counted.called.count(name))
        if (*now, True) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        found = await super().call(work)
        if (*now, False) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def register_in(run: Path, uri: str, kill_at: Point | None = None) -> None:
    """In a process of its own."""
    os.environ[client.URI] = uri
    Counted.called, Counted.kill_at = [], kill_at
    client.Tracking = Counted  # type: ignore[misc]
    asyncio.run(register.register.run(REGISTER, tracked.context(run)))
