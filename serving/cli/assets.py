"""``asset-orchestrator assets``: a tenant's library, over HTTP."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from serving.cli.client import client_from_environment
from serving.cli.options import AsJson, Key, Url
from serving.cli.output import clear_errors, show, show_one

assets = typer.Typer(help="Your assets (over HTTP).", no_args_is_help=True)


@assets.command("update")
def update_asset(
    reference: str,
    name: str | None = None,
    description: str | None = None,
    trigger_word: Annotated[list[str] | None, typer.Option()] = None,
    tag: Annotated[list[str] | None, typer.Option()] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Change what people read of an asset; options that are not given leave it as it is."""
    given = {"name": name, "description": description, "trigger_words": trigger_word, "tags": tag}
    body = {field: value for field, value in given.items() if value is not None}
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.call("PATCH", f"/v1/assets/{reference}", json=body)["asset"]
        show_one(asset, f"{asset['id']} {asset['name']} is changed", as_json)


@assets.command("restore")
def restore_asset(asset_id: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Bring a deleted asset back, within a week."""
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.call("POST", f"/v1/assets/{asset_id}/restore")["asset"]
        show_one(asset, f"{asset['id']} {asset['name']} is back", as_json)


@assets.command("list")
def list_assets(
    public: bool = False,
    search: str = "",
    tag: Annotated[list[str] | None, typer.Option()] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    with clear_errors(), client_from_environment(url, key) as client:
        rows: list[dict[str, Any]] = []
        more = True
        while more:
            query: dict[str, Any] = {"is_public": str(public).lower(), "offset": len(rows)}
            query |= {"q": search, "tag": tag or []}
            page = client.call("GET", "/v1/assets", params=query)
            rows += page["data"]
            more = page["has_more"]
        show(rows, ("id", "name", "asset_type", "status", "size_bytes"), as_json)


@assets.command("upload")
def upload_asset(
    path: Path,
    kind: Annotated[str, typer.Option(help="lora, textual_inversion, checkpoint or vae.")],
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    description: str = "",
    trigger_word: Annotated[list[str] | None, typer.Option()] = None,
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
    ):
        name = name or (path.name if path.is_dir() else path.stem)
        if path.is_dir():
            from assets.formats.pack import pack_folder

            path = pack_folder(path, Path(scratch) / f"{name}.safetensors")
        asset = client.upload(path, kind, name, description, trigger_word or ())
        asset = client.await_ready(asset["id"])
        show_one(asset, f"{asset['name']} is ready: {asset['id']}", as_json)


@assets.command("get")
def get_asset(reference: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    with clear_errors(), client_from_environment(url, key) as client:
        asset = client.asset(reference)
        text = f"{asset['id']} {asset['name']} {asset['status']} {asset['status_details']}".strip()
        show_one(asset, text, as_json)


@assets.command("delete")
def delete_asset(reference: str, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    with clear_errors(), client_from_environment(url, key) as client:
        answer = client.call("DELETE", f"/v1/assets/{reference}")
        show_one(answer, f"{answer['id']} is deleted", as_json)
