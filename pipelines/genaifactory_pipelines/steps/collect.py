"""collect: the recorded interactions of a window, with their feedback, from the gateway's export."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Collection
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AwareDatetime, Field, model_validator

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import FactoryError, InvalidArgument, TooLarge
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.values import Values

FILE = "interactions.jsonl"
_UNFINISHED = f".{FILE}.unfinished"


class Parameters(Values):
    """Which interactions."""

    start: AwareDatetime
    """First moment, inclusive."""
    end: AwareDatetime
    """Last moment, exclusive."""
    route: str = ""
    """Only this route; empty: every route."""
    routes: tuple[str, ...] = ()
    """Only these of them; empty: all."""
    model: str = ""
    """Only this model; empty: every model."""
    most: int = Field(default=500_000, ge=1)
    """More are refused, since a part of them would be a biased sample."""

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        if self.start >= self.end:
            raise ValueError("'start' must be before 'end'")
        return self


class Outputs(Values):
    """What was collected."""

    interactions: int
    digest: str
    """SHA-256 of the file."""


async def _collect(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Goes on after the last whole line that an attempt before has written. Raises FactoryError."""
    patience = context.gateway.patience()
    with contextlib.closing(await asyncio.to_thread(_Lines, folder / _UNFINISHED, parameters.routes)) as lines:
        with context.progress.counting("collect: interactions") as report:
            while True:
                lines.begin()
                try:
                    async with aclosing(context.gateway.export(_filter(parameters, lines.last_time))) as pieces:
                        async for piece in pieces:
                            patience.succeeded()
                            await asyncio.to_thread(lines.add, piece.jsonl)
                            _require_not_too_many(lines.count, parameters.most)
                            report(lines.count)
                    break
                except FactoryError as error:
                    await patience.wait(error)
        if lines.count == 0:
            raise InvalidArgument(
                f"There is no interaction from {parameters.start:%Y-%m-%d %H:%M} to {parameters.end:%Y-%m-%d %H:%M} "
                "(times as given) with this route and model. Take an earlier start, or another route or model.",
                field="start",
            )
        await asyncio.to_thread(lines.finish, folder / FILE)
        return Outputs(interactions=lines.count, digest=f"sha256:{lines.digest.hexdigest()}")


class _Lines:
    """The file of lines so far. Every method blocks."""

    def __init__(self, path: Path, routes: Collection[str]) -> None:
        """routes: whose lines are kept; none: every one's."""
        self.count = 0
        self.digest = hashlib.sha256()
        self.last_time = ""
        """`start_time` of the last line, which may have been left out."""
        self._ids: set[str] = set()  # of the lines with the last time, which an export from that time on repeats
        self._begun = b""  # a line whose end is still to come
        self._path = path
        self._routes = routes
        self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")  # noqa: SIM115
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._count(line, *_position(json.loads(line)))
            whole += len(line)
        self._file.seek(whole)
        self._file.truncate()

    def begin(self) -> None:
        """Forgets a line that an export has begun and not ended."""
        self._begun = b""

    def add(self, piece: bytes) -> None:
        """Appends the whole lines of a piece, but those that are there already, those of other routes, and those of
        evaluations and of testers who chose an arm, which are no use of the platform."""
        *lines, self._begun = (self._begun + piece).split(b"\n")
        for line in lines:
            values = json.loads(line)
            time, request_id = _position(values)
            if time == self.last_time and request_id in self._ids:
                continue
            self._reach(time)  # also where the line is left out, so that an export that broke off goes on behind it
            other = bool(self._routes) and values["route"] not in self._routes
            if other or values.get("evaluation") or values.get("arm_chosen"):
                continue
            self._file.write(line + b"\n")
            self._count(line + b"\n", time, request_id)

    def finish(self, path: Path) -> None:
        """Makes the lines outlive a loss of power, under their final name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._path, path)

    def close(self) -> None:
        """Keeps what is written, for the next attempt."""
        self._file.close()

    def _reach(self, time: str) -> None:
        if time != self.last_time:
            self.last_time = time
            self._ids.clear()

    def _count(self, line: bytes, time: str, request_id: str) -> None:
        self._reach(time)
        self._ids.add(request_id)
        self.count += 1
        self.digest.update(line)


def _position(values: dict[str, Any]) -> tuple[str, str]:
    return str(values["start_time"]), str(values["request_id"])


def _filter(parameters: Parameters, from_time: str) -> monitor_pb2.InteractionFilter:
    start, end = Timestamp(), Timestamp()
    start.FromDatetime(datetime.fromisoformat(from_time) if from_time else parameters.start)
    end.FromDatetime(parameters.end)
    return monitor_pb2.InteractionFilter(start_time=start, end_time=end, route=parameters.route, model=parameters.model)


def _require_not_too_many(count: int, most: int) -> None:
    if count > most:
        raise TooLarge(
            f"There are more than {most:,} interactions in this window. Take a shorter one, or a single route, "
            "or allow more.",
            field="most",
        )


collect = Step("collect", Parameters, Outputs, _collect)
