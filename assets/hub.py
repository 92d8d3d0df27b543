"""From a Hugging Face repository to the one file of it that is meant.

The hub's interface: https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from assets.errors import FetchFailed

HUB = "https://huggingface.co"
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}\Z", re.ASCII)
_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class HubFile:
    """``sha256`` is what the hub says it is, where it says so."""

    url: str
    sha256: str | None


def check_repository(repository: str) -> None:
    """Raises FetchFailed unless it is written ``owner/name`` or ``owner/name:file``."""
    name, _, file = repository.partition(":")
    if not _REPOSITORY.match(name) or ".." in repository or len(file) > 512:
        raise FetchFailed(f"{repository!r} is no repository; write owner/name or owner/name:file")


def find_file(repository: str, fetch_json: Callable[[str], Any], endpoint: str = HUB) -> HubFile:
    """The file after the colon of ``owner/name:file``, else the only .safetensors of the
    repository's top.

    Raises:
        FetchFailed: there is no such file, or several that it could be; names them.
    """
    check_repository(repository)
    name, _, wanted = repository.partition(":")
    info = fetch_json(f"{endpoint}/api/models/{name}?blobs=true")
    files = _files(info)
    if not wanted:
        found = [path for path in files if "/" not in path and path.endswith(_SUFFIX)]
        if len(found) != 1:
            raise FetchFailed(_which(name, found, files))
        (wanted,) = found
    if wanted not in files:
        raise FetchFailed(_which(name, [], files))
    revision = info.get("sha")
    revision = revision if isinstance(revision, str) and revision.isalnum() else "main"
    return HubFile(f"{endpoint}/{name}/resolve/{revision}/{quote(wanted)}", files[wanted])


def _files(info: Any) -> dict[str, str | None]:
    """sha256 by path, as far as the hub tells."""
    siblings = info.get("siblings") if isinstance(info, dict) else None
    files: dict[str, str | None] = {}
    for sibling in siblings if isinstance(siblings, list) else []:
        path = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if isinstance(path, str) and ".." not in path.split("/"):
            lfs = sibling.get("lfs")
            digest = lfs.get("sha256") if isinstance(lfs, dict) else None
            files[path] = digest if isinstance(digest, str) else None
    return files


def _which(name: str, found: Sequence[str], files: Sequence[str] | dict[str, str | None]) -> str:
    candidates = list(found) or [path for path in files if path.endswith(_SUFFIX)]
    listed = ", ".join(sorted(candidates)[:10]) or "none"
    return f"say which file of {name} is meant, as {name}:FILE; its {_SUFFIX} files: {listed}" + (
        " …" if len(candidates) > 10 else ""
    )
