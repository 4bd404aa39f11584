"""Interactions as serialised messages, and sums by release and hour. It only adds: the former version works on it."""

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = ("route", "tenant", "model", "prompt_version", "index_version", "currency")
_COUNTS = ("requests", "failed", "blocked", "cancelled", "masked", "cached", "refused")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens")
_TIMES = ("timed", "time_to_first_token_us", "duration_us")
_ADDED_UP = (
    "tenant",
    "key_id",
    "route",
    "model",
    "prompt_version",
    "index_version",
    "outcome",
    "cached",
    "refused",
    *_TOKENS,
    "cost_micros",
    "currency",
    "time_to_first_token_us",
    "duration_us",
)
_SQUARES = ("time_to_first_token_seconds_squared", "duration_seconds_squared")


def upgrade(op: Operations) -> None:
    """Adds columns, which is instant, replaces an index and adds a table; rows are not changed."""
    op.add_column("interactions", sa.Column("guardrail", sa.Text, nullable=True))
    op.add_column("interactions", sa.Column("record", sa.LargeBinary, nullable=True))
    uncounted = sa.text("guardrail IS NULL")
    op.create_index(
        "ix_interactions_uncounted",
        "interactions",
        ["start_time_us"],
        postgresql_where=uncounted,
        sqlite_where=uncounted,
    )
    op.create_index(
        "ix_interactions_time_sums", "interactions", ["start_time_us"], postgresql_include=[*_ADDED_UP, "guardrail"]
    )
    op.drop_index("ix_interactions_time", "interactions")
    bind = op.get_bind()
    if bind.dialect.name == "postgresql" and (bind.dialect.server_version_info or (0,)) >= (13,):
        # Pages that VACUUM has not seen are read beside the index; by default it runs when a fifth of the rows is new.
        op.execute(
            "ALTER TABLE interactions"
            " SET (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000)"
        )
    op.create_table(
        "release_hours",
        *_columns(sa.Text, *_KEY),
        *_columns(sa.BigInteger, "hour_us", *_COUNTS, *_TOKENS, "cost_micros", *_TIMES),
        *_columns(sa.Double, *_SQUARES),
        sa.PrimaryKeyConstraint(
            "route",
            "hour_us",
            "tenant",
            "model",
            "prompt_version",
            "index_version",
            "currency",
            name="pk_release_hours",
        ),
    )
    op.create_index("ix_release_hours_hour", "release_hours", ["hour_us"])


def downgrade(op: Operations) -> None:
    """Drops columns and tables that the former version lacks, with most of each interaction stored since."""
    op.drop_table("release_hours")
    op.create_index("ix_interactions_time", "interactions", ["start_time_us"])
    op.drop_index("ix_interactions_time_sums", "interactions")
    op.drop_index("ix_interactions_uncounted", "interactions")
    op.drop_column("interactions", "record")
    op.drop_column("interactions", "guardrail")


def _columns(kind: type[sa.types.TypeEngine[Any]], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]
