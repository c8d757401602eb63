"""Uploads that were let pass unseen, to be looked at later; confirmations that overtook a release."""

import sqlalchemy as sa
from alembic import op

from proxy.database.models import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
is_additive = True  # see proxy.database.migrating


def upgrade() -> None:
    """Adds the table and the column."""
    op.add_column("cases", sa.Column("overtaken_at", UtcDateTime(timezone=True), nullable=True))
    op.create_table(
        "unseen_uploads",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(length=255), nullable=False),
        sa.Column("delete_token", sa.String(length=36), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("facts", sa.LargeBinary(), nullable=False),
        sa.Column("case_id", sa.String(length=32), nullable=True),
        sa.Column("done_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("leased_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("leased_by", sa.String(length=200), nullable=True),
        sa.Column("again_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"]),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index(op.f("ix_unseen_uploads_alias"), "unseen_uploads", ["alias"], unique=False)
    op.create_index(op.f("ix_unseen_uploads_case_id"), "unseen_uploads", ["case_id"], unique=False)
    op.create_index(op.f("ix_unseen_uploads_done_at"), "unseen_uploads", ["done_at"], unique=False)
