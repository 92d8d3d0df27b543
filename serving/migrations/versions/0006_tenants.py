"""Plans, members, rates, budgets, the ledger and the audit log; who asked for a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("requests_per_min", sa.Integer(), nullable=True),
        sa.Column("concurrent_pictures", sa.Integer(), nullable=True),
        sa.Column("storage_bytes", sa.BigInteger(), nullable=True),
        sa.Column("assets", sa.Integer(), nullable=True),
        sa.Column("gpu_s_per_month", sa.Float(), nullable=True),
    )
    op.create_table(
        "members",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("tenant_id", sa.String(), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("removed_at_s", sa.Float(), nullable=True),
    )
    op.create_index("members_name", "members", ["tenant_id", "name"], unique=True)
    # In place: SQLite would otherwise make these tables anew, under the feet of their references.
    op.execute("ALTER TABLE tenants ADD COLUMN plan VARCHAR REFERENCES plans (name)")
    op.execute("ALTER TABLE api_keys ADD COLUMN member_id VARCHAR REFERENCES members (id)")
    op.create_table(
        "rates",
        sa.Column("tenant_id", sa.String(), primary_key=True),
        sa.Column("whole_at_s", sa.Float(), nullable=False),
    )
    op.create_table(
        "budgets",
        sa.Column("tenant_id", sa.String(), primary_key=True),
        sa.Column("month", sa.String(), primary_key=True),
        sa.Column("used_gpu_s", sa.Float(), nullable=False),
        sa.Column("reserved_gpu_s", sa.Float(), nullable=False),
    )
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("month", sa.String(), nullable=False),
        sa.Column("gpu_s", sa.Float(), nullable=False),
        sa.Column("expires_at_s", sa.Float(), nullable=True, index=True),
    )
    op.create_table(
        "ledger",
        sa.Column("id", _COUNTER, primary_key=True),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=False),
        sa.Column("quantity", sa.Float(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
    )
    op.create_index("ledger_once", "ledger", ["kind", "reference"], unique=True)
    op.create_index("ledger_tenant", "ledger", ["tenant_id", "id"])
    op.create_table(
        "audit",
        sa.Column("id", _COUNTER, primary_key=True),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("act", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
    )
    op.create_index("audit_tenant", "audit", ["tenant_id", "id"])
    op.add_column("jobs", sa.Column("asked_by", sa.JSON(), nullable=True))
    _append_only("ledger", "audit")


def _append_only(*tables: str) -> None:
    """The database refuses to change or remove a row, whoever asks."""
    if op.get_bind().dialect.name == "sqlite":
        for table in tables:
            for verb in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in tables:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION append_only()"
        )


def downgrade() -> None:
    raise NotImplementedError("a ledger is not thrown away; restore a backup")
