"""The tables of stored conversations, in SQLAlchemy Core. `migrations` creates them; a test compares the two.

Times are seconds since 1970. In PostgreSQL the database may have other services' tables.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

# SQLite's types are those of files from before there were migrations; only INTEGER can autoincrement there.
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT: sa.Double[float] = sa.Double().with_variant(sa.REAL, "sqlite")

conversations = sa.Table(
    "conversations",
    metadata,
    # Never reused, so that turns of an erased conversation cannot be added to another one.
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("updated_at", _MOMENT, nullable=False),
    sa.UniqueConstraint("tenant", "principal", "name"),
    sa.Index("conversations_updated", "tenant", "principal", "updated_at"),
    sqlite_autoincrement=True,
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("conversation", _NUMBER, sa.ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", _NUMBER, nullable=False),
    sa.Column("created_at", _MOMENT, nullable=False),
    # A serialized types.v1.Message.
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("conversation", "number"),
    sa.Index("messages_created", "created_at"),
    sqlite_with_rowid=False,
)
