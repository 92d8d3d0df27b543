"""``asset-orchestrator assets``: manage a tenant's library over HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
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
from serving.cli.json_body import Json
from serving.cli.naming import Destination, Destinations, named, plain_name
from serving.cli.options import AsJson, Key, Url
from serving.cli.output import ApiFailure, clear_errors, show, show_one
from serving.cli.transfer import progress_bars, receive, send, sha256_of

assets = typer.Typer(help="Your assets (over HTTP).", no_args_is_help=True)

Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=32, help="Concurrent files.")]
DryRun = Annotated[bool, typer.Option(help="Print what would be sent and send nothing.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Tag every asset; repeatable.")]
NewVersions = Annotated[
    bool, typer.Option("--new-version", help="Upload as the next version if the name is taken.")
]
PredictionType = Annotated[
    str | None,
    typer.Option(help=f"Of a checkpoint whose file does not say: {', '.join(PREDICTIONS)}."),
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
    """Upload files and folders, and wait until each is ready or rejected.

    Tensor keys determine the kind. Repeat the command to resume; the library's files are not sent
    again. A different file with a taken name gets a new name.
    """
    files = [file for path in paths for file in _files_at(path)]
    _push(files, jobs, tag or [], new_version, dry_run, url, key, as_json)


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
    """Upload a models folder of AUTOMATIC1111, Forge or ComfyUI.

    Includes the trigger words, descriptions and previews beside files. Subfolders become tags.
    """
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder")
    _push(list(scan(folder)), jobs, tag or [], new_version, dry_run, url, key, as_json)


def _files_at(path: Path) -> Iterable[FolderFile]:
    return scan(path) if path.is_dir() else [look(path, path.parent)]


def _push(
    files: Sequence[FolderFile],
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
            rows = [_row(file, plain_name(file.stem), "would be sent") for file in files]
        else:
            with (
                progress_bars(as_json or not sys.stderr.isatty()) as bars,
                ThreadPoolExecutor(jobs) as pool,
                TemporaryDirectory(prefix="push-") as scratch,
            ):
                payloads = list(pool.map(partial(_prepare, Path(scratch)), enumerate(files)))
                names = Destinations(client, new_versions=new_versions)
                places = [_place(names, *pair) for pair in zip(files, payloads, strict=True)]
                total = bars.add_task("files", total=sum(not file.reason for file in files))

                def push_file(
                    item: tuple[FolderFile, _Payload | str, Destination | str],
                ) -> Json:
                    row = _push_file(client, *item, tags, bars)
                    if not item[0].reason:
                        bars.advance(total)
                    return row

                rows = list(pool.map(push_file, zip(files, payloads, places, strict=True)))
        show(rows, ("file", "name", "kind", "status", "details"), as_json)
        if any(row["status"] in ("rejected", "failed", "error") for row in rows):
            raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Payload:
    path: Path
    digest: str


def _prepare(scratch: Path, numbered: tuple[int, FolderFile]) -> _Payload | str:
    number, file = numbered
    if file.reason:
        return file.reason
    try:
        path = file.path
        if path.is_dir():
            path = _pack(path, scratch / f"{number}.safetensors")
        return _Payload(path, sha256_of(path))
    except (OSError, IngestRejected) as error:
        return str(error)


def _pack(folder: Path, target: Path, *, prediction_is_declared: bool = False) -> Path:
    from assets.formats.pack import pack_folder  # imports torch

    return pack_folder(folder, target, prediction_is_declared=prediction_is_declared)


def _place(names: Destinations, file: FolderFile, payload: _Payload | str) -> Destination | str:
    if isinstance(payload, str):
        return payload
    try:
        return names.find(file, payload.digest)
    except ApiFailure as failure:
        return str(failure)


def _push_file(
    client: Client,
    file: FolderFile,
    payload: _Payload | str,
    place: Destination | str,
    tags: Sequence[str],
    bars: Any,
) -> Json:
    if file.reason:
        return _row(file, "", "skipped", file.reason)
    if isinstance(payload, str) or isinstance(place, str):
        return _row(file, "", "failed", str(payload if isinstance(payload, str) else place))
    if place.is_repeated:
        return _row(file, place.name, "repeated", "another file of this run has the same bytes")
    known = place.known
    if known is not None and known["status"] == "ready":
        return {**_row(file, place.name, "there already"), "id": known["id"]}
    new = {**file.new_asset(place.name), "new_version": place.new_version}
    new["data"]["tags"] = [*new["data"]["tags"], *tags]
    try:
        asset = send(client, payload.path, new, bars, digest=payload.digest, begun=known)
        asset = client.await_ready(asset["id"])
        if file.preview is not None:
            path = f"/v1/assets/{asset['id']}/preview"
            client.call("PUT", path, content=file.preview.read_bytes())
    except ApiFailure as failure:
        return _row(file, place.name, "failed", str(failure))
    details = [f"{place.other} is another file's name"] if place.other else []
    details += [asset["status_details"]] if asset["status_details"] else []
    return {**_row(file, place.name, "ready", "; ".join(details)), "id": asset["id"]}


def _row(file: FolderFile, name: str, status: str, details: str = "") -> Json:
    if file.reason:
        status, details = "skipped", file.reason
    return {
        "file": str(file.path), "name": name, "kind": file.kind, "status": status,
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
        bool, typer.Option("--new-version", help="Upload as the next version if the name is taken.")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a .safetensors file or checkpoint's diffusers folder; wait until ready or rejected."""
    with (
        clear_errors(),
        client_from_environment(url, key) as client,
        TemporaryDirectory(prefix="upload-") as scratch,
        progress_bars(as_json) as bars,
    ):
        name = name or plain_name(path.name if path.is_dir() else path.stem)
        if path.is_dir():
            prediction_is_declared = prediction_type is not None
            path = _pack(
                path,
                Path(scratch) / "packed.safetensors",
                prediction_is_declared=prediction_is_declared,
            )
        data = {"asset_type": kind, "trigger_words": trigger_word or []}
        new: Json = {
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
    show_one(asset, _ready_text(asset), as_json)


def _ready_text(asset: Json) -> str:
    text = f"{asset['name']} is ready: {asset['id']}"
    return f"{text} ({asset['status_details']})" if asset["status_details"] else text


@assets.command("import")
def import_asset(
    source: Annotated[str, typer.Argument(help="A URL, or OWNER/NAME[:FILE] on Hugging Face.")],
    kind: Annotated[str, typer.Option(help="lora, textual_inversion, checkpoint or vae.")],
    name: Annotated[str, typer.Option(help="The asset's name in the library.")],
    prediction_type: PredictionType = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Import from a URL or Hugging Face; wait until ready or rejected."""
    field = "url" if "://" in source else "hf_repo"
    with clear_errors(), client_from_environment(url, key) as client:
        new = {"asset_type": kind, "name": name, field: source}
        if prediction_type is not None:
            new["prediction_type"] = prediction_type
        asset = client.call("POST", "/v1/assets", json=new)["asset"]
        asset = client.await_ready(asset["id"], timeout_s=24 * 3600.0)
        show_one(asset, _ready_text(asset), as_json)


@assets.command("pull")
def pull(
    references: list[str],
    into: Annotated[Path, typer.Option(help="The target folder.")] = Path(),
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Download assets' original files and verify their sha256."""
    with clear_errors(), client_from_environment(url, key) as client:
        rows = [{"asset": ref, "file": str(receive(client, ref, into))} for ref in references]
        show(rows, ("asset", "file"), as_json)


@assets.command("ls")
@assets.command("list", hidden=True)
def list_assets(
    public: Annotated[bool, typer.Option(help="List public assets.")] = False,
    shared: Annotated[bool, typer.Option(help="List assets that others share with you.")] = False,
    search: str = "",
    tag: Annotated[list[str] | None, typer.Option()] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List your assets."""
    with clear_errors(), client_from_environment(url, key) as client:
        query: Json = {"is_public": public, "shared": shared, "q": search}
        rows = list(_all_pages(client, {**query, "tag": tag or []}))
        columns = ("id", "name", "version", "asset_type", "status", "size_bytes")
        show(rows, columns, as_json)


def _all_pages(client: Client, query: Json) -> Iterable[Json]:
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
    """Show an asset's inspection report."""
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.asset(reference)
        if "report" not in asset:
            raise ApiFailure(f"only the owner of {reference} can read its report")
        report = {"status": asset["status"], "details": asset["status_details"], **asset["report"]}
        if as_json:
            show_one(report, "", as_json)
        else:
            rows = [{"what": name, "found": value} for name, value in report.items()]
            show(rows, ("what", "found"), as_json)


@assets.command("warm")
def warm(references: list[str], url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Load assets into every node's tiers ahead of requests."""
    with clear_errors(), client_from_environment(url, key) as client:
        rows = [client.call("POST", f"/v1/assets/{ref}/warm") for ref in references]
        show(rows, ("asset_id", "found_on"), as_json)


@assets.command("where")
def where(reference: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show the replicas' devices and the nodes' tiers that hold an asset."""
    with clear_errors(), client_from_environment(url, key) as client:
        residency = client.call("GET", f"/v1/assets/{reference}/residency")
        if as_json:
            show_one(residency, "", as_json)
            return
        rows = [
            {"component": part["component"], "bytes": part["size_bytes"], "place": place}
            for part in residency["parts"]
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
    license_: Annotated[str | None, typer.Option("--license", "--licence")] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help=f"Of a checkpoint: {', '.join(PREDICTIONS)} or auto.")
    ] = None,
    visibility: Annotated[
        str | None, typer.Option(help="private, organisation, shared or public.")
    ] = None,
    share_with: Annotated[list[str] | None, typer.Option(help="A tenant; repeatable.")] = None,
    hints: Annotated[
        str | None,
        typer.Option(help='JSON, such as {"sampler": "LCM", "steps": 8}, or auto: as guessed.'),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Change an asset's metadata and visibility; omitted options change nothing."""
    changes = {"name": name, "description": description, "trigger_words": trigger_word, "tags": tag}
    changes |= {"license": license_, "visibility": visibility}
    changes |= {"shared_with": share_with, "prediction_type": prediction_type}
    body: Json = {field: value for field, value in changes.items() if value is not None}
    if hints is not None:
        body["hints"] = _hints(hints)
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.call("PATCH", f"/v1/assets/{reference}", json=body)["asset"]
        show_one(asset, f"{asset['id']} {asset['name']} updated", as_json)


def _hints(text: str) -> object:
    if text == "auto":
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--hints is not valid JSON: {error}") from None


@assets.command("rm")
@assets.command("delete", hidden=True)
def delete_asset(
    references: list[str],
    for_good: Annotated[
        bool, typer.Option("--for-good", help="Delete permanently and free the storage at once.")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Delete assets. For a week they are restorable and count against the quota."""
    with clear_errors(), client_from_environment(url, key) as client:
        options = {"params": {"for_good": True}} if for_good else {}
        rows = [client.call("DELETE", f"/v1/assets/{ref}", **options) for ref in references]
        show(rows, ("id", "deleted_at"), as_json)


@assets.command("restore")
def restore_asset(asset_id: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Restore an asset deleted within the last week."""
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.call("POST", f"/v1/assets/{asset_id}/restore")["asset"]
        show_one(asset, f"{asset['id']} {asset['name']} restored", as_json)
