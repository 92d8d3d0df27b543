"""What an idempotent job was asked, so that its key is not used for anything else."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("body_digest", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "body_digest")
