"""Sums by release with split and arm, in a table of their own. It only adds: the former version works on it."""

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KEY = ("route", "tenant", "model", "adapter", "prompt_version", "index_version", "split", "arm", "currency")
_COUNTS = ("requests", "failed", "blocked", "cancelled", "masked", "cached", "refused")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens")
_TIMES = ("timed", "time_to_first_token_us", "duration_us")
_SQUARES = ("time_to_first_token_seconds_squared", "duration_seconds_squared")


def upgrade(op: Operations) -> None:
    """Adds columns without a default, which is instant however many rows there are, and a table."""
    for name in ("split", "arm"):
        op.add_column("interactions", sa.Column(name, sa.Text, nullable=True))
    op.add_column("interactions", sa.Column("arm_chosen", sa.Boolean, nullable=True))
    op.create_table(
        "release_arm_sums",
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
            "split",
            "arm",
            "currency",
            name="pk_release_arm_sums",
        ),
    )
    op.create_index("ix_release_arm_sums_hour", "release_arm_sums", ["hour_us"])


def downgrade(op: Operations) -> None:
    """Drops the columns, and the sums since."""
    op.drop_table("release_arm_sums")
    for name in ("arm_chosen", "arm", "split"):
        op.drop_column("interactions", name)


def _columns(kind: type[sa.types.TypeEngine[Any]], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]
