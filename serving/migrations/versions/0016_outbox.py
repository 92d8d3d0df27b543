"""The outbox of ended jobs; an organisation's jobs in order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("tenant_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("outbox_at", "outbox", ["at_s"])
    op.create_index("jobs_listed", "jobs", ["tenant_id", "created_at_s", "id"])


def downgrade() -> None:
    op.drop_index("jobs_listed", "jobs")
    op.drop_index("outbox_at", "outbox")
    op.drop_table("outbox")
