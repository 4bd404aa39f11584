"""Fills PostgreSQL with a monitor's rows, by statements of the server, and reads the plans of later statements.

A year of 100 million interactions is 274,000 a day. The rows stand that close in time, and the sums by day and by hour
are those of the whole year: a query on a day, or on the sums, reads as much as it would among 100 million rows.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from genaifactory_common.testing.postgres import PostgresServer
from genaifactory_monitor import former, indexed, schema
from genaifactory_monitor.database import Database
from tests.unit.monitor.conftest import NOON, make_interaction

START_US = (NOON - 43_200) * 10**6
SPACING_US = 365 * 86_400 * 10**6 // 100_000_000
TENANTS, ROUTES, MODELS, KEYS = 20, 3, 2, 5


@dataclass(frozen=True)
class Plan:
    """The plan and time of one statement."""

    milliseconds: float
    text: str

    @property
    def statement(self) -> str:
        """Its text."""
        return self.text.partition("(cost=")[0].rpartition("\n")[0]

    def scans(self, table: str) -> bool:
        """Whether it reads the whole table."""
        return re.search(rf"Seq Scan on {table}\b", self.text) is not None


async def fill(database: Database, *, interactions: int, spacing_us: int, days: int) -> None:
    """Interactions from START_US on, feedback on every fiftieth, and the sums of `days` up to their last."""
    record = make_interaction("x" * 32, output="Câu trả lời có trích dẫn [1]. " * 20).SerializeToString()
    values = {
        "tenant": f"'t' || n % {TENANTS}",
        "request_id": "'req-' || md5(n::text)",
        "start_time_us": f"{START_US} + n::bigint * {spacing_us}",
        "key_id": f"'k' || n % {TENANTS} || '-' || n / 7 % {KEYS}",
        "route": f"'route-' || n / {TENANTS} % {ROUTES}",
        "model": f"'model-' || n / 11 % {MODELS}",
        "prompt_version": "'rag@3'",
        "index_version": "'handbook-2'",
        "outcome": "(ARRAY['answered', 'answered', 'answered', 'answered', 'failed'])[1 + n % 5]",
        "cached": "n % 13 = 0",
        "refused": "n % 17 = 0",
        "currency": "'USD'",
    }
    values |= {name: f"{number} + n % 997" for number, name in enumerate(indexed.FIELDS, 100) if name not in values}
    values |= {"size_bytes": str(len(record)), "guardrail": "''", "record": f"decode('{record.hex()}', 'hex')"}
    values |= {name: str(text) for name, text in former.EMPTY.items()}
    sums = [c.name for c in schema.release_arm_sums.c if c.name not in schema.release_arm_sums.primary_key.c]
    hours = {"route": "'route-' || r", "hour_us": f"{START_US} + h::bigint * 3600000000", "tenant": "'t' || t"}
    hours |= {"model": "'model-' || m", "adapter": "''", "prompt_version": "'rag@3'", "index_version": "'handbook-2'"}
    hours |= {"split": "''", "arm": "''"}
    hours |= {"currency": "'USD'", **dict.fromkeys(sums, "100 + h")}
    last = (interactions * spacing_us) // 3_600_000_000
    sums = [c.name for c in schema.usage.c if c.name not in schema.usage.primary_key.c]
    bill = {"day": f"to_char(to_timestamp({START_US / 1e6}) AT TIME ZONE 'UTC' + d * interval '1 day', 'YYYY-MM-DD')"}
    bill |= {"tenant": "'t' || t", "key_id": "'k' || t || '-' || k", "model": "'model-' || m", "currency": "'USD'"}
    bill |= dict.fromkeys(sums, "1000")
    judged = {"tenant": "tenant", "feedback_id": "'f' || request_id", "request_id": "request_id"}
    judged |= {"time_us": "start_time_us + 60000000", "principal": "'a'", "key_id": "key_id", "rating": "'up'"}
    judged |= {"correction": "''", "comment": "''"}
    every_50th = f"interactions WHERE (start_time_us - {START_US}) / {spacing_us} % 50 = 0"
    first_hour = last + 1 - 24 * days
    statements = [
        *(_insert("interactions", values, f"{numbers} n") for numbers in _slices(0, interactions, 50_000)),
        *(
            _insert("release_arm_sums", hours, f"{part} h, {_crossed('trm')}")
            for part in _slices(first_hour, last + 1, 500)
        ),
        _insert("usage", bill, f"generate_series({last // 24 + 1 - days}, {last // 24}) d, {_crossed('tkm')}"),
        _insert("feedback", judged, every_50th),
    ]
    for statement in statements:
        async with database.writing() as connection:
            await connection.execute(sa.text(statement.replace(":", r"\:")))


def _slices(first: int, end: int, size: int) -> list[str]:
    """Ranges small enough for the statement timeout of half a minute."""
    return [f"generate_series({at}, {min(at + size, end) - 1})" for at in range(first, end, size)]


def _crossed(names: str) -> str:
    sizes = {"t": TENANTS, "r": ROUTES, "m": MODELS, "k": KEYS}
    return ", ".join(f"generate_series(0, {sizes[name] - 1}) {name}" for name in names)


def _insert(table: str, values: dict[str, str], source: str) -> str:
    return f"INSERT INTO {table} ({', '.join(values)}) SELECT {', '.join(values.values())} FROM {source}"


class PlanLog:
    """The plans in the server's log (auto_explain) of statements that ran since the last call of `take`."""

    def __init__(self, server: PostgresServer) -> None:
        self._path: Path = server.folder / "log"
        self._seen = 0

    async def begin(self, database: Database) -> None:
        """Connections to the database that are opened from now on log their plans."""
        settings = {"log_min_duration": "0", "log_analyze": "on", "log_buffers": "on", "log_timing": "off"}
        async with database.writing() as connection:
            name = await connection.scalar(sa.text("SELECT current_database()"))
            change = f"ALTER DATABASE {name} SET"
            await connection.execute(sa.text(f"{change} session_preload_libraries = 'auto_explain'"))
            for key, value in settings.items():
                await connection.execute(sa.text(f"{change} auto_explain.{key} = '{value}'"))

    async def take(self) -> list[Plan]:
        """The plans of statements on tables, in order."""
        text = await asyncio.to_thread(self._path.read_text, errors="replace")
        new, self._seen = text[self._seen :], len(text)
        entries = re.findall(r"duration: ([\d.]+) ms  plan:\n((?:\t.*\n)+)", new)
        return [Plan(float(duration), plan) for duration, plan in entries if " on " in plan]
