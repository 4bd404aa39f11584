"""Sums by release with the adapter and without evaluations. It only adds: the former version works on it."""

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEY = ("route", "tenant", "model", "adapter", "prompt_version", "index_version", "currency")
_COUNTS = ("requests", "failed", "blocked", "cancelled", "masked", "cached", "refused")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens")
_TIMES = ("timed", "time_to_first_token_us", "duration_us")
_SQUARES = ("time_to_first_token_seconds_squared", "duration_seconds_squared")


def upgrade(op: Operations) -> None:
    """Adds columns without a default, which is instant however many rows there are, and a table."""
    op.add_column("interactions", sa.Column("evaluation", sa.Text, nullable=True))
    op.add_column("interactions", sa.Column("adapter", sa.Text, nullable=True))
    op.create_table(
        "release_sums",
        *_columns(sa.Text, *_KEY),
        *_columns(sa.BigInteger, "hour_us", *_COUNTS, *_TOKENS, "cost_micros", *_TIMES),
        *_columns(sa.Double, *_SQUARES),
        sa.PrimaryKeyConstraint(
            "route",
            "hour_us",
            "tenant",
            "model",
            "adapter",
            "prompt_version",
            "index_version",
            "currency",
            name="pk_release_sums",
        ),
    )
    op.create_index("ix_release_sums_hour", "release_sums", ["hour_us"])


def downgrade(op: Operations) -> None:
    """Drops the columns, and the sums since."""
    op.drop_table("release_sums")
    op.drop_column("interactions", "adapter")
    op.drop_column("interactions", "evaluation")


def _columns(kind: type[sa.types.TypeEngine[Any]], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]
