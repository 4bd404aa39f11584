"""The monitor's database: what sets it apart from other services' ones."""

from __future__ import annotations

from pathlib import Path

from genaifactory_common import database
from genaifactory_monitor.settings import Settings

FILE_NAME = "monitor.sqlite"

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
    """Interactions, feedback and usage by day."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(_LAYOUT, data_dir=settings.data_dir, url=settings.database_url, store=settings.store)
