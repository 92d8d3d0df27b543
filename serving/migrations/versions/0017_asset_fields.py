"""Fields of assets instead of a document of everything; a revision that counts changes."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_BATCH = 500
#: (column, type, the default of existing rows)
_COLUMNS = (
    ("tags", sa.JSON(), "[]"),
    ("trigger_words", sa.JSON(), "[]"),
    ("license", sa.String(), None),
    ("labels", sa.JSON(), "{}"),
    ("prediction_type", sa.String(), None),
    ("adapter_config", sa.JSON(), None),
    ("expected_sha256", sa.String(), None),
    ("max_bytes", sa.BigInteger(), None),
    ("source_url", sa.String(), None),
    ("source_repo", sa.String(), None),
    ("upload_id", sa.String(), None),
    ("upload_bytes", sa.BigInteger(), None),
    ("upload_part_bytes", sa.BigInteger(), None),
    ("preview", sa.String(), None),
    ("revision", sa.Integer(), "0"),
)
_ASSETS = sa.table(
    "assets",
    sa.column("id"),
    sa.column("data", sa.JSON()),
    *(sa.column(name, type_) for name, type_, _ in _COLUMNS),
)


def upgrade() -> None:
    for name, type_, default in _COLUMNS:
        column = sa.Column(name, type_, nullable=default is None, server_default=default)
        op.add_column("assets", column)
    connection = op.get_bind()
    filled = _ASSETS.update().where(_ASSETS.c.id == sa.bindparam("asset"))
    after = ""
    while rows := connection.execute(
        sa.select(_ASSETS.c.id, _ASSETS.c.data)
        .where(_ASSETS.c.id > after)
        .order_by(_ASSETS.c.id)
        .limit(_BATCH)
    ).all():
        after = rows[-1].id
        for row in rows:
            if values := _values(row.data or {}):
                connection.execute(filled.values(**values), {"asset": row.id})
    op.drop_column("assets", "data")


def _values(data: dict[str, Any]) -> dict[str, Any]:
    upload = data.get("upload") or {}
    labels = {name: data.get(name) for name in ("engine", "data_type", "checkpoint")}
    values = {
        "tags": data.get("tags"),
        "trigger_words": data.get("trigger_words"),
        "license": data.get("licence"),
        "labels": {name: label for name, label in labels.items() if label is not None},
        "prediction_type": data.get("prediction_type"),
        "adapter_config": data.get("adapter_config"),
        "expected_sha256": data.get("sha256"),
        "max_bytes": data.get("max_bytes"),
        "source_url": data.get("url"),
        "source_repo": data.get("hf_repo"),
        "upload_id": upload.get("id"),
        "upload_bytes": upload.get("size_bytes"),
        "upload_part_bytes": upload.get("part_bytes"),
        "preview": data.get("preview"),
    }
    return {name: value for name, value in values.items() if value}


def downgrade() -> None:
    op.add_column("assets", sa.Column("data", sa.JSON(), nullable=False, server_default="{}"))
    connection = op.get_bind()
    filled = _ASSETS.update().where(_ASSETS.c.id == sa.bindparam("asset"))
    for row in connection.execute(sa.select(_ASSETS)).all():
        connection.execute(filled.values(data=_document(row._mapping)), {"asset": row.id})
    for name, _, _ in reversed(_COLUMNS):
        op.drop_column("assets", name)


def _document(row: Any) -> dict[str, Any]:
    document = {
        **(row["labels"] or {}),
        **{name: row[name] for name in (
            "tags", "trigger_words", "prediction_type", "adapter_config", "max_bytes", "preview",
        )},
        "licence": row["license"],
        "sha256": row["expected_sha256"],
        "url": row["source_url"],
        "hf_repo": row["source_repo"],
    }  # fmt: skip
    if row["upload_id"]:
        document["upload"] = {
            "id": row["upload_id"],
            "size_bytes": row["upload_bytes"],
            "part_bytes": row["upload_part_bytes"],
        }
    return {name: value for name, value in document.items() if value is not None}
