"""When each chore that one gateway does for all was done last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chores",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("done_at_s", sa.Float(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("chores")
