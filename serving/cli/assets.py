"""``asset-orchestrator assets``: a tenant's library, over HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from assets.errors import IngestRejected
from assets.prediction import PREDICTIONS
from serving.cli.client import Client, client_from_environment
from serving.cli.folder import FolderFile, look, scan
from serving.cli.naming import Place, Places, named, plain_name
from serving.cli.options import AsJson, Key, Url
from serving.cli.output import ApiFailure, clear_errors, show, show_one
from serving.cli.transfer import progress_bars, receive, send, sha256_of

assets = typer.Typer(help="Your assets (over HTTP).", no_args_is_help=True)

Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=32, help="Files at a time.")]
DryRun = Annotated[bool, typer.Option(help="Only say what would be sent.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="For all of them; repeatable.")]
NewVersions = Annotated[
    bool, typer.Option("--new-version", help="A file whose name is taken is its next version.")
]
PredictionType = Annotated[
    str | None,
    typer.Option(help=f"Of a checkpoint, where its file is silent: {', '.join(PREDICTIONS)}."),
]


@assets.command("push")
def push(
    paths: list[Path],
    jobs: Jobs = 4,
    tag: Tags = None,
    new_version: NewVersions = False,
    dry_run: DryRun = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Send files and folders, and wait until each is ready or rejected.

    What a file is, is told by its keys. A run that was cut off is gone on with by the same
    command; what the library has already is not sent again. A name that another file has is left
    to it: the new file gets one of its own.
    """
    found = [one for path in paths for one in _found(path)]
    _push(found, jobs, tag or [], new_version, dry_run, url, key, as_json)


