"""The words by which assets are found, a row a word: a search looks only at what it finds."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, Index, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.asset import Asset
from assets.sql.base import Base
from assets.sql.rows import AssetRow

_LONGEST = 64
#: After every word that begins with what is before it.
_LAST = "\U0010ffff"


class WordRow(Base):
    """Words are in lower case; a tag has a # before it."""

    __tablename__ = "asset_words"
    __table_args__ = (Index("asset_words_word", "word", "asset_id"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    #: Compared byte by byte, so that what begins alike lies together.
    word: Mapped[str] = mapped_column(
        String().with_variant(String(collation="C"), "postgresql"), primary_key=True
    )
    asset_id: Mapped[str] = mapped_column(primary_key=True, index=True)


def words_in(text: str) -> set[str]:
    """Letters and digits; what is joined by underscores counts whole and in parts."""
    whole = set(re.findall(r"\w+", text.casefold()))
    parts = {part for word in whole for part in word.split("_") if part}
    return {word[:_LONGEST] for word in whole | parts if word.strip("_")}


def keep_words(session: Session, asset: Asset) -> None:
    """Make the asset be found by what it says now, within the session's transaction."""
    text = " ".join((asset.name, asset.description, *asset.trigger_words))
    words = words_in(text) | {f"#{tag.casefold()}"[: _LONGEST + 1] for tag in asset.tags}
    known = set(session.scalars(select(WordRow.word).where(WordRow.asset_id == asset.id)))
    if gone := known - words:
        mine = (WordRow.asset_id == asset.id, WordRow.word.in_(gone))
        session.execute(delete(WordRow).where(*mine))
    session.add_all(
        WordRow(tenant_id=asset.tenant_id, word=word, asset_id=asset.id) for word in words - known
    )


def found_by(word: str, tenant_id: str | None) -> ColumnElement[bool]:
    """Assets that have a word which begins so."""
    word = word.casefold()[:_LONGEST]
    return _among(tenant_id, WordRow.word >= word, WordRow.word < word + _LAST)


def tagged(tag: str, tenant_id: str | None) -> ColumnElement[bool]:
    return _among(tenant_id, WordRow.word == f"#{tag.casefold()}"[: _LONGEST + 1])


def _among(tenant_id: str | None, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    found = select(WordRow.asset_id).where(*conditions)
    if tenant_id is not None:
        found = found.where(WordRow.tenant_id == tenant_id)
    return AssetRow.id.in_(found)
