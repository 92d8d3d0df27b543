"""Files as they were uploaded, beside what they were converted into; looked up by their digest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("assets", sa.Column("original", sa.JSON(), nullable=True))
    op.add_column("assets", sa.Column("source_sha256", sa.String(), nullable=True))
    connection = op.get_bind()
    assets = sa.table("assets", sa.column("id"), sa.column("report", sa.JSON()),
                      sa.column("source_sha256"))  # fmt: skip
    rows = connection.execute(sa.select(assets.c.id, assets.c.report)).all()
    known = [
        {"asset": row.id, "digest": row.report["source_sha256"]}
        for row in rows
        if isinstance(row.report, dict) and row.report.get("source_sha256")
    ]
    if known:
        filled = assets.update().where(assets.c.id == sa.bindparam("asset"))
        connection.execute(filled.values(source_sha256=sa.bindparam("digest")), known)
    op.create_index("assets_source", "assets", ["tenant_id", "source_sha256"])


def downgrade() -> None:
    op.drop_index("assets_source", "assets")
    op.drop_column("assets", "source_sha256")
    op.drop_column("assets", "original")
