"""For whom a case is sealed, and lists of many cases that come at once."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
is_additive = True  # see proxy.database.migrating


def upgrade() -> None:
    """Adds them."""
    op.add_column("cases", sa.Column("sealed_to", sa.String(length=64), nullable=True))
    op.create_index("ix_cases_newest", "cases", ["created_at", "id"], unique=False)
    op.create_index("ix_cases_state_newest", "cases", ["state", "created_at", "id"], unique=False)
    op.create_index("ix_cases_rule_newest", "cases", ["rule", "created_at", "id"], unique=False)
    held = sa.text("hold_at IS NOT NULL")
    op.create_index(
        "ix_cases_held", "cases", ["created_at", "id"], unique=False, sqlite_where=held, postgresql_where=held
    )
