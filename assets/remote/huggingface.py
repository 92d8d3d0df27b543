"""Find the URL of a file in a Hugging Face repository.

The hub's API: https://huggingface.co/docs/hub/api
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
#: Of a diffusers folder.
_PIPELINE = "model_index.json"
_COMPONENTS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "transformer", "text_encoder_3",
)  # fmt: skip
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class HubFile:
    """``sha256`` is the hub's, if stated; ``adapter_config_url`` is the PEFT configuration beside
    an adapter."""

    url: str
    sha256: str | None
    adapter_config_url: str | None = None


def check_repository(repository: str) -> None:
    """Raise FetchFailed unless it is ``owner/name`` or ``owner/name:file``."""
    name, _, file = repository.partition(":")
    if not _REPOSITORY.match(name) or ".." in repository or len(file) > 512:
        raise FetchFailed(
            f"{repository!r} is not a repository; write owner/name or owner/name:file"
        )


def download_url(url: str) -> str:
    """Return the download URL of a file's page; other URLs unchanged.

    Raises:
        FetchFailed: the page identifies no file.
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
                "this URL is the page of a repository: give its name as hf_repo, owner/name or "
                "owner/name:file"
            )
    if host in ("civitai.com", "www.civitai.com") and re.match(r"/(models|images)/", parts.path):
        raise FetchFailed(
            "this URL is a page of Civitai: give the link of its Download button "
            "(https://civitai.com/api/download/models/…)"
        )
    if host == "github.com" and "/blob/" in parts.path:
        raise FetchFailed("this URL is a page of GitHub: give the link of its Raw button")
    return url


def find_file(repository: str, fetch_json: Callable[[str], Any], endpoint: str = HUB) -> HubFile:
    """Return the named file, or the only top-level .safetensors file.

    Raises:
        FetchFailed: no such file, or several, which are listed.
    """
    check_repository(repository)
    name, _, path = repository.partition(":")
    info = fetch_json(f"{endpoint}/api/models/{name}?blobs=true")
    files = _files(info)
    if not path:
        candidates = [path for path in files if "/" not in path and path.endswith(_SUFFIX)]
        if len(candidates) != 1 and _PIPELINE in files:
            raise FetchFailed(_pipeline_advice(name, candidates))
        if len(candidates) != 1:
            raise FetchFailed(_which_file(name, candidates, files))
        (path,) = candidates
    if path not in files:
        raise FetchFailed(_which_file(name, [], files))
    if _PIPELINE in files and path.partition("/")[0] in _COMPONENTS and "/" in path:
        raise FetchFailed(_pipeline_advice(name, []))
    revision = info.get("sha")
    revision = revision if isinstance(revision, str) and revision.isalnum() else "main"
    base = f"{endpoint}/{name}/resolve/{revision}"
    folder, _, file = path.rpartition("/")
    config = f"{folder}/{_ADAPTER_CONFIG}" if folder else _ADAPTER_CONFIG
    has_config = file.startswith("adapter_model") and config in files
    config_url = f"{base}/{quote(config)}" if has_config else None
    return HubFile(f"{base}/{quote(path)}", files[path], config_url)


def _pipeline_advice(name: str, singles: Sequence[str]) -> str:
    alternative = f", or import one of its single files as {name}:FILE ({', '.join(singles[:5])})"
    return (
        f"{name} is a diffusers folder (it has a {_PIPELINE}), and an import is one file: download "
        f"it (`hf download {name} --local-dir FOLDER`) and send it with `asset-orchestrator assets "
        f"push FOLDER`" + (alternative if singles else "")
    )


def _files(info: Any) -> dict[str, str | None]:
    siblings = info.get("siblings") if isinstance(info, dict) else None
    files: dict[str, str | None] = {}
    for sibling in siblings if isinstance(siblings, list) else []:
        path = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if isinstance(path, str) and ".." not in path.split("/"):
            lfs = sibling.get("lfs")
            digest = lfs.get("sha256") if isinstance(lfs, dict) else None
            files[path] = digest if isinstance(digest, str) else None
    return files


def _which_file(
    name: str, candidates: Sequence[str], files: Sequence[str] | dict[str, str | None]
) -> str:
    candidates = list(candidates) or [path for path in files if path.endswith(_SUFFIX)]
    listed = ", ".join(sorted(candidates)[:10]) or "none"
    return f"say which file of {name} to import, as {name}:FILE; its {_SUFFIX} files: {listed}" + (
        " …" if len(candidates) > 10 else ""
    )
