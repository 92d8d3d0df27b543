"""The search index: one row per asset and word, so that a search reads only matching rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sqlalchemy import Index, Select, SelectBase, String, delete, intersect, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.asset import Asset
from assets.errors import InvalidAsset
from assets.sql.base import Base

_LONGEST = 64
#: Each term costs one more set to intersect.
MAX_TERMS = 8
#: Appended to a prefix, it sorts after every word with that prefix.
_LAST = "\U0010ffff"


class WordRow(Base):
    """A case-folded word of an asset, or a tag with a # before it."""

    __tablename__ = "asset_words"
    __table_args__ = (Index("asset_words_word", "word", "asset_id"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    #: Collation C (byte order), so that a prefix search is one range of the index.
    word: Mapped[str] = mapped_column(
        String().with_variant(String(collation="C"), "postgresql"), primary_key=True
    )
    asset_id: Mapped[str] = mapped_column(primary_key=True, index=True)


def words_in(text: str) -> set[str]:
    """Return the case-folded words of ``text``. A word with underscores counts as a whole and in
    parts."""
    whole = set(re.findall(r"\w+", text.casefold()))
    parts = {part for word in whole for part in word.split("_") if part}
    return {word[:_LONGEST] for word in whole | parts if word.strip("_")}


def index_words(session: Session, asset: Asset) -> None:
    """Update the index to the asset's present words and tags (none when it is deleted), within the
    session's transaction."""
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
    """Return the distinct words of ``text``, and each tag with a # before it. A word that is a
    prefix of another one is left out.

    Raises:
        InvalidAsset: more than MAX_TERMS.
    """
    words = [word for word in re.findall(r"\w+", text.casefold()) if word.strip("_")]
    terms = [word[:_LONGEST] for word in words] + [_tag(tag) for tag in tags]
    distinct = list(dict.fromkeys(terms))
    if len(distinct) > MAX_TERMS:
        raise InvalidAsset("q", f"a search has at most {MAX_TERMS} different words and tags")
    # An asset that matches the longer word matches its prefixes too.
    return [term for term in distinct if not any(map(_extends(term), distinct))]


def _extends(term: str) -> Callable[[str], bool]:
    """Return a predicate: does a word have ``term`` as a proper prefix? Nothing extends a tag."""
    return lambda other: other != term and not term.startswith("#") and other.startswith(term)


def assets_matching(terms: Sequence[str], tenant_id: str | None) -> SelectBase:
    """Select the ids of assets that match every term: tags exactly, words by prefix."""
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
