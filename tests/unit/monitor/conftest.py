"""Fixtures and helpers: tests of the monitor's store run on SQLite and on PostgreSQL."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, testing
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing.postgres import PostgresServer, postgres_server
from genaifactory_monitor.app import create_app
from genaifactory_monitor.database import Database
from genaifactory_monitor.settings import Settings

NOON = 1_780_000_000 // 86_400 * 86_400 + 43_200
"""A noon in 2026, in seconds since 1970."""

_PAGE = (Path(__file__).parents[3] / "docs" / "records.md").read_text(encoding="utf-8")
PUBLISHED = dict(re.findall(r"```sql\n-- (\w+)\n(.*?)```", _PAGE, flags=re.DOTALL))
"""The statements of docs/records.md."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server; skips where none is installed."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket in it."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        yield Path(folder)


@pytest.fixture
def postgres_settings(tmp_path: Path, postgres: PostgresServer) -> Settings:
    """Settings of a monitor with an empty PostgreSQL database."""
    return settings_for(tmp_path, postgres.new_database())


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of a monitor with an empty database, once of each kind."""
    chosen: Settings = request.getfixturevalue(f"{request.param}_settings")
    return chosen


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    """Settings of a monitor with an empty SQLite database."""
    return settings_for(tmp_path, None)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """An open database. It is closed also when the test fails: left open, it would fail a later test as well."""
    database = Database(settings)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """An open database."""
    async with opened(settings) as database:
        yield database


@dataclass(frozen=True)
class Monitor:
    """A running monitor, and calls to it."""

    settings: Settings
    app: ServiceApp
    stub: monitor_pb2_grpc.MonitorServiceAsyncStub

    async def record(self, *messages: monitor_pb2.Interaction) -> tuple[int, int]:
        """Stores; returns how many were new, and how many were stored already."""
        request = monitor_pb2.RecordInteractionsRequest(interactions=messages)
        response = await channels.unary(self.stub.RecordInteractions, request, timeout_seconds=20)
        return response.stored, response.known

    async def query(self, **request: Any) -> monitor_pb2.QueryInteractionsResponse:
        return await channels.unary(
            self.stub.QueryInteractions, monitor_pb2.QueryInteractionsRequest(**request), timeout_seconds=20
        )

    async def feedback(self, **request: Any) -> bool:
        """Sends feedback; returns whether the interaction is known."""
        response = await channels.unary(
            self.stub.RecordFeedback, monitor_pb2.RecordFeedbackRequest(**request), timeout_seconds=20
        )
        return bool(response.interaction_known)

    async def usage(self, **request: Any) -> list[monitor_pb2.UsageRow]:
        response = await channels.unary(self.stub.GetUsage, monitor_pb2.GetUsageRequest(**request), timeout_seconds=20)
        return list(response.rows)

    async def export(self, **filter_: Any) -> list[bytes]:
        """The lines of an export."""
        request = monitor_pb2.ExportInteractionsRequest(filter=monitor_pb2.InteractionFilter(**filter_))
        pieces = [piece async for piece in channels.stream(self.stub.ExportInteractions, request, timeout_seconds=20)]
        lines = b"".join(piece.jsonl for piece in pieces).splitlines(keepends=True)
        assert sum(piece.count for piece in pieces) == len(lines)
        return lines


@pytest.fixture
async def monitor(settings: Settings) -> AsyncIterator[Monitor]:
    """A running monitor, once over each database."""
    async with serving(settings) as running:
        yield running


@pytest.fixture
async def sqlite_monitor(sqlite_settings: Settings) -> AsyncIterator[Monitor]:
    """A running monitor over SQLite."""
    async with serving(sqlite_settings) as running:
        yield running


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Monitor]:
    app = create_app(settings, Telemetry("monitor"))
    async with testing.served(app) as channel:
        yield Monitor(settings, app, monitor_pb2_grpc.MonitorServiceStub(channel))


def settings_for(folder: Path, url: str | None, **others: Any) -> Settings:
    return Settings(
        data_dir=folder / "monitor", database_url=url, context_public_key=testing.SIGNER.public_key, **others
    )


def make_interaction(request_id: str, *, at: float = 0.0, **fields: Any) -> monitor_pb2.Interaction:
    defaults: dict[str, Any] = {
        "tenant": "acme",
        "principal": "alice",
        "key_id": "alice",
        "start_time": moment(at),
        "task": "rag",
        "route": "docs",
        "model": "extractive",
        "input": [types_pb2.Message(role=types_pb2.ROLE_USER, content="Thủ đô của Việt Nam là gì?")],
        "output": "Hà Nội [1].",
        "usage": types_pb2.TokenUsage(prompt_tokens=100, completion_tokens=10),
        "cost_micros": 25,
        "currency": "USD",
        "time_to_first_token_us": 1500,
        "duration_us": 4500,
        "outcome": monitor_pb2.OUTCOME_ANSWERED,
    }
    return monitor_pb2.Interaction(request_id=request_id, **(defaults | fields))


def moment(seconds_after_noon: float) -> timestamp_pb2.Timestamp:
    micros = round((NOON + seconds_after_noon) * 1_000_000)
    return timestamp_pb2.Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def with_every_field(chance: random.Random) -> dict[str, Any]:
    """Values for every field of an interaction that `make_interaction` does not set, from its descriptor."""
    message = monitor_pb2.Interaction()
    _fill(message, chance)
    message.trace_id = f"{chance.getrandbits(128):032x}"
    message.currency = "VND"
    kept = ("request_id", "tenant", "start_time", "traceparent")
    return {field.name: value for field, value in message.ListFields() if field.name not in kept}


def _fill(message: Message, chance: random.Random) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_BYTES or field.message_type is timestamp_pb2.Timestamp.DESCRIPTOR:
            continue
        if field.message_type is not None:
            values = getattr(message, field.name)
            for item in [values.add() for _ in range(chance.randint(1, 2))] if field.is_repeated else [values]:
                _fill(item, chance)
            if not field.is_repeated:
                values.SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend([_any(field, chance) for _ in range(chance.randint(1, 2))])
        else:
            setattr(message, field.name, _any(field, chance))


def _any(field: Any, chance: random.Random) -> Any:
    if field.enum_type is not None:
        return chance.choice([value.number for value in field.enum_type.values if value.number])
    return {
        FieldDescriptor.CPPTYPE_STRING: chance.choice(("an", "Hà Nội", '"block"', "\u0001")),
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_FLOAT: 0.25,
    }.get(field.cpp_type, chance.randint(1, 10**6))
