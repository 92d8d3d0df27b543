"""Under which names files go: a name never comes to mean another file by a push."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.errors import InvalidAsset
from assets.library.validation import MAX_NAME_BYTES, MAX_NAME_CHARS, check_name, normal_name
from serving.cli.folder import FolderFile
from serving.cli.naming import Place, Places, named, plain_name
from serving.cli.output import ApiFailure


class Library:
    """An :class:`~serving.cli.transfer.Api` over rows, newest last; lists what is asked for."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def call(self, method: str, path: str, **options: Any) -> Any:
        assert (method, path) == ("GET", "/v1/assets")
        wanted: Mapping[str, str] = options["params"]
        found = self.rows
        if "name" in wanted:
            found = [row for row in found if row["name"] == wanted["name"]]
        if "sha256" in wanted:
            found = [r for r in found if r["report"].get("source_sha256") == wanted["sha256"]]
        return {"data": found}

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


def push(library: Library, *files: tuple[str, str], new_versions: bool = False) -> list[Place]:
    """Paths and digests, in the order of one run; each becomes ready."""
    places = Places(library, new_versions=new_versions)
    found = []
    for path, digest in files:
        place = places.find(file(path), digest)
        found.append(place)
        if place.known is None and not place.is_repeated:
            library.has(place.name, digest)
    return found


def names(places: Sequence[Place]) -> list[str]:
    return [place.name for place in places]


def test_letters_of_every_script_stay_apart() -> None:
    files = ["ネコ", "イヌ", "日本", "кот", "قطة", "बिल्ली", "แมว", "café", "Straße"]
    library = Library()
    found = names(push(library, *((f"a/{name}.safetensors", name) for name in files)))
    assert found == [normal_name(name) for name in files]
    for name in found:
        check_name(name)


def test_two_spellings_of_one_text_are_one_name() -> None:
    composed, apart = "café", unicodedata.normalize("NFD", "café")
    assert composed != apart
    assert plain_name(apart) == composed


def test_a_file_more_in_a_folder_moves_no_name() -> None:
    library = Library()
    first = push(library, ("r/chars/v1.x", "c"), ("r/styles/v1.x", "s"))
    assert names(first) == ["v1", "styles-v1"]
    second = push(library, ("r/anime/v1.x", "a"), ("r/chars/v1.x", "c"), ("r/styles/v1.x", "s"))
    assert names(second) == ["anime-v1", "v1", "styles-v1"]
    assert [place.known is not None for place in second] == [False, True, True]
    third = push(library, ("elsewhere/anime/v1.x", "b"))
    assert names(third) == ["anime-v1-2"]
    assert third[0].other == "v1"


def test_bytes_that_the_library_has_are_found_under_any_name() -> None:
    library = Library()
    library.has("renamed-long-ago", "d")
    (place,) = push(library, ("x/fresh.x", "d"))
    assert (place.name, place.known is not None) == ("renamed-long-ago", True)
    library.has("fresh", "d")
    assert names(push(library, ("x/fresh.x", "d"))) == ["fresh"]
    library.has("as-vae", "e", kind="vae")  # the same bytes as another kind are another asset
    (place,) = push(library, ("x/other.x", "e"))
    assert (place.name, place.known) == ("other", None)


def test_one_file_twice_in_a_run_is_sent_once() -> None:
    first, again = push(Library(), ("a/x.s", "d"), ("b/y.s", "d"))
    assert (first.is_repeated, again.is_repeated) == (False, True)
    assert again.name == "x"


def test_a_new_version_only_when_it_is_asked_for() -> None:
    library = Library()
    library.has("style", "old")
    assert names(push(library, ("new/style.x", "one"))) == ["new-style"]
    (place,) = push(library, ("new/style.x", "two"), new_versions=True)
    assert (place.name, place.new_version) == ("style", True)
    with pytest.raises(ApiFailure, match="--new-version"):
        named(library, "style", "three", new_version=False)
    assert named(library, "style", "three", new_version=True).new_version


def test_what_was_rejected_or_cut_off_keeps_its_name() -> None:
    library = Library()
    library.has("broken", "x", status="rejected")
    (place,) = push(library, ("a/broken.x", "mended"))
    assert (place.name, place.new_version) == ("broken", True)
    library = Library()
    library.has("cut", "d", status="ready_to_upload")
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
def test_a_name_that_can_be_written(stem: str, name: str) -> None:
    assert plain_name(stem) == name
    (place,) = push(Library(), (f"f/{stem.replace('/', ' ')}.x", "0123456789abcdef" * 4))
    check_name(place.name)


@given(st.text(max_size=300), st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_whatever_a_file_is_called_its_names_are_names(stem: str, folder: str) -> None:
    library = Library()
    one = FolderFile(path=Path("x"), kind="lora", stem=stem, folder=folder)
    for digest in ("0" * 64, "1" * 64, "2" * 64, "3" * 64):
        place = Places(library, new_versions=False).find(one, digest)
        check_name(place.name)
        assert place.name not in [row["name"] for row in library.rows]
        library.has(place.name, digest)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a:b", "a@1", "a\u200bb", "x" * 129,
                                  "日" * 75, "\u0301a", "a\x00"])  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidAsset, match="letters, digits"):
        check_name(name)
