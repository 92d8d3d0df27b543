"""A push never changes which file a name means."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.asset import INCOMPLETE
from assets.errors import InvalidAsset
from assets.library.validation import MAX_NAME_BYTES, MAX_NAME_CHARS, check_name, normal_name
from serving.cli.folder import FolderFile
from serving.cli.naming import Destination, Destinations, named, plain_name
from serving.cli.output import ApiFailure


class FakeLibrary:
    """A :class:`~serving.cli.transfer.AssetApi` that only lists rows, newest last."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def call(self, method: str, path: str, **options: Any) -> Any:
        assert (method, path) == ("GET", "/v1/assets")
        query: Mapping[str, str] = options["params"]
        rows = self.rows
        if "name" in query:
            rows = [row for row in rows if row["name"] == query["name"]]
        if "sha256" in query:
            rows = [r for r in rows if r["report"].get("source_sha256") == query["sha256"]]
        return {"data": rows}

    def asset(self, reference: str) -> dict[str, Any]:
        raise NotImplementedError

    def has(self, name: str, digest: str, kind: str = "lora", status: str = "ready") -> None:
        report = {"source_sha256": digest} if status == "ready" else {}
        self.rows.append({"name": name, "status": status, "asset_type": kind, "report": report,
                          "sha256": digest})  # fmt: skip


def file(path: str, kind: str = "lora") -> FolderFile:
    return FolderFile(
        path=Path(path), kind=kind, stem=Path(path).stem, folder=Path(path).parent.name
    )


def push(
    library: FakeLibrary, *files: tuple[str, str], new_versions: bool = False
) -> list[Destination]:
    """Push (path, digest) in one run; each becomes ready."""
    chooser = Destinations(library, new_versions=new_versions)
    places = []
    for path, digest in files:
        place = chooser.find(file(path), digest)
        places.append(place)
        if place.known is None and not place.is_repeated:
            library.has(place.name, digest)
    return places


def names(places: Sequence[Destination]) -> list[str]:
    return [place.name for place in places]


def test_names_keep_letters_of_every_script() -> None:
    files = ["ネコ", "イヌ", "日本", "кот", "قطة", "बिल्ली", "แมว", "café", "Straße"]
    library = FakeLibrary()
    pushed = names(push(library, *((f"a/{name}.safetensors", name) for name in files)))
    assert pushed == [normal_name(name) for name in files]
    for name in pushed:
        check_name(name)


def test_unicode_forms_of_a_text_give_one_name() -> None:
    composed, decomposed = "café", unicodedata.normalize("NFD", "café")
    assert composed != decomposed
    assert plain_name(decomposed) == composed


def test_an_added_file_changes_no_existing_name() -> None:
    library = FakeLibrary()
    first = push(library, ("r/chars/v1.x", "c"), ("r/styles/v1.x", "s"))
    assert names(first) == ["v1", "styles-v1"]
    second = push(library, ("r/anime/v1.x", "a"), ("r/chars/v1.x", "c"), ("r/styles/v1.x", "s"))
    assert names(second) == ["anime-v1", "v1", "styles-v1"]
    assert [place.known is not None for place in second] == [False, True, True]
    third = push(library, ("elsewhere/anime/v1.x", "b"))
    assert names(third) == ["anime-v1-2"]
    assert third[0].other == "v1"


def test_known_bytes_keep_the_name_they_have() -> None:
    library = FakeLibrary()
    library.has("renamed-long-ago", "d")
    (place,) = push(library, ("x/fresh.x", "d"))
    assert (place.name, place.known is not None) == ("renamed-long-ago", True)
    library.has("fresh", "d")
    assert names(push(library, ("x/fresh.x", "d"))) == ["fresh"]
    library.has("as-vae", "e", kind="vae")  # of another kind: another asset
    (place,) = push(library, ("x/other.x", "e"))
    assert (place.name, place.known) == ("other", None)


def test_a_repeated_file_is_sent_once() -> None:
    first, again = push(FakeLibrary(), ("a/x.s", "d"), ("b/y.s", "d"))
    assert (first.is_repeated, again.is_repeated) == (False, True)
    assert again.name == "x"


def test_a_new_version_only_on_request() -> None:
    library = FakeLibrary()
    library.has("style", "old")
    assert names(push(library, ("new/style.x", "one"))) == ["new-style"]
    (place,) = push(library, ("new/style.x", "two"), new_versions=True)
    assert (place.name, place.new_version) == ("style", True)
    with pytest.raises(ApiFailure, match="--new-version"):
        named(library, "style", "three", new_version=False)
    assert named(library, "style", "three", new_version=True).new_version


def test_rejected_and_interrupted_uploads_keep_their_name() -> None:
    library = FakeLibrary()
    library.has("broken", "x", status="rejected")
    (place,) = push(library, ("a/broken.x", "mended"))
    assert (place.name, place.new_version) == ("broken", True)
    for status in INCOMPLETE:
        library = FakeLibrary()
        library.has("cut", "d", status=status)
        (place,) = push(library, ("a/cut.x", "d"))
        assert place.known is not None
        (other,) = push(library, ("a/cut.x", "another"))
        assert (other.name, other.known) == ("a-cut", None)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("My LoRA (v2)", "My-LoRA-v2"),
        ("..hidden", "hidden"),
        ("-_-", ""),
        ("★★★", ""),
        ("a/b\\c", "a-b-c"),
        ("x" * 300, "x" * MAX_NAME_CHARS),
        ("日" * 200, "日" * (MAX_NAME_BYTES // 3)),
        ("\u0301abc", "abc"),
    ],
)
def test_plain_names(stem: str, name: str) -> None:
    assert plain_name(stem) == name
    (place,) = push(FakeLibrary(), (f"f/{stem.replace('/', ' ')}.x", "0123456789abcdef" * 4))
    check_name(place.name)


@given(st.text(max_size=300), st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_every_file_gets_a_valid_unused_name(stem: str, folder: str) -> None:
    library = FakeLibrary()
    source = FolderFile(path=Path("x"), kind="lora", stem=stem, folder=folder)
    for digest in ("0" * 64, "1" * 64, "2" * 64, "3" * 64):
        place = Destinations(library, new_versions=False).find(source, digest)
        check_name(place.name)
        assert place.name not in [row["name"] for row in library.rows]
        library.has(place.name, digest)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a:b", "a@1", "a\u200bb", "x" * 129,
                                  "日" * 75, "\u0301a", "a\x00"])  # fmt: skip
def test_invalid_names_are_rejected(name: str) -> None:
    with pytest.raises(InvalidAsset, match="letters, digits"):
        check_name(name)
