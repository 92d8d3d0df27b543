"""Jobs are claimed, counted and expired through an index each, whatever has finished."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_jobs_tenant_id", "jobs")
    op.drop_index("ix_jobs_status", "jobs")
    op.create_index("jobs_claimable", "jobs", ["status", "claimed_until_s"])
    op.create_index("jobs_tenant", "jobs", ["tenant_id", "status", "claimed_until_s"])
    op.create_index("jobs_finished", "jobs", ["finished_at_s"])


def downgrade() -> None:
    for name in ("jobs_finished", "jobs_tenant", "jobs_claimable"):
        op.drop_index(name, "jobs")
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.create_index("ix_jobs_tenant_id", "jobs", ["tenant_id"])
