"""What the monitor reads from the environment: where it keeps its records, how long, and how big they may be."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from pydantic import Field, SecretStr, field_validator

from genaifactory_common import settings as common


class Retention(common.Settings):
    """How long records stay. Usage by day stays: it is the bill, and names no end user and holds no text."""

    days: int = Field(default=365, ge=1, description="Interactions and their feedback are deleted after this.")
    sweep_interval_seconds: float = Field(default=3600.0, gt=0, description="Between two looks for old records.")
    batch: int = Field(default=500, ge=1, le=10_000, description="Interactions deleted in one transaction.")


class Store(common.Settings):
    """How the database is used."""

    connections: int = Field(
        default=5, ge=1, le=200, description="PostgreSQL: all connections. SQLite: readers, beside the one writer."
    )
    connect_timeout_seconds: float = Field(default=5.0, gt=0, description="To reach PostgreSQL.")
    busy_timeout_seconds: float = Field(
        default=5.0, gt=0, description="Wait for a free connection, and for another process's lock on SQLite."
    )
    statement_timeout_seconds: float = Field(default=30.0, gt=0, description="For one statement on PostgreSQL.")


class Settings(common.Common):
    """The monitor's settings."""

    data_dir: Path = Field(default=Path(".genaifactory/monitor"), description="Holds monitor.sqlite.")
    database_url: SecretStr | None = Field(
        default=None,
        description="postgresql://USER:PASSWORD@HOST:PORT/DATABASE[?ssl=verify-full]; None: SQLite.",
    )
    store: Store = Store()
    retention: Retention = Retention()
    max_record_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, le=12 * 1024 * 1024, description="Longest interaction, as sent."
    )
    max_metric_series: int = Field(
        default=1000, ge=1, description="Tenants with models that get metrics of their own; later ones share 'other'."
    )

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            url = sa.make_url(value.get_secret_value())
        except (sa.exc.ArgumentError, ValueError):
            raise ValueError("must look like postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
        if url.drivername not in ("postgresql", "postgresql+asyncpg") or not url.database:
            raise ValueError("must look like postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        return SecretStr(url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False))
