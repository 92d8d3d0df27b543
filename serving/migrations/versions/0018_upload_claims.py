"""Who assembles an upload claims it for a time; the upload's status only moves forward."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("assets", sa.Column("upload_claimed_until_s", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("assets", "upload_claimed_until_s")
