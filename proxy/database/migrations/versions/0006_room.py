"""What the room of the quarantine is counted by: an index over sizes, salts of the tags of uploaders."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
is_additive = True  # see proxy.database.migrating


def upgrade() -> None:
    """Adds them."""
    op.create_table(
        "salts",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.LargeBinary(length=255), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("ix_cases_uploader_sealed_size", "cases", ["uploader", "sealed_size"], unique=False)


def downgrade() -> None:
    """An older gate would count nothing."""
    raise NotImplementedError("migrations are not undone; bring back a copy of the database")
