"""Deferred cases that the gate itself can open, and who is looking at one."""

import sqlalchemy as sa
from alembic import op

from proxy.database.models import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns. What was deferred before is sealed to the reviewers alone, and waits for them."""
    with op.batch_alter_table("cases") as cases:
        cases.add_column(sa.Column("gate_reads", sa.Boolean(), nullable=False, server_default=sa.false()))
        cases.add_column(sa.Column("leased_until", UtcDateTime(timezone=True), nullable=True))
        cases.add_column(sa.Column("leased_by", sa.String(length=200), nullable=True))
        cases.create_index("ix_cases_gate_reads", ["gate_reads"])
