"""What the monitor reads from the environment: where it keeps its records, how long, and how big they may be."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genaifactory_common import settings as common
from genaifactory_common.database import DatabaseUrl, Store


class Retention(common.Settings):
    """How long records stay. Usage by day stays: it is the bill, and names no end user and holds no text."""

    days: int = Field(default=365, ge=1, description="Interactions and their feedback are deleted after this.")
    sweep_interval_seconds: float = Field(default=3600.0, gt=0, description="Between two looks for old records.")
    batch: int = Field(default=500, ge=1, le=10_000, description="Interactions deleted in one transaction.")


class Settings(common.Common):
    """The monitor's settings."""

    data_dir: Path = Field(default=Path(".genaifactory/monitor"), description="Holds monitor.sqlite.")
    database_url: DatabaseUrl | None = Field(
        default=None,
        description="postgresql://USER:PASSWORD@HOST:PORT/DATABASE[?ssl=verify-full]; None: SQLite.",
    )
    space: common.Space = common.Space()
    store: Store = Store()
    retention: Retention = Retention()
    max_record_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, le=12 * 1024 * 1024, description="Longest interaction, as sent."
    )
    max_metric_series: int = Field(
        default=1000, ge=1, description="Tenants with models that get metrics of their own; later ones share 'other'."
    )
