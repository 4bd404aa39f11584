"""Files, batches and their lines. It only adds tables: the former version works on it."""

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade(op: Operations) -> None:
    """Adds tables."""
    op.create_table(
        "batch_files",
        *_columns(sa.Text, "file_id", "tenant", "principal", "filename", "purpose", "batch_id", "outcome"),
        *_columns(sa.BigInteger, "size_bytes", "create_time_us", "expire_time_us"),
        *_columns(sa.Boolean, "finished"),
        sa.PrimaryKeyConstraint("file_id", name="pk_batch_files"),
    )
    op.create_index("ix_batch_files_owner", "batch_files", ["tenant", "principal", "create_time_us", "file_id"])
    op.create_index("ix_batch_files_expire", "batch_files", ["expire_time_us"])
    op.create_table(
        "batch_file_pieces",
        *_columns(sa.Text, "file_id"),
        *_columns(sa.BigInteger, "start_byte"),
        *_columns(sa.LargeBinary, "data"),
        sa.PrimaryKeyConstraint("file_id", "start_byte", name="pk_batch_file_pieces"),
    )
    op.create_table(
        "batches",
        *_columns(sa.Text, "batch_id", "tenant", "principal", "key_id", "endpoint", "input_file_id", "status"),
        *_columns(sa.Text, "closing", "model", "output_file_id", "error_file_id", "currency", "worker"),
        *_columns(sa.JSON, "metadata", "errors"),
        *_columns(sa.BigInteger, "total", "completed", "failed", "output_lifetime_seconds"),
        *_columns(sa.BigInteger, "prompt_tokens", "completion_tokens", "cached_prompt_tokens", "cost_micros"),
        *_columns(sa.BigInteger, "create_time_us", "expire_time_us", "lease_time_us"),
        *(sa.Column(f"{name}_time_us", sa.BigInteger, nullable=True) for name in ("start", "close", "cancel", "end")),
        sa.Column("max_cost_micros", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("batch_id", name="pk_batches"),
    )
    op.create_index("ix_batches_owner", "batches", ["tenant", "principal", "create_time_us", "batch_id"])
    op.create_index("ix_batches_status", "batches", ["status", "lease_time_us"])
    op.create_index("ix_batches_create", "batches", ["create_time_us"])
    op.create_table(
        "batch_lines",
        *_columns(sa.Text, "batch_id", "custom_id", "worker", "outcome"),
        *_columns(sa.BigInteger, "number", "attempts", "lease_time_us"),
        *_columns(sa.LargeBinary, "body", "result"),
        sa.PrimaryKeyConstraint("batch_id", "number", name="pk_batch_lines"),
    )
    for name, column, condition in (
        ("open", ["batch_id", "number"], "outcome = ''"),
        ("worker", ["worker"], "worker != ''"),
    ):
        where = sa.text(condition)
        op.create_index(f"ix_batch_lines_{name}", "batch_lines", column, postgresql_where=where, sqlite_where=where)


def downgrade(op: Operations) -> None:
    """Drops the tables."""
    for name in ("batch_lines", "batches", "batch_file_pieces", "batch_files"):
        op.drop_table(name)


def _columns(kind: type[sa.types.TypeEngine[Any]], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]
