"""The words by which an asset is found: its name, description, tags and trigger words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("assets", sa.Column("words", sa.String(), nullable=False, server_default=""))
    # Until an asset is changed it is found by its name and description alone.
    op.execute("UPDATE assets SET words = lower(name || ' ' || description)")


def downgrade() -> None:
    op.drop_column("assets", "words")
