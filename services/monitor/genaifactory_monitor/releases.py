"""Adds up interactions by hour, tenant and release: route, split and arm, model, adapter, prompt and index version.

Requests of evaluations are left out: the candidate that they ask is no release, and its answers reach no user. So are
those of testers who chose the arm: which one they choose may depend on what they ask. Releases are compared by queries
on these sums (`release_stats`), and on the interactions for parts of an hour; docs/records.md shows one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_monitor import indexed
from genaifactory_monitor.database import Database, adding_up
from genaifactory_monitor.schema import release_arm_sums as table

HOUR_US = 3_600_000_000
_KEY = tuple(column.name for column in table.primary_key)
SUMS = tuple(column.name for column in table.columns if column.name not in _KEY)
"""Columns that are sums."""


async def add(connection: AsyncConnection, database: Database, stored: Sequence[monitor_pb2.Interaction]) -> None:
    """Adds new interactions of use to the sums, within the transaction that stores them."""
    sums: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0] * len(SUMS))
    for item in filter(indexed.is_use, stored):
        hour_us = item.start_time.seconds // 3600 * HOUR_US
        versions = item.adapter, item.prompt_version, item.index_version, item.split, item.arm
        key = (item.route, hour_us, item.tenant, item.model, *versions, item.currency)
        sums[key] = [total + value for total, value in zip(sums[key], _values(item), strict=True)]
    rows = [dict(zip((*_KEY, *SUMS), (*key, *sums[key]), strict=True)) for key in sorted(sums)]
    if rows:
        await connection.execute(adding_up(table, into_postgresql=database.postgresql), rows)


def _values(item: monitor_pb2.Interaction) -> tuple[float, ...]:
    """The interaction's summands, in the order of `SUMS`."""
    timed = indexed.shows_speed(item) and item.time_to_first_token_us > 0
    first_us, duration_us = (item.time_to_first_token_us, item.duration_us) if timed else (0, 0)
    return (
        1,
        item.outcome == monitor_pb2.OUTCOME_FAILED,
        item.outcome == monitor_pb2.OUTCOME_BLOCKED,
        item.outcome == monitor_pb2.OUTCOME_CANCELLED,
        indexed.guardrail(item) == "mask",
        item.cached,
        item.refused,
        item.usage.prompt_tokens,
        item.usage.completion_tokens,
        item.usage.cached_prompt_tokens,
        item.cost_micros,
        timed,
        first_us,
        duration_us,
        (first_us / 1e6) ** 2,
        (duration_us / 1e6) ** 2,
    )
