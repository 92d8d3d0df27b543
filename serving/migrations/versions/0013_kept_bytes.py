"""Bytes that are kept for a tenant beside its assets' files; no words of deleted assets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "kept_bytes",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
    )
    op.create_index("kept_bytes_tenant", "kept_bytes", ["tenant_id"])
    op.execute(
        "DELETE FROM asset_words WHERE asset_id IN "
        "(SELECT id FROM assets WHERE deleted_at_s IS NOT NULL)"
    )


def downgrade() -> None:
    op.drop_table("kept_bytes")
