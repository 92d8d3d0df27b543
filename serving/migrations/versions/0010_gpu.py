"""The kind of GPU that a tenant draws on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("gpu", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("tenants", "gpu")
