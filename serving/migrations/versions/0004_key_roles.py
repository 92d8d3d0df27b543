"""What a key may do, and until when. Keys of before may do everything, for ever."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    role = sa.Column("role", sa.String(), nullable=False, server_default="owner")
    op.add_column("api_keys", role)
    op.add_column("api_keys", sa.Column("expires_at_s", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "expires_at_s")
    op.drop_column("api_keys", "role")
