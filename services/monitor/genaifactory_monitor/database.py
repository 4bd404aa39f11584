"""The monitor's database: its layout, and how its replicas share the upkeep."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory_common import database
from genaifactory_monitor.settings import Settings

FILE_NAME = "monitor.sqlite"
# Held by the one replica that deletes or counts old rows.
_UPKEEP_LOCK = 0x73776570

_LAYOUT = database.Layout(
    service="monitor",
    name="The monitor's database",
    file_name=FILE_NAME,
    loss="the record of requests so far: usage, costs, feedback, exports",
    migrations=Path(__file__).parent / "migrations",
    version_table="alembic_version",
    migration_lock=0x67656E61,
)


class Database(database.Database):
    """Interactions, feedback, the sums of both usage and releases, and reports of drift checks."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(_LAYOUT, data_dir=settings.data_dir, url=settings.database_url, store=settings.store)

    async def alone(self, connection: AsyncConnection) -> bool:
        """Whether this transaction got the lock for work on old rows; replicas would block each other."""
        if not self.postgresql:
            return True  # there is one writer
        return bool(await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_UPKEEP_LOCK))))


@cache
def adding_up(table: sa.Table, *, into_postgresql: bool) -> Any:
    """An insert into a table of sums: a row is added to the stored row of the same key, column by column."""
    statement = database.insert(table, into_postgresql=into_postgresql)
    sums = [column.name for column in table.columns if not column.primary_key]
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: table.c[name] + statement.excluded[name] for name in sums},
    )
