"""The command line ``asset-orchestrator``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from assets.storage.private_folder import keep_private
from serving.bootstrap.policy import open_credentials, open_gate
from serving.cli.assets import assets
from serving.cli.client import client_from_environment
from serving.cli.json_body import Json
from serving.cli.operator import GROUPS, reconcile
from serving.cli.options import AsJson, DataDir, Key, Url, settings_with
from serving.cli.output import clear_errors, show, show_one
from serving.cli.styles import styles
from serving.generation.samplers import SAMPLERS, SCHEDULES
from serving.logs import configure

#: Image encodings by the file's suffix.
_ENCODINGS = {".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

app = typer.Typer(
    help="A warm SDXL endpoint; each request names its checkpoint, LoRAs, inversions and VAE.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
app.add_typer(assets, name="assets")
app.add_typer(styles, name="styles")
app.command()(reconcile)


def progress_printer() -> Any:
    """Return a printer to stderr with seconds since now."""
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
    keep_private()
    options = settings_with(
        model=model,
        host=host,
        port=port,
        replicas=replicas,
        gateways=gateways,
        data_dir=data_dir,
        ray_address=ray_address,
    )
    configure(options.log_format, options.log_level)
    with clear_errors():
        open_credentials(options)  # its mistakes are told before anything starts
        open_gate(options)
        if in_process:
            from serving.cli.in_process import serve_in_process

            serve_in_process(options, progress_printer())
        else:
            from serving.cluster.environment import listen_on_loopback, require_tokens

            if options.ray_address == "local":
                require_tokens()
                listen_on_loopback()
            from serving.cluster.launch import serve_forever

            serve_forever(options, progress_printer())


@app.command()
def gateways(
    ray_address: Annotated[str | None, typer.Option(help="Default: AO_RAY_ADDRESS.")] = None,
    host: str | None = None,
    port: int | None = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway processes.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Run gateways on another node of a cluster where `serve` runs, until Ctrl-C."""
    keep_private()
    options = settings_with(
        ray_address=ray_address, host=host, port=port, gateways=gateways, data_dir=data_dir
    )
    configure(options.log_format, options.log_level)
    with clear_errors():
        from serving.cluster.launch import serve_gateways

        serve_gateways(options, progress_printer())


def _lora_option(item: str) -> tuple[str, Any]:
    """Parse NAME=WEIGHT or NAME=UNET:TEXT."""
    name, _, weights = item.partition("=")
    unet, colon, text = weights.partition(":")
    if colon:
        return name, {"unet": float(unet or 1), "text_encoders": float(text or 1)}
    return name, float(unet or 1)


@app.command()
def generate(
    prompt: str,
    out: Annotated[Path, typer.Option(help="The image file to write.")] = Path("picture.png"),
    checkpoint: str | None = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="NAME=WEIGHT or NAME=UNET:TEXT, repeatable.")
    ] = None,
    inversion: Annotated[list[str] | None, typer.Option(help="NAME=WORD, repeatable.")] = None,
    vae: str | None = None,
    negative_prompt: str | None = None,
    sampler: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(SAMPLERS)}; the default is DDIM.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"Instead of the sampler's own: {', '.join(SCHEDULES)}.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="The default is 30.")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="The default is 12.")] = None,
    style: Annotated[
        list[str] | None, typer.Option(help="A built-in or own style, repeatable.")
    ] = None,
    clip_skip: Annotated[int | None, typer.Option(help="As in A1111.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, with --height.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, with --width.")] = None,
    seed: int | None = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Tell what it would take; generate nothing.")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Generate one image."""
    request: Json = {
        "prompt": prompt,
        "checkpoint": checkpoint,
        "vae": vae,
        "negative_prompt": negative_prompt,
        "sampler": sampler,
        "schedule": schedule,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "seed": seed,
        "styles": style or [],
        "clip_skip": clip_skip,
        "width": width,
        "height": height,
        "image_encoding": _ENCODINGS.get(out.suffix.lower(), "png"),
        "loras": dict(_lora_option(item) for item in lora or []),
        "textual_inversions": {
            n: w for n, _, w in (item.partition("=") for item in inversion or [])
        },
    }
    with clear_errors(), client_from_environment(url, key) as client:
        if estimate:
            told = client.call("POST", "/v1/estimate", json=dict(request))
            total_s = told["seconds"]["total"] if told["seconds"] else None
            taken = "the pool sleeps" if total_s is None else f"about {total_s:.2f} s"
            show_one(told, f"{taken}, {told['evaluations']} evaluations of the UNet", as_json)
            return
        answer, image = client.generate_file(request)
        out.write_bytes(image)
        for warning in answer["receipt"]["warnings"]:
            typer.echo(f"warning: {warning}", err=True)
        show_one({**answer, "file": str(out)}, f"{out} (seed {answer['seeds'][0]})", as_json)


@app.command()
def pools(
    events: Annotated[bool, typer.Option(help="List recent starts and stops.")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show the GPU pools: backlog, running and starting replicas, phases of starts."""
    with clear_errors(), client_from_environment(url, key) as client:
        pools = client.call("GET", "/v1/pools")["data"]
        if events:
            rows = [
                {"pool": pool["name"], **event}
                for pool in pools
                for event in pool.get("events", ())
            ]
            show(rows, ("at_s", "pool", "what", "replica", "details"), as_json)
            return
        limits = ("gpu", "queue_size", "min", "max", "idle_s")
        for pool in pools:
            states = [replica["state"] for replica in pool.get("replicas", ())]
            pool["up"] = states.count("up")
            starting = pool.get("starting") or {"phase": ""}
            pool["phase"] = starting["phase"] if not pool["up"] else ""
            pool["coming"] = len(states) - pool["up"]
        show(pools, ("name", *limits, "waiting", "up", "coming", "phase"), as_json)


@app.command()
def doctor(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Check the platform's prerequisites and print remedies; exit code 1 on failure."""
    from serving.cli.doctor import examine

    with clear_errors():
        findings = list(examine(settings_with(data_dir=data_dir)))
    show([asdict(f) for f in findings], ("state", "what", "found", "remedy"), as_json)
    raise typer.Exit(any(finding.state == "fail" for finding in findings))


@app.command()
def demo(
    once: Annotated[bool, typer.Option(help="Stop the platform after the demonstration.")] = False,
    folder: Annotated[Path, typer.Option(help="The folder of the demonstration's files.")] = Path(
        "demo"
    ),
    port: int = 8000,
) -> None:
    """Start the platform, upload a LoRA, generate with public assets and check the images."""
    keep_private()
    from serving.cli.demo import run_demo

    with clear_errors():
        raise typer.Exit(run_demo(folder, port, once))


if __name__ == "__main__":
    app()
