"""Reports of drift checks. It only adds a table: the former version does not see it."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade(op: Operations) -> None:
    """Adds a table."""
    op.create_table(
        "drift_reports",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("report_id", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("drifted", sa.Boolean, nullable=False),
        sa.Column("report", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "report_id", name="pk_drift_reports"),
    )
    op.create_index("ix_drift_reports_tenant_end", "drift_reports", ["tenant", "end_us", "report_id"])
    op.create_index("ix_drift_reports_end", "drift_reports", ["end_us"])


def downgrade(op: Operations) -> None:
    """Drops the reports."""
    op.drop_table("drift_reports")
