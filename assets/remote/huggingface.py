"""From a Hugging Face repository to the one file of it that is meant.

The hub's interface: https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from assets.errors import FetchFailed

HUB = "https://huggingface.co"
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}\Z", re.ASCII)
_SUFFIX = ".safetensors"
#: What a diffusers folder has at its top, and the folders of its components.
_PIPELINE = "model_index.json"
_COMPONENTS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "transformer", "text_encoder_3",
)  # fmt: skip
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class HubFile:
    """``sha256`` is what the hub says it is, where it says so; ``adapter_config_url`` is PEFT's
    configuration beside an adapter's file."""

    url: str
    sha256: str | None
    adapter_config_url: str | None = None


def check_repository(repository: str) -> None:
    """Raises FetchFailed unless it is written ``owner/name`` or ``owner/name:file``."""
    name, _, file = repository.partition(":")
    if not _REPOSITORY.match(name) or ".." in repository or len(file) > 512:
        raise FetchFailed(f"{repository!r} is no repository; write owner/name or owner/name:file")


def download_url(url: str) -> str:
    """Where a file can be fetched that a person has copied the address of.

    Raises:
        FetchFailed: the address is a page that does not say which file is meant.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if host in ("huggingface.co", "hf.co", "www.huggingface.co"):
        page = re.match(r"/[^/]+/[^/]+/(blob)/", parts.path)
        if page is not None:
            path = parts.path[: page.start(1)] + "resolve" + parts.path[page.end(1) :]
            return urlunsplit(parts._replace(path=path))
        if re.fullmatch(r"/[^/]+/[^/]+/?(tree/.*)?", parts.path):
            raise FetchFailed(
                "this is the page of a repository: give its name as hf_repo, owner/name or "
                "owner/name:file"
            )
    if host in ("civitai.com", "www.civitai.com") and re.match(r"/(models|images)/", parts.path):
        raise FetchFailed(
            "this is a page of Civitai: give the link of its Download button "
            "(https://civitai.com/api/download/models/…)"
        )
    if host == "github.com" and "/blob/" in parts.path:
        raise FetchFailed("this is a page of GitHub: give the link of its Raw button")
    return url


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
        if len(found) != 1 and _PIPELINE in files:
            raise FetchFailed(_is_pipeline(name, found))
        if len(found) != 1:
            raise FetchFailed(_which(name, found, files))
        (wanted,) = found
    if wanted not in files:
        raise FetchFailed(_which(name, [], files))
    if _PIPELINE in files and wanted.partition("/")[0] in _COMPONENTS and "/" in wanted:
        raise FetchFailed(_is_pipeline(name, []))
    revision = info.get("sha")
    revision = revision if isinstance(revision, str) and revision.isalnum() else "main"
    base = f"{endpoint}/{name}/resolve/{revision}"
    folder, _, file = wanted.rpartition("/")
    config = f"{folder}/{_ADAPTER_CONFIG}" if folder else _ADAPTER_CONFIG
    has_config = file.startswith("adapter_model") and config in files
    config_url = f"{base}/{quote(config)}" if has_config else None
    return HubFile(f"{base}/{quote(wanted)}", files[wanted], config_url)


def _is_pipeline(name: str, found: Sequence[str]) -> str:
    """What to do with a repository that is a diffusers folder."""
    singles = f", or import one of its single files as {name}:FILE ({', '.join(found[:5])})"
    return (
        f"{name} is a diffusers folder (it has a {_PIPELINE}), and an import is one file: download "
        f"it (`hf download {name} --local-dir FOLDER`) and send it with `asset-orchestrator assets "
        f"push FOLDER`" + (singles if found else "")
    )


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
