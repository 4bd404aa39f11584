"""The first schema: conversations and their messages."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT: sa.Double[float] = sa.Double().with_variant(sa.REAL, "sqlite")


def upgrade(op: Operations) -> None:
    """Creates the tables and their indexes, or keeps those of a file from before there were migrations."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite" and sa.inspect(connection).has_table("conversations"):
        return
    op.create_table(
        "conversations",
        sa.Column("id", _NUMBER, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("tenant", "principal", "name")),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.UniqueConstraint("tenant", "principal", "name"),
        sqlite_autoincrement=True,
    )
    op.create_index("conversations_updated", "conversations", ["tenant", "principal", "updated_at"])
    op.create_table(
        "messages",
        sa.Column("conversation", _NUMBER, sa.ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", _NUMBER, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("conversation", "number"),
        sqlite_with_rowid=False,
    )
    op.create_index("messages_created", "messages", ["created_at"])


def downgrade(op: Operations) -> None:
    """Drops the tables."""
    for table in ("messages", "conversations"):
        op.drop_table(table)
