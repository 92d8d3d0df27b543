"""Resumable transfer of files to and from the library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx2
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

from serving.cli.json_body import Json
from serving.cli.output import ApiFailure

_CHUNK_BYTES = 1 << 20
#: Larger files are sent in concurrent parts.
PARTS_FROM_BYTES = 64 << 20
_PARTS_AT_ONCE = 4
_ATTEMPTS = 4
_TIMEOUT_S = 3600.0

#: Called with sent bytes; negative when an attempt is repeated.
Sent = Callable[[int], None]


class AssetApi(Protocol):
    """Both methods raise ApiFailure."""

    def call(self, method: str, path: str, **options: Any) -> Any: ...

    def asset(self, reference: str) -> Json: ...


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """On stderr: scripts read stdout."""
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True), transient=True, disable=quiet,
    ) as bars:  # fmt: skip
        yield bars


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def send(
    client: AssetApi,
    path: Path,
    new: Json,
    bars: Progress | None = None,
    *,
    digest: str,
    begun: Json | None = None,
) -> Json:
    """Create the asset ``new`` and upload its file.

    ``digest`` is the sha256; ``begun`` is an interrupted run's asset, to be resumed.

    Raises:
        ApiFailure: the platform's reason; sent parts are kept for the next run.
    """
    size = path.stat().st_size
    body = {**new, "sha256": digest}
    if size > PARTS_FROM_BYTES:
        body |= {"transfer_api_type": "multipart", "size_bytes": size}
    if begun is not None:
        created = client.call("GET", f"/v1/assets/{begun['id']}")
    else:
        created = client.call("POST", "/v1/assets", json=body)
    asset_id = str(created["asset"]["id"])
    task = bars.add_task(path.name[:32], total=size) if bars is not None else None

    def sent(count: int) -> None:
        if bars is not None:
            bars.advance(TaskID(task or 0), count)

    if created["transfer_api"]["type"] == "multipart":
        _send_parts(client, path, asset_id, sent)
    else:
        _put(created["transfer_api"]["put_url"], path, 0, size, sent)
    client.call("POST", f"/v1/assets/{asset_id}/complete-upload", json={})
    return client.asset(asset_id)


def _send_parts(client: AssetApi, path: Path, asset_id: str, sent: Sent) -> None:
    upload = client.call("GET", f"/v1/assets/{asset_id}/upload")
    sent(sum(part["size_bytes"] for part in upload["parts"]))

    def send_part(part: Json) -> None:
        _put(part["put_url"], path, part["offset"], part["size_bytes"], sent)

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        list(pool.map(send_part, upload["missing"]))


def _put(url: str, path: Path, offset: int, size: int, sent: Sent) -> None:
    """PUT a range, one chunk in memory; retry broken connections."""
    for attempt in range(1, _ATTEMPTS + 1):
        counted = 0

        def counting(count: int) -> None:
            nonlocal counted
            counted += count
            sent(count)

        try:
            answer = httpx2.put(
                url, content=_chunks(path, offset, size, counting),
                headers={"Content-Length": str(size)}, timeout=_TIMEOUT_S,
            )  # fmt: skip
        except httpx2.TransportError as error:
            sent(-counted)
            if attempt == _ATTEMPTS:
                raise ApiFailure(f"the transfer of {path.name} was interrupted: {error}") from None
            continue
        if answer.is_success:
            return
        sent(-counted)
        if answer.status_code < 500 or attempt == _ATTEMPTS:
            raise ApiFailure(
                f"the transfer of {path.name} failed: {answer.status_code} {answer.text}"
            )


def _chunks(path: Path, offset: int, size: int, sent: Sent) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(offset)
        while size:
            chunk = file.read(min(size, _CHUNK_BYTES))
            if not chunk:
                raise ApiFailure(f"{path} was truncated during the transfer")
            size -= len(chunk)
            yield chunk
            sent(len(chunk))


def receive(client: AssetApi, reference: str, folder: Path) -> Path:
    """Download an original into ``folder``, resumably; verify its sha256.

    Raises:
        ApiFailure: forbidden, failed or corrupt.
    """
    described = client.call("GET", f"/v1/assets/{reference}")
    asset, url = described["asset"], described["transfer_api"].get("get_url")
    if not url:
        raise ApiFailure(
            f"{reference} has no file that you may download: it belongs to another tenant, its "
            "original was not kept (AO_KEEP_ORIGINALS), or it is older than that setting"
        )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{asset['name']}.safetensors"
    part = target.with_name(f".{target.name}.part")
    received_bytes = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={received_bytes}-"} if received_bytes else {}
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as answer:
            if answer.is_success:  # some stores answer ranges without 206
                _write(answer, part, "ab" if "content-range" in answer.headers else "wb")
            elif answer.status_code != httpx2.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise ApiFailure(f"the download failed: {answer.status_code}")
    except httpx2.TransportError as error:
        raise ApiFailure(
            f"the download was interrupted ({error}); run the command again to resume"
        ) from None
    if sha256_of(part) != described["transfer_api"]["sha256"]:
        part.unlink()
        raise ApiFailure(f"{reference} was corrupted in transit; try again")
    part.replace(target)
    return target


def _write(answer: httpx2.Response, part: Path, mode: str) -> None:
    with open(part, mode) as file:
        for chunk in answer.iter_bytes(_CHUNK_BYTES):
            file.write(chunk)
