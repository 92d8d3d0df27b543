"""The search index: one row per asset and word."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sqlalchemy import Index, Select, SelectBase, String, delete, intersect, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.asset import Asset
from assets.errors import InvalidAsset
from assets.sql.base import Base

_LONGEST = 64
#: Each is one more set to intersect.
MAX_TERMS = 8
#: Sorts after any character.
_LAST = "\U0010ffff"


class WordRow(Base):
    """A case-folded word of an asset, or ``#`` and a tag."""

    __tablename__ = "asset_words"
    __table_args__ = (Index("asset_words_word", "word", "asset_id"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    #: Byte order: a prefix is one index range.
    word: Mapped[str] = mapped_column(
        String().with_variant(String(collation="C"), "postgresql"), primary_key=True
    )
    asset_id: Mapped[str] = mapped_column(primary_key=True, index=True)


def words_in(text: str) -> set[str]:
    """Return case-folded words, those with underscores also in parts."""
    whole = set(re.findall(r"\w+", text.casefold()))
    parts = {part for word in whole for part in word.split("_") if part}
    return {word[:_LONGEST] for word in whole | parts if word.strip("_")}


def index_words(session: Session, asset: Asset) -> None:
    """Index the asset's words and tags; none when it is deleted."""
    text = " ".join((asset.name, asset.description, *asset.trigger_words))
    present = words_in(text) | set(map(_tag, asset.tags))
    words = set() if asset.is_deleted else present
    indexed = set(session.scalars(select(WordRow.word).where(WordRow.asset_id == asset.id)))
    if removed := indexed - words:
        conditions = (WordRow.asset_id == asset.id, WordRow.word.in_(removed))
        session.execute(delete(WordRow).where(*conditions))
    session.add_all(
        WordRow(tenant_id=asset.tenant_id, word=word, asset_id=asset.id) for word in words - indexed
    )


def search_terms(text: str, tags: Sequence[str]) -> list[str]:
    """Return distinct words that no other extends, and each tag after a #.

    Raises:
        InvalidAsset: more than MAX_TERMS.
    """
    words = [word for word in re.findall(r"\w+", text.casefold()) if word.strip("_")]
    terms = [word[:_LONGEST] for word in words] + [_tag(tag) for tag in tags]
    distinct = list(dict.fromkeys(terms))
    if len(distinct) > MAX_TERMS:
        raise InvalidAsset("q", f"a search has at most {MAX_TERMS} different words and tags")
    # The longer word's matches are enough.
    return [term for term in distinct if not any(map(_extends(term), distinct))]


def _extends(term: str) -> Callable[[str], bool]:
    """Whether a word has ``term`` as a proper prefix; nothing extends a tag."""
    return lambda other: other != term and not term.startswith("#") and other.startswith(term)


def assets_matching(terms: Sequence[str], tenant_id: str | None) -> SelectBase:
    """Select assets that match every term: tags exactly, words by prefix."""
    matches = [_with(term, tenant_id) for term in terms]
    return matches[0] if len(matches) == 1 else intersect(*matches)


def _with(term: str, tenant_id: str | None) -> Select[str]:
    asset_ids = select(WordRow.asset_id)
    if tenant_id is not None:
        asset_ids = asset_ids.where(WordRow.tenant_id == tenant_id)
    if term.startswith("#"):
        return asset_ids.where(WordRow.word == term)
    return asset_ids.where(WordRow.word >= term, WordRow.word < term + _LAST)


def _tag(tag: str) -> str:
    return f"#{tag.casefold()}"[: _LONGEST + 1]
