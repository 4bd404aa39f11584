"""The one schema of both databases, in SQLAlchemy Core. `migrations` builds it; a test holds the two together.

Moments are microseconds since 1970 in UTC: exact, and the same in SQLite and PostgreSQL. What is filtered or added up
has a column of its own; what is only read back whole is JSON.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s"})


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False)


# One tenant's request_id says nothing about another's, so that nobody can claim an id before its owner.
interactions = sa.Table(
    "interactions",
    metadata,
    _text("tenant"),
    _text("request_id"),
    _number("start_time_us"),
    _text("principal"),
    _text("key_id"),
    _text("end_user"),
    _text("task"),
    _text("route"),
    _text("model"),
    _text("prompt_version"),
    _text("index_version"),
    _text("conversation_id"),
    _text("trace_id"),
    _text("outcome"),
    _text("error_reason"),
    _text("error_message"),
    _flag("cached"),
    _flag("refused"),
    _number("prompt_tokens"),
    _number("completion_tokens"),
    _number("cached_prompt_tokens"),
    _number("cost_micros"),
    _text("currency"),
    _number("time_to_first_token_us"),
    _number("duration_us"),
    _number("size_bytes"),
    sa.Column("attempts", sa.JSON, nullable=False),
    sa.Column("passages", sa.JSON, nullable=False),
    sa.Column("citations", sa.JSON, nullable=False),
    sa.Column("verdicts", sa.JSON, nullable=False),
    sa.Column("input", sa.JSON, nullable=False),
    _text("output"),
    sa.PrimaryKeyConstraint("tenant", "request_id"),
    sa.Index("ix_interactions_tenant_time", "tenant", "start_time_us", "request_id"),
    sa.Index("ix_interactions_time", "start_time_us"),
)

# No foreign key: feedback may arrive before its interaction.
feedback = sa.Table(
    "feedback",
    metadata,
    _text("tenant"),
    _text("feedback_id"),
    _text("request_id"),
    _number("time_us"),
    _text("principal"),
    _text("key_id"),
    _text("rating"),
    _text("correction"),
    _text("comment"),
    sa.Column("ground_truth", sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint("tenant", "feedback_id"),
    sa.Index("ix_feedback_request", "tenant", "request_id"),
    sa.Index("ix_feedback_time", "time_us"),
)

# Added up in the transaction that stores the interactions; outlives them.
usage = sa.Table(
    "usage",
    metadata,
    _text("day"),
    _text("tenant"),
    _text("key_id"),
    _text("model"),
    _text("currency"),
    _number("requests"),
    _number("errors"),
    _number("prompt_tokens"),
    _number("completion_tokens"),
    _number("cached_prompt_tokens"),
    _number("cost_micros"),
    sa.PrimaryKeyConstraint("tenant", "day", "key_id", "model", "currency"),
    sa.Index("ix_usage_day", "day"),
)
