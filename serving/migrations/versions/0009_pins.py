"""What the operator has pinned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pins",
        sa.Column("asset_id", sa.String(), primary_key=True),
        sa.Column("pinned_at_s", sa.Float(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("pins")
