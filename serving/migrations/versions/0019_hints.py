"""Hints of an asset, as its owner sets them; null: as guessed from the file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("assets", sa.Column("hints", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("assets", "hints")
