"""Versions, visibility, sharing, expiry and uses of assets; which blobs they refer to."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_LIVE = sa.text("deleted_at_s IS NULL")


def upgrade() -> None:
    for column in (
        sa.Column("version", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("visibility", sa.String(), nullable=False, server_default="organisation"),
        sa.Column("created_by", sa.String(), nullable=False, server_default=""),
        sa.Column("expires_at_s", sa.Float(), nullable=True),
        sa.Column("uses", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("last_used_at_s", sa.Float(), nullable=True),
    ):
        op.add_column("assets", column)
    op.execute("UPDATE assets SET visibility = 'public' WHERE is_public")
    op.drop_column("assets", "is_public")
    # A name may have been given again after a deletion: the older ones are earlier versions.
    op.execute(
        "UPDATE assets SET version = (SELECT count(*) FROM assets AS same WHERE same.tenant_id = "
        "assets.tenant_id AND same.name = assets.name AND same.id <= assets.id)"
    )
    for index in (
        "assets_live_name",
        "ix_assets_tenant_id",
        "ix_assets_owner",
        "ix_assets_status",
    ):
        op.drop_index(index, "assets")
    op.create_index("assets_version", "assets", ["tenant_id", "name", "version"], unique=True)
    op.create_index(
        "assets_live", "assets", ["tenant_id", "id"], sqlite_where=_LIVE, postgresql_where=_LIVE
    )
    op.create_index("assets_owner_name", "assets", ["owner", "name"])
    op.create_index("assets_status", "assets", ["status", "changed_at_s"])

    op.create_table(
        "asset_shares",
        sa.Column("tenant_name", sa.String(), primary_key=True),
        sa.Column("asset_id", sa.String(), primary_key=True, index=True),
    )
    blobs = op.create_table(
        "blobs",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("claimed_at_s", sa.Float(), nullable=False),
        sa.Column("doomed_at_s", sa.Float(), nullable=True),
    )
    refs = op.create_table(
        "blob_refs",
        sa.Column("blob_key", sa.String(), primary_key=True),
        sa.Column("asset_id", sa.String(), primary_key=True, index=True),
    )
    sizes: dict[str, int] = {}
    pairs = set()
    rows = op.get_bind().execute(sa.text("SELECT id, parts, created_at_s FROM assets")).all()
    for asset_id, parts, _ in rows:
        parsed = json.loads(parts) if isinstance(parts, str) else parts
        for key, _sha256, size_bytes in parsed.values():
            sizes[key] = size_bytes
            pairs.add((key, asset_id))
    if sizes:
        op.bulk_insert(
            blobs,
            [{"key": k, "size_bytes": s, "claimed_at_s": 0.0} for k, s in sizes.items()],
        )
        op.bulk_insert(refs, [{"blob_key": key, "asset_id": asset} for key, asset in pairs])


def downgrade() -> None:
    raise NotImplementedError("versions and visibility cannot be folded back; restore a backup")
