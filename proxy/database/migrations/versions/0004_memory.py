"""The memory of hashes: lists that were imported, and pictures by their looks."""

import sqlalchemy as sa
from alembic import op

from proxy.database.models import UtcDateTime
from proxy.pdq import GOOD_QUALITY

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
is_additive = True  # see proxy.database.migrating


def upgrade() -> None:
    """Makes the tables, and remembers the looks of what was confirmed before there were any."""
    op.create_table(
        "hash_lists",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("verdict", sa.String(length=8), nullable=False),
        sa.Column("added_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("added_by", sa.String(length=200), nullable=False),
        sa.Column("removed_at", UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "listed_hashes",
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("list_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("sha256", "list_number"),
        sqlite_with_rowid=False,
    )
    pictures = op.create_table(
        "known_pictures",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("pdq", sa.LargeBinary(length=32), nullable=False),
        sa.Column("list_number", sa.Integer(), nullable=True),
        sa.Column("case_id", sa.String(length=32), nullable=True),
        sa.Column("added_by", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_known_pictures_list_number_pdq", "known_pictures", ["list_number", "pdq"], unique=True
    )
    op.create_index(
        "ix_known_pictures_case_id",
        "known_pictures",
        ["case_id"],
        unique=True,
        sqlite_where=sa.text("case_id IS NOT NULL"),
        postgresql_where=sa.text("case_id IS NOT NULL"),
    )
    case = sa.table("cases", *map(sa.column, ("id", "state", "pdq", "pdq_quality", "decided_by")))
    confirmed = sa.select(case.c.id, case.c.pdq, case.c.decided_by).where(
        case.c.state.in_(("confirmed", "reported")), case.c.pdq_quality >= GOOD_QUALITY
    )
    remembered = [
        {"pdq": bytes.fromhex(row.pdq), "case_id": row.id, "added_by": row.decided_by}
        for row in op.get_bind().execute(confirmed)
        if row.pdq is not None
    ]
    if remembered:
        op.bulk_insert(pictures, remembered)


def downgrade() -> None:
    """Software destroys no evidence."""
    raise NotImplementedError("the memory of hashes cannot be undone; delete the database by hand")
