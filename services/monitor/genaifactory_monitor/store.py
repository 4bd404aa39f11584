"""Stores interactions and feedback, each once, and reads them in the order of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.monitor.v1.monitor_pb2 import Interaction
from genaifactory_common.database import insert, uninterrupted
from genaifactory_common.errors import Conflict
from genaifactory_monitor import former, indexed, releases, usage
from genaifactory_monitor.database import Database
from genaifactory_monitor.records import Feedback, Filter, GuardrailName, Position
from genaifactory_monitor.schema import feedback as feedback_table
from genaifactory_monitor.schema import interactions

MAX_FEEDBACK_PER_INTERACTION = 100
# A statement's parameters are converted on the event loop: 4 ms for this many.
_ROWS_PER_STATEMENT = 100
# Rows fetched at a time: the most that is read beyond a page's bytes.
_FETCH = 10
_TEXT: tuple[Literal["input", "output", "citations"], ...] = ("input", "output", "citations")
_PAGED = [interactions.c[name] for name in ("tenant", "request_id", "start_time_us", "size_bytes", "record")]
# The longest answer: specs.Route.timeout_seconds is at most an hour. Bounds the rows that a filter by end reads.
_LONGEST_ANSWER_US = 3_700_000_000


@dataclass(frozen=True)
class Page:
    """Interactions in order, and the start of the next page."""

    interactions: Sequence[Interaction]
    next: Position | None
    """None: this is the last page."""


@uninterrupted
async def record(database: Database, records: Sequence[Interaction]) -> list[Interaction]:
    """Stores new records, adds them to the sums, and returns them once they are on disk.

    The key is tenant and request_id; of two records the first stays. Raises Unavailable: nothing was stored.
    """
    # Of equal ids in one batch the first is stored.
    unique = {(item.tenant, item.request_id): item for item in reversed(records)}
    # One order of locks for all writers, so that replicas on PostgreSQL cannot deadlock.
    rows = [_row(unique[key]) for key in sorted(unique)]
    async with database.writing() as connection:
        stored: list[Interaction] = []
        for start in range(0, len(rows), _ROWS_PER_STATEMENT):
            inserted = await connection.execute(_insert(database.postgresql), rows[start : start + _ROWS_PER_STATEMENT])
            stored.extend(unique[tenant, request_id] for tenant, request_id in inserted)
        if stored:
            await usage.add(connection, database, stored)
            await releases.add(connection, database, stored)
    return stored


@uninterrupted
async def add_feedback(database: Database, given: Feedback) -> tuple[bool, bool]:
    """Stores feedback; returns whether it is new, and whether its interaction is stored.

    Raises Conflict when the feedback_id belongs to other feedback, or the interaction has too much of it; Unavailable.
    """
    table = feedback_table
    of_request = (table.c.tenant == given.tenant) & (table.c.request_id == given.request_id)
    statement = insert(table, into_postgresql=database.postgresql).values(vars(given)).on_conflict_do_nothing()
    async with database.writing() as connection:
        new = (await connection.execute(statement.returning(table.c.feedback_id))).first() is not None
        if new:
            count = await connection.scalar(sa.select(sa.func.count()).select_from(table).where(of_request))
            if count is not None and count > MAX_FEEDBACK_PER_INTERACTION:
                raise Conflict(
                    f"The interaction has {MAX_FEEDBACK_PER_INTERACTION} pieces of feedback; no more are accepted.",
                    field="request_id",
                )
        else:
            await _require_same(connection, given)
        known = await connection.scalar(
            sa.select(
                sa.exists().where(interactions.c.tenant == given.tenant, interactions.c.request_id == given.request_id)
            )
        )
    return new, bool(known)


@uninterrupted
async def page(
    database: Database,
    filter_: Filter,
    *,
    after: Position | None = None,
    limit: int,
    max_bytes: int,
    newest_first: bool,
    without_text: bool = False,
) -> Page:
    """Up to `limit` interactions after `after`, of at most `max_bytes` in sum, but at least one.

    without_text: input, output and citations are left out. Raises Unavailable.
    """
    order = sa.tuple_(interactions.c.start_time_us, interactions.c.request_id)
    statement = sa.select(*_PAGED).where(*_conditions(filter_)).limit(limit + 1)
    if newest_first:
        statement = statement.order_by(interactions.c.start_time_us.desc(), interactions.c.request_id.desc())
    else:
        statement = statement.order_by(interactions.c.start_time_us, interactions.c.request_id)
    if after is not None:
        mark = sa.tuple_(*after)
        statement = statement.where(order < mark if newest_first else order > mark)
    found: list[sa.Row[Any]] = []
    size = 0
    next_: Position | None = None
    async with database.reading() as connection:
        rows = await connection.stream(statement, execution_options={"yield_per": min(_FETCH, limit + 1)})
        try:
            async for row in rows:
                size += row.size_bytes
                if found and (len(found) == limit or size > max_bytes):
                    next_ = Position(found[-1].start_time_us, found[-1].request_id)
                    break
                found.append(row)
        finally:
            await rows.close()
        former_keys = [(row.tenant, row.request_id) for row in found if row.record is None]
        of_former = await former.messages(connection, former_keys) if former_keys else {}
    messages = [
        Interaction.FromString(row.record) if row.record is not None else of_former[row.tenant, row.request_id]
        for row in found
    ]
    if without_text:
        for message in messages:
            for name in _TEXT:
                message.ClearField(name)
    return Page(messages, next_)


@uninterrupted
async def feedback_on(database: Database, tenant: str, request_ids: Iterable[str]) -> dict[str, list[Feedback]]:
    """The tenant's feedback on these interactions, in the order of arrival. Raises Unavailable."""
    table = feedback_table
    statement = (
        sa.select(table)
        .where(table.c.tenant == tenant, table.c.request_id.in_(list(request_ids)))
        .order_by(table.c.time_us, table.c.feedback_id)
    )
    found: dict[str, list[Feedback]] = defaultdict(list)
    async with database.reading() as connection:
        for row in (await connection.execute(statement)).mappings():
            found[row["request_id"]].append(Feedback(**row))
    return found


