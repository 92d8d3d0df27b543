"""The words by which assets are found, a row a word: a search looks only at what it finds."""

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
    """Make the asset be found by what it says now, and not when it is deleted, within the
    session's transaction."""
    text = " ".join((asset.name, asset.description, *asset.trigger_words))
    said = words_in(text) | set(map(_tag, asset.tags))
    words = set() if asset.is_deleted else said
    known = set(session.scalars(select(WordRow.word).where(WordRow.asset_id == asset.id)))
    if gone := known - words:
        mine = (WordRow.asset_id == asset.id, WordRow.word.in_(gone))
        session.execute(delete(WordRow).where(*mine))
    session.add_all(
        WordRow(tenant_id=asset.tenant_id, word=word, asset_id=asset.id) for word in words - known
    )


def search_terms(text: str, tags: Sequence[str]) -> list[str]:
    """The distinct words of ``text``, and each tag with a # before it.

    Raises:
        InvalidAsset: more than MAX_TERMS.
    """
    words = [word for word in re.findall(r"\w+", text.casefold()) if word.strip("_")]
    terms = [word[:_LONGEST] for word in words] + [_tag(tag) for tag in tags]
    distinct = list(dict.fromkeys(terms))
    if len(distinct) > MAX_TERMS:
        raise InvalidAsset("q", f"a search has at most {MAX_TERMS} different words and tags")
    # What begins with a word begins with the beginnings of that word, too.
    return [term for term in distinct if not any(map(_extends(term), distinct))]


def _extends(term: str) -> Callable[[str], bool]:
    """Whether a word is a longer one that begins with ``term``; a tag is whole."""
    return lambda other: other != term and not term.startswith("#") and other.startswith(term)


def with_all(terms: Sequence[str], tenant_id: str | None) -> SelectBase:
    """The ids of assets that have every tag, and a word that begins with each of the words."""
    found = [_with(term, tenant_id) for term in terms]
    return found[0] if len(found) == 1 else intersect(*found)


def _with(term: str, tenant_id: str | None) -> Select[str]:
    found = select(WordRow.asset_id)
    if tenant_id is not None:
        found = found.where(WordRow.tenant_id == tenant_id)
    if term.startswith("#"):
        return found.where(WordRow.word == term)
    return found.where(WordRow.word >= term, WordRow.word < term + _LAST)


def _tag(tag: str) -> str:
    return f"#{tag.casefold()}"[: _LONGEST + 1]
