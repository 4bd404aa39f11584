"""The monitor's settings, from the environment: where records are stored, how long, and how big they may be."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genaifactory_common import settings as common
from genaifactory_common.database import DatabaseUrl, Store


class Retention(common.Settings):
    """How long records are kept. Usage by day is never deleted: it is the bill, without end users and texts."""

    days: int = Field(default=365, ge=1, description="Interactions and their feedback are deleted after this.")
    sweep_interval_seconds: float = Field(default=3600.0, gt=0, description="Between two deletions of old records.")
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
        default=1000, ge=1, description="Pairs of tenant and model with series of their own; others share 'other'."
    )
