"""The schema of SQLite and PostgreSQL, in SQLAlchemy Core. `migrations` creates it; a test compares the two.

Moments are microseconds since 1970 in UTC: exact, and the same in SQLite and PostgreSQL. An interaction is stored as
its serialised message, beside the columns to filter, sort and add up by (`indexed`).
"""

from __future__ import annotations

import sqlalchemy as sa

from genaifactory_monitor import indexed

metadata = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s"})


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


# Columns of the former version; empty in our rows. A monitor of that version, during an update or after a rollback,
# writes and reads them. To be dropped when no such row can be left.
former_columns = (
    *map(_text, ("principal", "end_user", "task", "conversation_id", "trace_id", "error_reason", "error_message")),
    *(sa.Column(name, sa.JSON, nullable=False) for name in ("attempts", "passages", "citations", "verdicts", "input")),
    _text("output"),
)

# A request_id is unique within its tenant, so that no tenant can occupy an id of another.
interactions = sa.Table(
    "interactions",
    metadata,
    *indexed.columns(),
    _number("size_bytes"),
    # The strongest action of a guardrail ("block", "mask" or ""); NULL: a row of the former version that is not in
    # `release_arm_sums` yet.
    sa.Column("guardrail", sa.Text, nullable=True),
    # The serialised message; NULL: a row of the former version.
    sa.Column("record", sa.LargeBinary, nullable=True),
    # The evaluation that asked, and the adapter that answered; NULL: none, or a row of a former version.
    sa.Column("evaluation", sa.Text, nullable=True),
    sa.Column("adapter", sa.Text, nullable=True),
    # The split of the route, the arm that answered, and whether a tester chose it; NULL as above.
    sa.Column("split", sa.Text, nullable=True),
    sa.Column("arm", sa.Text, nullable=True),
    sa.Column("arm_chosen", sa.Boolean, nullable=True),
    *former_columns,
    sa.PrimaryKeyConstraint("tenant", "request_id"),
    sa.Index("ix_interactions_tenant_time", "tenant", "start_time_us", "request_id"),
    # PostgreSQL adds up parts of days and hours from this index alone: an eighth of the size of the rows.
    sa.Index("ix_interactions_time_sums", "start_time_us", postgresql_include=[*indexed.ADDED_UP, "guardrail"]),
)
sa.Index(
    "ix_interactions_uncounted",
    interactions.c.start_time_us,
    postgresql_where=interactions.c.guardrail.is_(None),
    sqlite_where=interactions.c.guardrail.is_(None),
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

# What drift checks have measured, with the verdict; kept as long as the interactions.
drift_reports = sa.Table(
    "drift_reports",
    metadata,
    _text("tenant"),
    _text("report_id"),
    _text("route"),
    # Of the window that was judged, exclusive.
    _number("end_us"),
    sa.Column("drifted", sa.Boolean, nullable=False),
    # The serialised message.
    sa.Column("report", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("tenant", "report_id"),
    sa.Index("ix_drift_reports_tenant_end", "tenant", "end_us", "report_id"),
    sa.Index("ix_drift_reports_end", "end_us"),
)


def _sums_by_release(name: str, *versions: str) -> sa.Table:
    key = ("route", "hour_us", "tenant", "model", *versions, "currency")
    return sa.Table(
        name,
        metadata,
        *(_number(column) if column == "hour_us" else _text(column) for column in key),
        _number("requests"),
        _number("failed"),
        _number("blocked"),
        _number("cancelled"),
        _number("masked"),
        _number("cached"),
        _number("refused"),
        _number("prompt_tokens"),
        _number("completion_tokens"),
        _number("cached_prompt_tokens"),
        _number("cost_micros"),
        # Answers whose times measure the model's speed; sums of these times, and of their squares for the variance.
        _number("timed"),
        _number("time_to_first_token_us"),
        _number("duration_us"),
        sa.Column("time_to_first_token_seconds_squared", sa.Double, nullable=False),
        sa.Column("duration_seconds_squared", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint(*key),
        sa.Index(f"ix_{name}_hour", "hour_us"),
    )


# Added up in the same transaction, by release, without the requests of evaluations and of testers who chose the arm;
# kept as long as the interactions.
release_arm_sums = _sums_by_release("release_arm_sums", "adapter", "prompt_version", "index_version", "split", "arm")
# Those of the former version, without split and arm. During an update and after a rollback it adds to them. To be
# dropped when all are older than the retention.
release_sums = _sums_by_release("release_sums", "adapter", "prompt_version", "index_version")
# Those of the version before, with the requests of evaluations, and without adapter, split and arm.
release_hours = _sums_by_release("release_hours", "prompt_version", "index_version")
