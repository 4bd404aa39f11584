"""Reads rows of the former version, which had a column for every field, and adds them to `release_arm_sums`.

They stay as they are until the retention deletes them. A monitor of the former version may write more of them: during
an update, or after a rollback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.database import encode_json, uninterrupted
from genaifactory_common.errors import FactoryError
from genaifactory_monitor import indexed, releases
from genaifactory_monitor.database import Database
from genaifactory_monitor.message_dicts import from_dict, timestamp
from genaifactory_monitor.schema import former_columns, interactions

logger = logging.getLogger(__name__)

EMPTY: dict[str, sa.ColumnElement[Any]] = {
    column.name: sa.literal_column("'[]'" if isinstance(column.type, sa.JSON) else "''") for column in former_columns
}
"""Values of our rows in the columns of the former version."""
_BATCH = 200
_INTERVAL_SECONDS = 60.0
_columns = [interactions.c[name] for name in (*indexed.FIELDS, *(column.name for column in former_columns))]


async def messages(
    connection: AsyncConnection, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], monitor_pb2.Interaction]:
    """The messages of rows of the former version, by tenant and request_id."""
    statement = sa.select(*_columns).where(sa.tuple_(interactions.c.tenant, interactions.c.request_id).in_(list(keys)))
    found = await connection.execute(statement)
    return {(row["tenant"], row["request_id"]): _message(row) for row in found.mappings()}


def acted(actions: Sequence[str]) -> sa.ColumnElement[bool]:
    """Condition: a row that is not counted yet, on which a guardrail took one of these actions.

    A text inside the JSON cannot match: its quotes are escaped.
    """
    verdicts = sa.cast(interactions.c.verdicts, sa.Text)
    pairs = (encode_json({"action": name})[1:-1] for name in actions)
    return interactions.c.guardrail.is_(None) & sa.or_(*(verdicts.contains(pair, autoescape=True) for pair in pairs))


async def count_forever(database: Database) -> None:
    """Counts rows of the former version every minute; after an error of the database, again at the next turn."""
    while True:
        try:
            counted = 0
            while count := await count_batch(database):
                counted += count
            if counted:
                logger.info("added %d interactions of the former version to the sums by release", counted)
        except FactoryError as error:
            logger.warning("could not add interactions of the former version to the sums: %s", error.message)
        await asyncio.sleep(_INTERVAL_SECONDS)


@uninterrupted
async def count_batch(database: Database) -> int:
    """Adds up to 200 rows to `release_arm_sums` and marks them; returns their number. Raises Unavailable."""
    uncounted = (
        sa.select(*_columns)
        .where(interactions.c.guardrail.is_(None))
        .order_by(interactions.c.start_time_us.desc())
        .limit(_BATCH)
    )
    async with database.writing() as connection:
        if not await database.alone(connection):
            return 0
        found = [_message(row) for row in (await connection.execute(uncounted)).mappings()]
        if found:
            await releases.add(connection, database, found)
            await connection.execute(_MARK, [_mark(item) for item in found])
    return len(found)


_MARK = (
    sa.update(interactions)
    .where(interactions.c.tenant == sa.bindparam("of_tenant"), interactions.c.request_id == sa.bindparam("of_request"))
    .values(guardrail=sa.bindparam("acted"))
)


def _mark(item: monitor_pb2.Interaction) -> dict[str, str]:
    return {"of_tenant": item.tenant, "of_request": item.request_id, "acted": indexed.guardrail(item)}


def _message(row: Any) -> monitor_pb2.Interaction:
    usage = {name: row[name] for name in ("prompt_tokens", "completion_tokens", "cached_prompt_tokens")}
    message = from_dict(monitor_pb2.Interaction, dict(row) | {"user": row["end_user"], "usage": usage})
    message.start_time.CopyFrom(timestamp(row["start_time_us"]))
    return message
