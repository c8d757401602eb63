"""What a case goes through besides a decision: later looks, legal hold, report, expiry; lockdowns."""

import sqlalchemy as sa
from alembic import op

from proxy.database.models import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
# Older gates cannot read the new states, nor do they heed a lockdown; see proxy.database.migrating.
is_additive = False


def upgrade() -> None:
    """Adds columns one by one: a table that is made anew would take its promises along."""
    for column in (
        sa.Column("earlier", sa.JSON(), nullable=True),
        sa.Column("uploader", sa.String(length=64), nullable=True),
        sa.Column("sealed_size", sa.Integer(), nullable=True),
        sa.Column("reported_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("reported_by", sa.String(length=200), nullable=True),
        sa.Column("reported_as", sa.String(length=500), nullable=True),
        sa.Column("hold_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("hold_by", sa.String(length=200), nullable=True),
        sa.Column("hold_reason", sa.String(length=500), nullable=True),
        sa.Column("expired_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("gate_reads", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("leased_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("leased_by", sa.String(length=200), nullable=True),
        sa.Column("again_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False, server_default="0"),
    ):
        op.add_column("cases", column)
    op.create_index(op.f("ix_cases_uploader"), "cases", ["uploader"], unique=False)
    op.create_index(op.f("ix_cases_gate_reads"), "cases", ["gate_reads"], unique=False)
    op.create_table(
        "notes",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.String(length=32), nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("text", sa.String(length=2000), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"]),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index(op.f("ix_notes_case_id"), "notes", ["case_id"], unique=False)
    op.create_table(
        "lockdowns",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("began_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.Column("until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("ended_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("number"),
    )