@uninterrupted
async def ping(database: Database) -> None:
    """Raises Unavailable when the database does not answer."""
    async with database.reading() as connection:
        await connection.execute(sa.select(1))


@cache
def _insert(into_postgresql: bool) -> Any:
    # Building the statement costs more than running it with one record.
    statement = insert(interactions, into_postgresql=into_postgresql).values(former.EMPTY).on_conflict_do_nothing()
    return statement.returning(interactions.c.tenant, interactions.c.request_id)


def _row(item: Interaction) -> dict[str, Any]:
    record = item.SerializeToString()
    row = indexed.values(item)
    row.update(record=record, size_bytes=len(record), guardrail=indexed.guardrail(item))
    row.update(evaluation=item.evaluation or None, adapter=item.adapter or None)
    row.update(split=item.split or None, arm=item.arm or None, arm_chosen=item.arm_chosen or None)
    return row


def _conditions(filter_: Filter) -> list[sa.ColumnElement[bool]]:
    columns = interactions.c
    conditions: list[Any] = [columns.tenant == filter_.tenant]
    if filter_.start_time_us is not None:
        conditions.append(columns.start_time_us >= filter_.start_time_us)
    if filter_.end_time_us is not None:
        conditions.append(columns.start_time_us < filter_.end_time_us)
    if filter_.route:
        conditions.append(columns.route == filter_.route)
    if filter_.model:
        conditions.append(columns.model == filter_.model)
    if filter_.request_ids:
        conditions.append(columns.request_id.in_(filter_.request_ids))
    if filter_.outcome is not None:
        conditions.append(columns.outcome == filter_.outcome)
    if filter_.guardrail_action is not None:
        conditions.append(_guarded(filter_.guardrail_action))
    if filter_.key_id:
        conditions.append(columns.key_id == filter_.key_id)
    if filter_.ended_since_us is not None:
        conditions.append(columns.start_time_us >= filter_.ended_since_us - _LONGEST_ANSWER_US)
        conditions.append(columns.start_time_us + columns.duration_us >= filter_.ended_since_us)
    return conditions


def _guarded(action: GuardrailName) -> sa.ColumnElement[bool]:
    """Condition: a guardrail took this action or a stronger one."""
    actions = ("block",) if action == "block" else ("mask", "block")
    columns = interactions.c
    return sa.or_(columns.outcome == "blocked", columns.guardrail.in_(actions), former.acted(actions))


async def _require_same(connection: AsyncConnection, given: Feedback) -> None:
    table = feedback_table
    statement = sa.select(table).where(table.c.tenant == given.tenant, table.c.feedback_id == given.feedback_id)
    known = Feedback(**(await connection.execute(statement)).mappings().one())
    if _content(known) != _content(given):
        raise Conflict("feedback_id belongs to other feedback; new feedback needs a new id.", field="feedback_id")


def _content(given: Feedback) -> tuple[Any, ...]:
    return given.request_id, given.rating, given.correction, given.comment, given.ground_truth
