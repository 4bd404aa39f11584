"""The monitor's settings, from the environment: where records are stored, how long, and how big they may be."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genaifactory_common import batch_lines
from genaifactory_common import settings as common
from genaifactory_common.database import DatabaseUrl, Store


class Retention(common.Settings):
    """How long records are kept. Usage by day is never deleted: it is the bill, without end users and texts."""

    days: int = Field(default=365, ge=1, description="Interactions and their feedback are deleted after this.")
    sweep_interval_seconds: float = Field(default=3600.0, gt=0, description="Between two deletions of old records.")
    batch: int = Field(default=500, ge=1, le=10_000, description="Interactions deleted in one transaction.")


class Batches(common.Settings):
    """Bounds of files and batches, and how long they are kept."""

    max_file_bytes: int = Field(default=200 << 20, ge=1, description="Of one file.")
    max_tenant_bytes: int = Field(
        default=2 << 30, ge=1, description="Of a tenant's files, results included; a file beyond it is refused."
    )
    max_tenant_files: int = Field(default=1000, ge=1, description="Files of a tenant, results included.")
    max_tenant_batches: int = Field(default=20, ge=1, description="Batches of a tenant that have not ended.")
    max_lines: int = Field(
        default=batch_lines.MAX_LINES, ge=1, le=batch_lines.MAX_LINES, description="Lines of one batch's file."
    )
    window_seconds: float = Field(
        default=86_400.0, gt=0, description="A batch's lines that have no answer after this are given up."
    )
    days: int = Field(default=30, ge=1, description="Files and batches are deleted after this, or earlier if asked.")
    upkeep_seconds: float = Field(
        default=5.0, gt=0, description="Between two looks for batches that end and files to delete."
    )


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
    batches: Batches = Batches()
    max_record_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, le=12 * 1024 * 1024, description="Longest interaction, as sent."
    )
    max_metric_series: int = Field(
        default=1000, ge=1, description="Pairs of tenant and model with series of their own; others share 'other'."
    )
