"""``asset-orchestrator serve | tenants | keys | assets | generate | demo``."""

from __future__ import annotations

import base64
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import typer

from assets.principal import Role
from serving.cli.client import client_from_environment
from serving.cli.output import AsJson, clear_errors, show, show_one
from serving.settings import Settings

app = typer.Typer(
    help="One warm SDXL endpoint; any checkpoint, LoRA, inversion or VAE by ID, per request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
tenants = typer.Typer(help="Tenants (operator; works on the database).", no_args_is_help=True)
keys = typer.Typer(help="API keys (operator; works on the database).", no_args_is_help=True)
assets = typer.Typer(help="Your assets (over HTTP).", no_args_is_help=True)
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(assets, name="assets")

DataDir = Annotated[Path | None, typer.Option(help="Default: AO_DATA_DIR.")]
Url = Annotated[str | None, typer.Option(help="Default: AO_URL, else http://127.0.0.1:8000.")]
Key = Annotated[str | None, typer.Option("--key", help="An API key. Default: AO_API_KEY.")]


def settings_with(**options: Any) -> Settings:
    """The environment's settings, with the command line's options over them."""
    return Settings(**{name: value for name, value in options.items() if value is not None})


def progress_printer() -> Any:
    started = time.monotonic()

    def progress(message: str) -> None:
        typer.echo(f"[{time.monotonic() - started:6.1f} s] {message}", err=True)

    return progress


@app.command()
def serve(
    model: Annotated[
        Path | None,
        typer.Option(help="An SDXL diffusers folder or .safetensors file. Default: the miniature."),
    ] = None,
    host: str | None = None,
    port: int | None = None,
    replicas: Annotated[int | None, typer.Option(help="Engine replicas.")] = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway processes.")] = None,
    data_dir: DataDir = None,
    ray_address: Annotated[str | None, typer.Option(help="'local' starts Ray here.")] = None,
    in_process: Annotated[
        bool, typer.Option(help="Everything in one process, without Ray.")
    ] = False,
) -> None:
    """Run the platform until Ctrl-C."""
    options = settings_with(
        model=model,
        host=host,
        port=port,
        replicas=replicas,
        gateways=gateways,
        data_dir=data_dir,
        ray_address=ray_address,
    )
    with clear_errors():
        if in_process:
            from serving.cli.in_process import serve_in_process

            serve_in_process(options, progress_printer())
        else:
            from serving.cluster.environment import require_tokens

            if options.ray_address == "local":
                require_tokens()
            from serving.cluster.launch import serve_forever

            serve_forever(options, progress_printer())


def _directory(data_dir: Path | None) -> Any:
    from serving.composition import open_backends

    return open_backends(settings_with(data_dir=data_dir)).directory


@tenants.command("create")
def create_tenant(
    name: str, weight: float = 1.0, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """A new tenant; its weight is its share of the queue."""
    with clear_errors():
        tenant = _directory(data_dir).add_tenant(name, weight)
        show_one(asdict(tenant), f"tenant {tenant.name} ({tenant.id})", as_json)


@tenants.command("list")
def list_tenants(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    with clear_errors():
        rows = [asdict(tenant) for tenant in _directory(data_dir).tenants()]
        show(rows, ("name", "weight", "id"), as_json)


@keys.command("create")
def create_key(
    tenant: str,
    label: str = "",
    role: Annotated[str, typer.Option(help="reader, member or owner.")] = "owner",
    expires_days: Annotated[float | None, typer.Option(help="Default: never.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """A new key. It is shown this once."""
    with clear_errors():
        until = None if expires_days is None else time.time() + expires_days * 86400
        key = _directory(data_dir).add_key(tenant, label, cast(Role, role), until)
        show_one({"id": key.id, "tenant": tenant, "key": key.text}, key.text, as_json)


@keys.command("rotate")
def rotate_key(
    key_id: str,
    overlap_hours: Annotated[float, typer.Option(help="How long the old one still works.")] = 24.0,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """A new key like that one, which expires after the overlap."""
    with clear_errors():
        key = _directory(data_dir).rotate_key(key_id, overlap_hours * 3600)
        show_one({"id": key.id, "replaces": key_id, "key": key.text}, key.text, as_json)


@keys.command("list")
def list_keys(tenant: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    with clear_errors():
        rows = [asdict(key) for key in _directory(data_dir).keys(tenant)]
        show(rows, ("id", "label", "role", "created_at_s", "expires_at_s", "revoked_at_s"), as_json)


@keys.command("revoke")
def revoke_key(key_id: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Every gateway refuses the key within seconds."""
    with clear_errors():
        _directory(data_dir).revoke_key(key_id)
        show_one({"id": key_id, "revoked": True}, f"key {key_id} is revoked", as_json)


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


def _lora_option(item: str) -> tuple[str, Any]:
    name, _, weights = item.partition("=")
    unet, colon, text = weights.partition(":")
    if colon:
        return name, {"unet": float(unet or 1), "text_encoders": float(text or 1)}
    return name, float(unet or 1)


@app.command()
def generate(
    prompt: str,
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("picture.png"),
    checkpoint: str | None = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="NAME=WEIGHT or NAME=UNET:TEXT, repeatable.")
    ] = None,
    inversion: Annotated[list[str] | None, typer.Option(help="NAME=WORD, repeatable.")] = None,
    vae: str | None = None,
    negative_prompt: str | None = None,
    sampler: str = "DDIM",
    steps: int = 30,
    cfg_scale: float = 12.0,
    seed: int | None = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Draw one picture."""
    request: dict[str, Any] = {
        "prompt": prompt,
        "checkpoint": checkpoint,
        "vae": vae,
        "negative_prompt": negative_prompt,
        "sampler": sampler,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "seed": seed,
        "image_encoding": "jpeg" if out.suffix.lower() in (".jpg", ".jpeg") else "png",
        "loras": dict(_lora_option(item) for item in lora or []),
        "textual_inversions": {
            n: w for n, _, w in (item.partition("=") for item in inversion or [])
        },
    }
    with clear_errors(), client_from_environment(url, key) as client:
        answer = client.generate(request)
        out.write_bytes(base64.b64decode(answer["images"][0].pop("image_b64")))
        show_one(
            {**answer, "file": str(out)}, f"{out} (seed {answer['images'][0]['seed']})", as_json
        )


@app.command()
def demo(
    once: Annotated[bool, typer.Option(help="End the platform after the demonstration.")] = False,
    folder: Annotated[Path, typer.Option(help="Where the demonstration keeps its files.")] = Path(
        "demo"
    ),
    port: int = 8000,
) -> None:
    """Start the platform, then be its client: upload, draw every public asset, check, show."""
    from serving.cli.demo import run_demo

    with clear_errors():
        raise typer.Exit(run_demo(folder, port, once))


if __name__ == "__main__":
    app()
