"""The tables of files, batches and lines, beside those of `schema`. Moments are microseconds since 1970 in UTC."""

from __future__ import annotations

import sqlalchemy as sa

from genaifactory_monitor.schema import metadata


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


files = sa.Table(
    "batch_files",
    metadata,
    _text("file_id"),
    _text("tenant"),
    _text("principal"),
    _text("filename"),
    _text("purpose"),
    _number("size_bytes"),
    sa.Column("finished", sa.Boolean, nullable=False),
    _number("create_time_us"),
    _number("expire_time_us"),
    # Of a file of results, which has no pieces: its batch, and the outcome of the lines that it shows. Empty otherwise.
    _text("batch_id"),
    _text("outcome"),
    sa.PrimaryKeyConstraint("file_id"),
    sa.Index("ix_batch_files_owner", "tenant", "principal", "create_time_us", "file_id"),
    sa.Index("ix_batch_files_expire", "expire_time_us"),
)

pieces = sa.Table(
    "batch_file_pieces",
    metadata,
    _text("file_id"),
    _number("start_byte"),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("file_id", "start_byte"),
)

batches = sa.Table(
    "batches",
    metadata,
    _text("batch_id"),
    _text("tenant"),
    _text("principal"),
    _text("key_id"),
    _text("endpoint"),
    _text("input_file_id"),
    _text("status"),
    # Why its open lines are given up; empty: they are not. See `ends`.
    _text("closing"),
    sa.Column("metadata", sa.JSON, nullable=False),
    _text("model"),
    _number("total"),
    _number("completed"),
    _number("failed"),
    sa.Column("errors", sa.JSON, nullable=False),
    _text("output_file_id"),
    _text("error_file_id"),
    _number("output_lifetime_seconds"),
    _number("create_time_us"),
    *(sa.Column(f"{name}_time_us", sa.BigInteger, nullable=True) for name in ("start", "close", "cancel", "end")),
    _number("expire_time_us"),
    _number("prompt_tokens"),
    _number("completion_tokens"),
    _number("cached_prompt_tokens"),
    _number("cost_micros"),
    _text("currency"),
    sa.Column("max_cost_micros", sa.BigInteger, nullable=True),
    # The worker that checks its file, until when; afterwards, when lines of it were leased last.
    _text("worker"),
    _number("lease_time_us"),
    sa.PrimaryKeyConstraint("batch_id"),
    sa.Index("ix_batches_owner", "tenant", "principal", "create_time_us", "batch_id"),
    sa.Index("ix_batches_status", "status", "lease_time_us"),
    sa.Index("ix_batches_create", "create_time_us"),
)

lines = sa.Table(
    "batch_lines",
    metadata,
    _text("batch_id"),
    _number("number"),
    _text("custom_id"),
    # Emptied once the line has a result.
    sa.Column("body", sa.LargeBinary, nullable=False),
    _number("attempts"),
    # The claim of a worker that answers it, until when; without a worker: not to be leased before.
    _text("worker"),
    _number("lease_time_us"),
    # Empty: open. "answered" or "failed": `result` is a line of that file.
    _text("outcome"),
    sa.Column("result", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("batch_id", "number"),
)
sa.Index(
    "ix_batch_lines_open",
    lines.c.batch_id,
    lines.c.number,
    postgresql_where=lines.c.outcome == "",
    sqlite_where=lines.c.outcome == "",
)
sa.Index(
    "ix_batch_lines_worker",
    lines.c.worker,
    postgresql_where=lines.c.worker != "",
    sqlite_where=lines.c.worker != "",
)
