"""Choose a file's library name; no existing name changes its meaning.

Stored bytes keep their name. A taken name gets the folder's name in front, then a number. A
rejected file's name is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from assets.asset import INCOMPLETE
from assets.library.validation import MAX_NAME_BYTES, MAX_NAME_CHARS, is_name_character, normal_name
from serving.cli.folder import FolderFile
from serving.cli.json_body import Json
from serving.cli.output import ApiFailure
from serving.cli.transfer import AssetApi

_MOST_NUMBERS = 1_000
#: Statuses of unusable assets.
_UNUSABLE = ("rejected", "error")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a file goes.

    ``known`` has the same bytes: ready, or an upload to resume. ``other`` is the preferred name, if
    taken. ``is_repeated``: a duplicate within this run.
    """

    name: str
    known: Json | None = None
    new_version: bool = False
    other: str = ""
    is_repeated: bool = False


class Destinations:
    """Assigns a run's destinations. Not thread-safe."""

    def __init__(self, client: AssetApi, *, new_versions: bool) -> None:
        """``new_versions``: a taken name gets its next version."""
        self._client = client
        self._new_versions = new_versions
        self._assigned: set[str] = set()
        self._names: dict[tuple[str, str], str] = {}

    def find(self, file: FolderFile, digest: str) -> Destination:
        """Return the destination of a file by its sha256.

        Raises:
            ApiFailure: the library cannot be asked.
        """
        content = (file.kind, digest)
        if content in self._names:
            return Destination(self._names[content], is_repeated=True)
        place = self._find(file, digest)
        self._names[content] = place.name
        self._assigned.add(place.name)
        return place

    def _find(self, file: FolderFile, digest: str) -> Destination:
        plain = plain_name(file.stem) or f"asset-{digest[:8]}"
        same = _list_assets(self._client, sha256=digest)
        ready = [a for a in same if a["status"] == "ready" and a["asset_type"] == file.kind]
        if ready:
            best = next((asset for asset in ready if asset["name"] == plain), ready[0])
            return Destination(best["name"], best)
        taken = ""
        for name in _candidates(plain, plain_name(file.folder), digest):
            if name in self._assigned:
                taken = taken or name
                continue
            place = _place_under(self._client, name, digest, new_versions=self._new_versions)
            if place is not None:
                return replace(place, other=taken)
            taken = taken or name
        raise AssertionError(f"every candidate name for {plain} is taken")


def named(client: AssetApi, name: str, digest: str, *, new_version: bool) -> Destination:
    """Return the destination under a chosen name.

    Raises:
        ApiFailure: another file has the name.
    """
    place = _place_under(client, name, digest, new_versions=new_version)
    if place is None:
        raise ApiFailure(
            f"{name} is another file's name: choose another with --name, or upload a new version "
            "with --new-version"
        )
    return place


def _place_under(
    client: AssetApi, name: str, digest: str, *, new_versions: bool
) -> Destination | None:
    """None if another file has the name."""
    versions = _list_assets(client, name=name)
    if not versions:
        return Destination(name)
    for asset in versions:
        is_started = asset["status"] in INCOMPLETE and asset.get("sha256") == digest
        is_stored = asset["status"] == "ready" and asset["report"].get("source_sha256") == digest
        if is_started or is_stored:
            return Destination(name, asset)
    if new_versions or all(asset["status"] in _UNUSABLE for asset in versions):
        return Destination(name, new_version=True)
    return None


def _list_assets(client: AssetApi, **query: str) -> list[Json]:
    assets: list[Json] = client.call("GET", "/v1/assets", params=query)["data"]
    return assets


def plain_name(text: str) -> str:
    """Return a valid name with letters of every script, or ""."""
    normal = normal_name(text)
    kept = "".join(c if is_name_character(c) else " " for c in normal)
    return _cut("-".join(kept.split()).strip("-._"), 0)


def _candidates(plain: str, folder: str, digest: str) -> Iterator[str]:
    yield plain
    if folder and folder != plain:
        plain = _join(folder, plain)
        yield plain
    for number in range(2, _MOST_NUMBERS):
        yield _cut(plain, len(f"-{number}")) + f"-{number}"
    yield f"asset-{digest[:32]}"


def _join(folder: str, plain: str) -> str:
    length = max(8, MAX_NAME_CHARS - len(plain) - 1)
    return _cut(f"{folder[:length].rstrip('-._')}-{plain}", 0)


def _cut(name: str, reserve: int) -> str:
    """Leave room for ``reserve`` ASCII characters."""
    name = name[: MAX_NAME_CHARS - reserve]
    while len(name.encode()) > MAX_NAME_BYTES - reserve:
        name = name[:-1]
    while name and not name[0].isalnum():
        name = name[1:]
    return name.rstrip("-._")
