"""Backfill: options and counts of a run, every file that was looked at; what pict-rs has made of a case."""

import sqlalchemy as sa
from alembic import op

from proxy.database.models import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
is_additive = True  # see proxy.database.migrating


def upgrade() -> None:
    """Adds columns and tables, and lets an unfinished run go on where it was."""
    for column in (
        sa.Column("kind", sa.String(length=8), nullable=False, server_default="run"),
        sa.Column("state", sa.String(length=8), nullable=False, server_default="open"),
        sa.Column("source", sa.String(length=500), nullable=False, server_default="pictrs"),
        sa.Column("options", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("changed_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("cursor", sa.String(length=2000), nullable=True),
        sa.Column("newest", sa.JSON(), nullable=True),
        sa.Column("reused", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("skipped", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("hits", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("held", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("fetched_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("histogram", sa.JSON(), nullable=False, server_default="{}"),
    ):
        op.add_column("backfill_runs", column)
    op.create_index(op.f("ix_backfill_runs_state"), "backfill_runs", ["state"], unique=False)
    op.execute("UPDATE backfill_runs SET cursor = slug")
    op.execute("UPDATE backfill_runs SET state = 'finished' WHERE finished_at IS NOT NULL")
    for table in ("backfill_hits", "backfill_unreadable"):
        op.add_column(table, sa.Column("place", sa.String(length=1100), nullable=False, server_default=""))
    op.add_column("backfill_hits", sa.Column("stored_at", UtcDateTime(timezone=True), nullable=True))
    op.add_column("backfill_hits", sa.Column("case_id", sa.String(length=32), nullable=True))
    op.add_column("backfill_hits", sa.Column("not_held", sa.String(length=500), nullable=True))
    op.create_index(op.f("ix_backfill_hits_case_id"), "backfill_hits", ["case_id"], unique=False)
    op.add_column(
        "promises", sa.Column("token_lost", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("promises", sa.Column("sent_at", UtcDateTime(timezone=True), nullable=True))
    op.add_column(
        "promises", sa.Column("is_foreign", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("cases", sa.Column("stored_as", sa.JSON(), nullable=True))
    op.create_table(
        "backfill_versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ensemble", sa.String(length=200), nullable=False),
        sa.Column("signals", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_backfill_versions_ensemble"), "backfill_versions", ["ensemble"], unique=False)
    op.create_table(
        "backfill_files",
        sa.Column("key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("content", sa.LargeBinary(length=32), nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("scores", sa.LargeBinary(length=255), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sqlite_with_rowid=False,
    )
