"""The first schema: interactions, feedback and usage by day."""

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_REQUEST = ("principal", "key_id", "end_user", "task", "route", "model", "prompt_version", "index_version")
_OUTCOME = ("conversation_id", "trace_id", "outcome", "error_reason", "error_message")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens")


def upgrade(op: Operations) -> None:
    """Creates the tables and their indexes."""
    op.create_table(
        "interactions",
        *_columns(sa.Text, "tenant", "request_id"),
        *_columns(sa.BigInteger, "start_time_us"),
        *_columns(sa.Text, *_REQUEST, *_OUTCOME),
        *_columns(sa.Boolean, "cached", "refused"),
        *_columns(sa.BigInteger, *_TOKENS, "cost_micros"),
        *_columns(sa.Text, "currency"),
        *_columns(sa.BigInteger, "time_to_first_token_us", "duration_us", "size_bytes"),
        *_columns(sa.JSON, "attempts", "passages", "citations", "verdicts", "input"),
        *_columns(sa.Text, "output"),
        sa.PrimaryKeyConstraint("tenant", "request_id", name="pk_interactions"),
    )
    op.create_index("ix_interactions_tenant_time", "interactions", ["tenant", "start_time_us", "request_id"])
    op.create_index("ix_interactions_time", "interactions", ["start_time_us"])
    op.create_table(
        "feedback",
        *_columns(sa.Text, "tenant", "feedback_id", "request_id"),
        *_columns(sa.BigInteger, "time_us"),
        *_columns(sa.Text, "principal", "key_id", "rating", "correction", "comment"),
        sa.Column("ground_truth", sa.JSON, nullable=True),
        sa.PrimaryKeyConstraint("tenant", "feedback_id", name="pk_feedback"),
    )
    op.create_index("ix_feedback_request", "feedback", ["tenant", "request_id"])
    op.create_index("ix_feedback_time", "feedback", ["time_us"])
    op.create_table(
        "usage",
        *_columns(sa.Text, "day", "tenant", "key_id", "model", "currency"),
        *_columns(sa.BigInteger, "requests", "errors", *_TOKENS, "cost_micros"),
        sa.PrimaryKeyConstraint("tenant", "day", "key_id", "model", "currency", name="pk_usage"),
    )
    op.create_index("ix_usage_day", "usage", ["day"])


def downgrade(op: Operations) -> None:
    """Drops all of the monitor's tables."""
    for table in ("usage", "feedback", "interactions"):
        op.drop_table(table)


def _columns(kind: type[sa.types.TypeEngine[Any]], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]
