"""The words by which assets are found, each in an index of its own instead of in one text."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_WORD = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    words = op.create_table(
        "asset_words",
        sa.Column("tenant_id", sa.String(), primary_key=True),
        sa.Column("word", _WORD, primary_key=True),
        sa.Column("asset_id", sa.String(), primary_key=True, index=True),
    )
    op.create_index("asset_words_word", "asset_words", ["word", "asset_id"])
    rows = op.get_bind().execute(sa.text("SELECT id, tenant_id, words FROM assets")).all()
    found = [
        {"tenant_id": tenant_id, "word": word, "asset_id": asset_id}
        for asset_id, tenant_id, text in rows
        for word in _words(text)
    ]
    if found:
        op.bulk_insert(words, found)
    op.drop_column("assets", "words")


def _words(text: str) -> set[str]:
    """As they were kept: what is written about an asset in a line, then a line a tag."""
    plain, *tags = text.split("\n")
    whole = set(re.findall(r"\w+", plain))
    parts = {part for word in whole for part in word.split("_") if part}
    return {word[:64] for word in whole | parts} | {tag[:65] for tag in tags if tag}


def downgrade() -> None:
    op.add_column("assets", sa.Column("words", sa.String(), nullable=False, server_default=""))
    op.drop_table("asset_words")
