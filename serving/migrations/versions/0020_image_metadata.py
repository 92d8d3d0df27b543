"""Whether a tenant's images have their parameters as metadata; null: they have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("image_metadata", sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column("tenants", "image_metadata")
