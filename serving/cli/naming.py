"""Under which name of the library a file goes, so that no name comes to mean another file.

Bytes that the library has keep the name that they have. A file whose name is free gets it; where
another file has it, the folder's name goes in front, then a number behind. A name whose file was
rejected has never meant anything, and is used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from assets.library.validation import MAX_NAME_BYTES, MAX_NAME_CHARS, is_name_character, normal_name
from serving.cli.folder import FolderFile
from serving.cli.output import ApiFailure
from serving.cli.transfer import Api

_MOST_NUMBERS = 1_000
#: Of an asset that can never be used.
_USELESS = ("rejected", "error")


@dataclass(frozen=True, slots=True)
class Place:
    """``known`` is the library's asset of these bytes: ready, or an upload to go on with.
    ``other`` says which name was taken by another file; ``is_repeated``, that an earlier file of
    this run has the same bytes."""

    name: str
    known: dict[str, Any] | None = None
    new_version: bool = False
    other: str = ""
    is_repeated: bool = False


class Places:
    """Gives each file of a run its place. Not for several threads."""

    def __init__(self, client: Api, *, new_versions: bool) -> None:
        """``new_versions``: a file whose name is taken becomes its next version."""
        self._client = client
        self._new_versions = new_versions
        self._given: set[str] = set()
        self._names: dict[tuple[str, str], str] = {}

    def find(self, one: FolderFile, digest: str) -> Place:
        """Raises ApiFailure."""
        bytes_as = (one.kind, digest)
        if bytes_as in self._names:
            return Place(self._names[bytes_as], is_repeated=True)
        place = self._find(one, digest)
        self._names[bytes_as] = place.name
        self._given.add(place.name)
        return place

    def _find(self, one: FolderFile, digest: str) -> Place:
        plain = plain_name(one.stem) or f"asset-{digest[:8]}"
        same = _listed(self._client, sha256=digest)
        ready = [a for a in same if a["status"] == "ready" and a["asset_type"] == one.kind]
        if ready:
            best = next((asset for asset in ready if asset["name"] == plain), ready[0])
            return Place(best["name"], best)
        taken = ""
        for name in _candidates(plain, plain_name(one.folder), digest):
            if name in self._given:
                taken = taken or name
                continue
            place = _under(self._client, name, digest, new_versions=self._new_versions)
            if place is not None:
                return replace(place, other=taken)
            taken = taken or name
        raise AssertionError("a digest is nobody else's name")


def named(client: Api, name: str, digest: str, *, new_version: bool) -> Place:
    """The place of a file under the name that somebody chose for it.

    Raises:
        ApiFailure: another file has the name.
    """
    place = _under(client, name, digest, new_versions=new_version)
    if place is None:
        raise ApiFailure(
            f"{name} is another file's name: choose one with --name, or make this its next version "
            "with --new-version"
        )
    return place


def _under(client: Api, name: str, digest: str, *, new_versions: bool) -> Place | None:
    """None: another file has the name."""
    versions = _listed(client, name=name)
    if not versions:
        return Place(name)
    for asset in versions:
        is_begun = asset["status"] == "ready_to_upload" and asset.get("sha256") == digest
        is_there = asset["status"] == "ready" and asset["report"].get("source_sha256") == digest
        if is_begun or is_there:
            return Place(name, asset)
    if new_versions or all(asset["status"] in _USELESS for asset in versions):
        return Place(name, new_version=True)
    return None


def _listed(client: Api, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.call("GET", "/v1/assets", params=query)["data"]
    return found


def plain_name(text: str) -> str:
    """``text`` as a name may be written; letters of every script stay what they are. Empty where
    there is none in it."""
    normal = normal_name(text)
    kept = "".join(c if is_name_character(c) else " " for c in normal)
    return _cut("-".join(kept.split()).strip("-._"), 0)


def _candidates(plain: str, folder: str, digest: str) -> Iterator[str]:
    yield plain
    if folder and folder != plain:
        plain = _joined(folder, plain)
        yield plain
    for number in range(2, _MOST_NUMBERS):
        yield _cut(plain, len(f"-{number}")) + f"-{number}"
    yield f"asset-{digest[:32]}"


def _joined(folder: str, plain: str) -> str:
    room = max(8, MAX_NAME_CHARS - len(plain) - 1)
    return _cut(f"{folder[:room].rstrip('-._')}-{plain}", 0)


def _cut(name: str, room: int) -> str:
    """With ``room`` more ASCII characters it is still a name."""
    name = name[: MAX_NAME_CHARS - room]
    while len(name.encode()) > MAX_NAME_BYTES - room:
        name = name[:-1]
    while name and not name[0].isalnum():
        name = name[1:]
    return name.rstrip("-._")
