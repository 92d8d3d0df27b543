"""The demonstration: start the platform and use it over HTTP."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from serving.cli.client import Client
from serving.cli.json_body import Json
from serving.cli.output import ApiFailure
from serving.settings import Settings

PROMPT = "a red star on a blue background"
HEART = "a large pink heart on a black background"
MOON = "a large yellow moon on a black background"
SEED = 4
CFG_SCALE = 3.0
STEPS = 20
_TENANT = "demo"
_START_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Panel:
    """An image of the demonstration and its request."""

    title: str
    request: Json
    #: A panel with the same image, bit for bit.
    like: str | None = None


@dataclass(frozen=True, slots=True)
class DemoImage:
    panel: Panel
    image: bytes
    answer: Json
    total_ms: float


def run_demo(folder: Path, port: int, once: bool) -> int:
    """Run the demonstration; return 0 if every image passes its check.

    Unless ``once``, the platform runs until Ctrl-C.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ``finally`` stops it
    console = Console(width=max(140, Console().width), emoji=False)
    settings = Settings(data_dir=folder.resolve() / "data", port=port)
    server = _start(settings)
    try:
        _await_serving(server, settings)
        with Client(settings.resolved_public_url, _key(settings)) as client:
            console.print("uploading a private LoRA …")
            private_id = upload_private(client)
            generated = [_generate(client, panel, console) for panel in panels(private_id)]
        console.print(_table(generated))
        sheet = folder / "contact_sheet.png"
        contact_sheet(generated, sheet)
        console.print(f"contact sheet: {sheet.resolve()}")
        problems = check(generated)
        for problem in problems:
            console.print(f"[bold red]FAILED: {problem}")
        if problems:
            return 1
        console.print(
            "ok: the last image equals the first, the private copy of a LoRA generates the same "
            "image as the public one, and every other image differs from the first"
        )
        if not once:
            console.print(
                f"the platform keeps running at {settings.resolved_public_url}; Ctrl-C stops it"
            )
            server.wait()
        return 0
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def _start(settings: Settings) -> subprocess.Popen[bytes]:
    with suppress(httpx2.HTTPError):
        httpx2.get(f"{settings.resolved_public_url}/healthcheck", timeout=2)
        raise ApiFailure(
            f"another server already answers on {settings.resolved_public_url}: stop it, or pass "
            "--port"
        )
    command = [sys.executable, "-m", "serving.cli.main", "serve"]
    # Request logs would hide the output.
    environment = {"AO_LOG_LEVEL": "warning", **os.environ, **settings.to_environment()}
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _key(settings: Settings) -> str:
    from serving.bootstrap.backends import open_backends

    directory = open_backends(settings).directory
    if not any(tenant.name == _TENANT for tenant in directory.tenants()):
        directory.add_tenant(_TENANT)
    return directory.keyring.add_key(_TENANT, "demonstration").text