@assets.command("import-folder")
def import_folder(
    folder: Path,
    jobs: Jobs = 4,
    tag: Tags = None,
    new_version: NewVersions = False,
    dry_run: DryRun = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Send a models folder of AUTOMATIC1111, Forge or ComfyUI as it lies: with the trigger words,
    descriptions and pictures that lie beside the files, and folders as tags."""
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder")
    _push(list(scan(folder)), jobs, tag or [], new_version, dry_run, url, key, as_json)


def _found(path: Path) -> Iterable[FolderFile]:
    return scan(path) if path.is_dir() else [look(path, path.parent)]


def _push(
    found: Sequence[FolderFile],
    jobs: int,
    tags: Sequence[str],
    new_versions: bool,
    dry_run: bool,
    url: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    with clear_errors(), client_from_environment(url, key) as client:
        if dry_run:
            rows = [_row(one, plain_name(one.stem), "would be sent") for one in found]
        else:
            with (
                progress_bars(as_json or not sys.stderr.isatty()) as bars,
                ThreadPoolExecutor(jobs) as pool,
                TemporaryDirectory(prefix="push-") as scratch,
            ):
                files = list(pool.map(partial(_prepared, Path(scratch)), enumerate(found)))
                places = Places(client, new_versions=new_versions)
                placed = [_placed(places, *pair) for pair in zip(found, files, strict=True)]
                total = bars.add_task("files", total=sum(not one.reason for one in found))

                def one_of(each: tuple[FolderFile, _File | str, Place | str]) -> dict[str, Any]:
                    row = _push_one(client, *each, tags, bars)
                    if not each[0].reason:
                        bars.advance(total)
                    return row

                rows = list(pool.map(one_of, zip(found, files, placed, strict=True)))
        show(rows, ("file", "name", "kind", "status", "details"), as_json)
        if any(row["status"] in ("rejected", "failed", "error") for row in rows):
            raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _File:
    """What is sent: the file itself, or a diffusers folder packed into one."""

    path: Path
    digest: str


def _prepared(scratch: Path, numbered: tuple[int, FolderFile]) -> _File | str:
    """Or why there is none."""
    number, one = numbered
    if one.reason:
        return one.reason
    try:
        path = one.path
        if path.is_dir():
            path = _packed(path, scratch / f"{number}.safetensors")
        return _File(path, sha256_of(path))
    except (OSError, IngestRejected) as error:
        return str(error)


def _packed(folder: Path, target: Path, *, is_said: bool = False) -> Path:
    from assets.formats.pack import pack_folder  # imports torch

    return pack_folder(folder, target, prediction_is_said=is_said)


def _placed(places: Places, one: FolderFile, file: _File | str) -> Place | str:
    """Where it goes, or why it cannot go anywhere."""
    if isinstance(file, str):
        return file
    try:
        return places.find(one, file.digest)
    except ApiFailure as failure:
        return str(failure)


def _push_one(
    client: Client,
    one: FolderFile,
    file: _File | str,
    place: Place | str,
    tags: Sequence[str],
    bars: Any,
) -> dict[str, Any]:
    if one.reason:
        return _row(one, "", "skipped", one.reason)
    if isinstance(file, str) or isinstance(place, str):
        return _row(one, "", "failed", str(file if isinstance(file, str) else place))
    if place.is_repeated:
        return _row(one, place.name, "repeated", "another of these files has the same bytes")
    known = place.known
    if known is not None and known["status"] == "ready":
        return {**_row(one, place.name, "there already"), "id": known["id"]}
    new = {**one.new_asset(place.name), "new_version": place.new_version}
    new["data"]["tags"] = [*new["data"]["tags"], *tags]
    try:
        asset = send(client, file.path, new, bars, digest=file.digest, begun=known)
        asset = client.await_ready(asset["id"])
        if one.preview is not None:
            path = f"/v1/assets/{asset['id']}/preview"
            client.call("PUT", path, content=one.preview.read_bytes())
    except ApiFailure as failure:
        return _row(one, place.name, "failed", str(failure))
    details = [f"{place.other} is another file's name"] if place.other else []
    details += [asset["status_details"]] if asset["status_details"] else []
    return {**_row(one, place.name, "ready", "; ".join(details)), "id": asset["id"]}


def _row(one: FolderFile, name: str, status: str, details: str = "") -> dict[str, Any]:
    if one.reason:
        status, details = "skipped", one.reason
    return {
        "file": str(one.path), "name": name, "kind": one.kind, "status": status,
        "details": details,
    }  # fmt: skip


@assets.command("upload")
def upload_asset(
    path: Path,
    kind: Annotated[str, typer.Option(help="lora, textual_inversion, checkpoint or vae.")],
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    description: str = "",
    trigger_word: Annotated[list[str] | None, typer.Option()] = None,
    prediction_type: PredictionType = None,
    adapter_config: Annotated[
        Path | None, typer.Option(help="PEFT's adapter_config.json of a LoRA.")
    ] = None,
    new_version: Annotated[
        bool, typer.Option("--new-version", help="The next version of that name, if it is taken.")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a .safetensors file, or a checkpoint's diffusers folder, and wait until it is
    ready or rejected."""
    with (
        clear_errors(),
        client_from_environment(url, key) as client,
        TemporaryDirectory(prefix="upload-") as scratch,
        progress_bars(as_json) as bars,
    ):
        name = name or plain_name(path.name if path.is_dir() else path.stem)
        if path.is_dir():
            is_said = prediction_type is not None
            path = _packed(path, Path(scratch) / "packed.safetensors", is_said=is_said)
        data = {"asset_type": kind, "trigger_words": trigger_word or []}
        new: dict[str, Any] = {
            "asset_type": kind, "name": name, "description": description, "data": data,
        }  # fmt: skip
        if prediction_type is not None:
            new["prediction_type"] = prediction_type
        if adapter_config is not None:
            new["adapter_config"] = json.loads(adapter_config.read_text(encoding="utf-8"))
        digest = sha256_of(path)
        place = named(client, name, digest, new_version=new_version)
        asset = place.known
        if asset is None or asset["status"] != "ready":
            new["new_version"] = place.new_version
            asset = send(client, path, new, bars, digest=digest, begun=asset)
            asset = client.await_ready(asset["id"])
    show_one(asset, _is_ready(asset), as_json)


def _is_ready(asset: Mapping[str, Any]) -> str:
    text = f"{asset['name']} is ready: {asset['id']}"
    return f"{text} ({asset['status_details']})" if asset["status_details"] else text


@assets.command("import")
def import_asset(
    source: Annotated[str, typer.Argument(help="A URL, or OWNER/NAME[:FILE] on Hugging Face.")],
    kind: Annotated[str, typer.Option(help="lora, textual_inversion, checkpoint or vae.")],
    name: Annotated[str, typer.Option(help="What it is called here.")],
    prediction_type: PredictionType = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Have the platform fetch it, and wait until it is ready or rejected."""
    field = "url" if "://" in source else "hf_repo"
    with clear_errors(), client_from_environment(url, key) as client:
        new = {"asset_type": kind, "name": name, field: source}
        if prediction_type is not None:
            new["prediction_type"] = prediction_type
        asset = client.call("POST", "/v1/assets", json=new)["asset"]
        asset = client.await_ready(asset["id"], timeout_s=24 * 3600.0)
        show_one(asset, _is_ready(asset), as_json)


@assets.command("pull")
def pull(
    references: list[str],
    into: Annotated[Path, typer.Option(help="A folder.")] = Path(),
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Download assets as they were uploaded, each checked by its sha256."""
    with clear_errors(), client_from_environment(url, key) as client:
        rows = [{"asset": ref, "file": str(receive(client, ref, into))} for ref in references]
        show(rows, ("asset", "file"), as_json)


@assets.command("ls")
@assets.command("list", hidden=True)
def list_assets(
    public: Annotated[bool, typer.Option(help="Everybody's.")] = False,
    shared: Annotated[bool, typer.Option(help="What others share with you.")] = False,
    search: str = "",
    tag: Annotated[list[str] | None, typer.Option()] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Your assets."""
    with clear_errors(), client_from_environment(url, key) as client:
        query: dict[str, Any] = {"is_public": public, "shared": shared, "q": search}
        rows = list(_every(client, {**query, "tag": tag or []}))
        columns = ("id", "name", "version", "asset_type", "status", "size_bytes")
        show(rows, columns, as_json)


def _every(client: Client, query: dict[str, Any]) -> Iterable[dict[str, Any]]:
    after: str | None = ""
    while after is not None:
        page = client.call("GET", "/v1/assets", params={**query, "after": after})
        yield from page["data"]
        after = page["next"]


@assets.command("get")
def get_asset(reference: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.asset(reference)
        text = f"{asset['id']} {asset['name']} {asset['status']} {asset['status_details']}".strip()
        show_one(asset, text, as_json)


@assets.command("report")
def report(reference: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """What the inspection of an asset found."""
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.asset(reference)
        if "report" not in asset:
            raise ApiFailure(f"the report of {reference} is its owner's")
        found = {"status": asset["status"], "details": asset["status_details"], **asset["report"]}
        if as_json:
            show_one(found, "", as_json)
        else:
            rows = [{"what": name, "found": value} for name, value in found.items()]
            show(rows, ("what", "found"), as_json)


@assets.command("warm")
def warm(references: list[str], url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Bring assets up on every node before anybody waits for them."""
    with clear_errors(), client_from_environment(url, key) as client:
        rows = [client.call("POST", f"/v1/assets/{ref}/warm") for ref in references]
        show(rows, ("asset_id", "found_on"), as_json)


@assets.command("where")
def where(reference: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Where an asset lies now: on which replicas' devices, in which tiers of which nodes."""
    with clear_errors(), client_from_environment(url, key) as client:
        found = client.call("GET", f"/v1/assets/{reference}/residency")
        if as_json:
            show_one(found, "", as_json)
            return
        rows = [
            {"component": part["component"], "bytes": part["size_bytes"], "place": place}
            for part in found["parts"]
            for place in [
                *(f"device of {replica}" for replica in part["replicas"]),
                *(f"{', '.join(tiers)} of {node}" for node, tiers in part["nodes"].items()),
            ] or ["store only"]
        ]  # fmt: skip
        show(rows, ("component", "bytes", "place"), as_json)


@assets.command("update")
def update_asset(
    reference: str,
    name: str | None = None,
    description: str | None = None,
    trigger_word: Annotated[list[str] | None, typer.Option()] = None,
    tag: Annotated[list[str] | None, typer.Option()] = None,
    licence: str | None = None,
    prediction_type: Annotated[
        str | None, typer.Option(help=f"Of a checkpoint: {', '.join(PREDICTIONS)} or auto.")
    ] = None,
    visibility: Annotated[
        str | None, typer.Option(help="private, organisation, shared or public.")
    ] = None,
    share_with: Annotated[list[str] | None, typer.Option(help="A tenant; repeatable.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Change what people read of an asset and who sees it; what is not given stays."""
    given = {"name": name, "description": description, "trigger_words": trigger_word, "tags": tag}
    given |= {"licence": licence, "visibility": visibility}
    given |= {"shared_with": share_with, "prediction_type": prediction_type}
    body = {field: value for field, value in given.items() if value is not None}
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.call("PATCH", f"/v1/assets/{reference}", json=body)["asset"]
        show_one(asset, f"{asset['id']} {asset['name']} is changed", as_json)


@assets.command("rm")
@assets.command("delete", hidden=True)
def delete_asset(
    references: list[str],
    for_good: Annotated[
        bool, typer.Option("--for-good", help="Not to be restored; frees the storage at once.")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Delete assets; for a week they can be restored, and count against the storage."""
    with clear_errors(), client_from_environment(url, key) as client:
        options = {"params": {"for_good": True}} if for_good else {}
        rows = [client.call("DELETE", f"/v1/assets/{ref}", **options) for ref in references]
        show(rows, ("id", "deleted_at"), as_json)


@assets.command("restore")
def restore_asset(asset_id: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Bring a deleted asset back, within a week."""
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.call("POST", f"/v1/assets/{asset_id}/restore")["asset"]
        show_one(asset, f"{asset['id']} {asset['name']} is back", as_json)