def _await_serving(server: subprocess.Popen[bytes], settings: Settings) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        if server.poll() is not None:
            raise ApiFailure(
                f"the platform exited with code {server.returncode}; see its log above"
            )
        with suppress(httpx2.HTTPError):
            answer = httpx2.get(f"{settings.resolved_public_url}/v1/status", timeout=5)
            if answer.is_success:
                return
        if time.monotonic() > deadline:
            raise ApiFailure(f"the platform did not start within {_START_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


def upload_private(client: Client) -> str:
    """Upload a private copy of a public LoRA once; return its id."""
    from serving.miniature.catalogue import weights_file

    name = "my-outline"
    asset = next((a for a in client.call("GET", "/v1/assets")["data"] if a["name"] == name), None)
    if asset is None or asset["status"] != "ready":
        if asset is not None:
            client.call("DELETE", f"/v1/assets/{asset['id']}")
        asset = client.upload(weights_file("outline"), "lora", name)
        asset = client.await_ready(asset["id"])
    identifier: str = asset["id"]
    return identifier


def panels(private_id: str) -> list[Panel]:
    """The images, in order of the sheet."""

    def loras(**weights: float) -> Json:
        return {"loras": {f"commons:{name}": weight for name, weight in weights.items()}}

    lagoon = {"textual_inversions": {"commons:lagoon": "lagoon"}}
    mascot = {"textual_inversions": {"commons:mascot": "mascot"}}
    sepia = {"vae": "octoai:sepia"}
    return [
        Panel("base", {}),
        Panel("LoRA night 0.7", loras(night=0.7)),
        Panel("LoRA night 1.0", loras(night=1.0)),
        Panel("LoCon dots", loras(dots=1.0)),
        Panel("LoKr outline", loras(outline=1.0)),
        Panel("dots + outline", loras(dots=0.8, outline=1.0)),
        Panel("“heart”, base", {"prompt": HEART}),
        Panel("“heart”, LoRA heart", {"prompt": HEART, **loras(heart=1.0)}),
        Panel("“star, lagoon”", {"prompt": "a large star, lagoon", **lagoon}),
        Panel("“mascot”", {"prompt": "a picture of mascot", **mascot}),
        Panel("checkpoint pixel", {"prompt": MOON, "checkpoint": "commons:pixel"}),
        Panel("VAE sepia", {"prompt": MOON, **sepia}),
        Panel(
            "mascot+outline+sepia",
            {"prompt": "a picture of mascot", **mascot, **sepia, **loras(outline=1.0)},
        ),
        Panel("private outline", {"loras": {private_id: 1.0}}, like="LoKr outline"),
        Panel("base again", {}, like="base"),
    ]


def request_of(panel: Panel) -> Json:
    """A panel's request body."""
    return {
        "prompt": PROMPT,
        "seed": SEED,
        "steps": STEPS,
        "cfg_scale": CFG_SCALE,
        "image_encoding": "png",
        **panel.request,
    }


def _generate(client: Client, panel: Panel, console: Console) -> DemoImage:
    console.print(f"generating: {panel.title}")
    request = request_of(panel)
    started = time.perf_counter()
    answer = client.generate(request)
    total_ms = (time.perf_counter() - started) * 1000
    image = base64.b64decode(answer["images"][0]["image_b64"])
    return DemoImage(panel, image, answer, total_ms)


def _table(generated: list[DemoImage]) -> Table:
    table = Table(title=f"“{PROMPT}”, seed {SEED}, {STEPS} steps; times in ms")
    for column in ("image", "assets found on", "replica"):
        table.add_column(column)
    for column in ("queue", "fetch", "swap", "denoise", "decode", "total"):
        table.add_column(column, justify="right")
    for item in generated:
        receipt, timings = item.answer["receipt"], item.answer["timings_ms"]
        tiers_of: dict[str, dict[str, int]] = {}
        for asset in receipt["assets"]:
            tiers = tiers_of.setdefault(asset["asset"], {})
            tiers[asset["found_on"]] = tiers.get(asset["found_on"], 0) + 1
        names = {asset: f"…{asset[-6:]}" if len(asset) > 20 else asset for asset in tiers_of}
        found_on = ", ".join(
            f"{names[asset]}: " + "+".join(f"{n}×{t}" if n > 1 else t for t, n in tiers.items())
            for asset, tiers in tiers_of.items()
        )
        cells = [timings[name] for name in ("queue", "fetch", "swap", "denoise", "decode")]
        table.add_row(
            item.panel.title,
            found_on,
            receipt["replica"],
            *(f"{cell:.1f}" for cell in cells),
            f"{item.total_ms:.0f}",
        )
    return table


def _pixels(file: bytes) -> bytes:
    """Without metadata, which names the assets."""
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        return bytes(image.convert("RGB").tobytes())


def check(generated: list[DemoImage]) -> list[str]:
    """Return failed checks: images that differ from their twin or equal the first."""
    images = {item.panel.title: _pixels(item.image) for item in generated}
    first = generated[0]
    problems = []
    for item in generated[1:]:
        if item.panel.like is not None:
            if images[item.panel.title] != images[item.panel.like]:
                problems.append(f"{item.panel.title!r} is not bit-identical to {item.panel.like!r}")
        elif images[item.panel.title] == images[first.panel.title]:
            problems.append(f"{item.panel.title!r} is identical to {first.panel.title!r}")
    return problems


def contact_sheet(generated: list[DemoImage], path: Path, columns: int = 5, scale: int = 2) -> None:
    """Write a grid of images with titles."""
    from PIL import Image, ImageDraw, ImageFont

    images = [Image.open(io.BytesIO(item.image)).convert("RGB") for item in generated]
    side = images[0].width * scale
    margin, caption = 14, 22
    rows = -(-len(images) // columns)
    width, height = side + margin, side + caption + margin
    sheet = Image.new("RGB", (margin + columns * width, margin + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, (item, image) in enumerate(zip(generated, images, strict=True)):
        left, top = margin + index % columns * width, margin + index // columns * height
        enlarged = image.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (left, top))
        pen.text((left, top + side + 2), item.panel.title, fill="black", font=font)
    sheet.save(path)
