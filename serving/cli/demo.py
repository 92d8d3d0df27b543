"""The demonstration: the platform as a newcomer meets it, over HTTP."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from serving.cli.client import ApiFailure, Client
from serving.settings import Settings

PROMPT = "a small red star on a blue background"
INVERSION_WORD = "zebrastyle"
SEED = 7
STEPS = 20
_TENANT = "demo"
_START_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of the demonstration."""

    title: str
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    panel: Panel
    picture: bytes
    answer: Mapping[str, Any]
    total_ms: float


def run_demo(folder: Path, port: int, once: bool) -> int:
    """0 when every picture is as it must be; the platform runs on until Ctrl-C unless ``once``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the platform ends, too
    console = Console(width=max(140, Console().width))
    settings = Settings(data_dir=folder.resolve() / "data", port=port)
    server = _start(settings)
    try:
        _await_serving(server, settings)
        with Client(settings.resolved_public_url, _key(settings)) as client:
            console.print("uploading a LoRA, a textual inversion and a checkpoint …")
            assets = _upload_samples(client, folder)
            drawn = [_draw(client, panel, console) for panel in _panels(assets)]
        console.print(_table(drawn))
        sheet = folder / "contact_sheet.png"
        contact_sheet(drawn, sheet)
        console.print(f"contact sheet: {sheet.resolve()}")
        problems = check(drawn)
        for problem in problems:
            console.print(f"[bold red]FAILED: {problem}")
        if problems:
            return 1
        console.print("the last picture equals the first, and every other differs from it: ok")
        if not once:
            console.print(f"the platform runs on at {settings.resolved_public_url}; Ctrl-C ends it")
            server.wait()
        return 0
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def _start(settings: Settings) -> subprocess.Popen[bytes]:
    """The platform in a process of its own: an operator would start it the same way."""
    with suppress(httpx.HTTPError):
        httpx.get(f"{settings.resolved_public_url}/healthcheck", timeout=2)
        raise ApiFailure(
            f"something answers on {settings.resolved_public_url} already; end it, or pass --port"
        )
    command = [sys.executable, "-m", "serving.cli.main", "serve"]
    environment = {**os.environ, **settings.to_environment()}
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
    from serving.composition import open_backends

    directory = open_backends(settings).directory
    if not any(tenant.name == _TENANT for tenant in directory.tenants()):
        directory.add_tenant(_TENANT)
    return directory.add_key(_TENANT, "demonstration").text


def _await_serving(server: subprocess.Popen[bytes], settings: Settings) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        if server.poll() is not None:
            raise ApiFailure(f"the platform ended with code {server.returncode}; see above")
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"{settings.resolved_public_url}/v1/status", timeout=5)
            if answer.is_success:
                return
        if time.monotonic() > deadline:
            raise ApiFailure(f"the platform is not up after {_START_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


def _upload_samples(client: Client, folder: Path) -> dict[str, str]:
    """Ids by role. Assets of an earlier demonstration are used again."""
    from assets.sdxl import skeleton_of
    from serving.engine.miniature import MINIATURE_CONFIGS, SEED, initial
    from serving.engine.samples import write_inversion, write_kohya_lora, write_single_file

    skeleton = skeleton_of(MINIATURE_CONFIGS)
    files = folder / "assets"

    def other_style(component: str, name: str, shape: tuple[int, ...]) -> Any:
        seed = SEED + 1 if component == "unet" else SEED
        return initial(f"{component}/{name}", shape, seed)

    samples = {
        "lora": write_kohya_lora(files / "demo_lora.safetensors", skeleton),
        "textual_inversion": write_inversion(
            files / "demo_inversion.safetensors", skeleton, vectors=12
        ),
        "checkpoint": write_single_file(
            files / "demo_checkpoint.safetensors", skeleton, other_style
        ),
    }
    known = {a["name"]: a for a in client.call("GET", "/v1/assets")["data"]}
    ids: dict[str, str] = {}
    for kind, path in samples.items():
        asset = known.get(path.stem)
        if asset is None or asset["status"] != "ready":
            if asset is not None:
                client.call("DELETE", f"/v1/assets/{asset['id']}")
            words = [INVERSION_WORD] if kind == "textual_inversion" else []
            asset = client.upload(path, kind, path.stem, trigger_words=words)
            asset = client.await_ready(asset["id"])
        ids[kind] = asset["id"]
    return ids


def _panels(assets: Mapping[str, str]) -> list[Panel]:
    lora = assets["lora"]
    inversion = {assets["textual_inversion"]: INVERSION_WORD}
    styled = f"{PROMPT}, {INVERSION_WORD}"
    everything = {
        "prompt": styled,
        "loras": {lora: 1.0},
        "textual_inversions": inversion,
        "checkpoint": assets["checkpoint"],
    }
    return [
        Panel("base", {}),
        Panel("+ LoRA 1.0", {"loras": {lora: 1.0}}),
        Panel("+ LoRA 0.4", {"loras": {lora: 0.4}}),
        Panel("+ inversion", {"prompt": styled, "textual_inversions": inversion}),
        Panel("other checkpoint", {"checkpoint": assets["checkpoint"]}),
        Panel("everything", everything),
        Panel("base again", {}),
    ]


def _draw(client: Client, panel: Panel, console: Console) -> Drawn:
    console.print(f"drawing: {panel.title}")
    request = {
        "prompt": PROMPT,
        "seed": SEED,
        "steps": STEPS,
        "image_encoding": "png",
        **panel.request,
    }
    started = time.perf_counter()
    answer = client.generate(request)
    total_ms = (time.perf_counter() - started) * 1000
    picture = base64.b64decode(answer["images"][0]["image_b64"])
    return Drawn(panel, picture, answer, total_ms)


def _table(drawn: list[Drawn]) -> Table:
    table = Table(title=f"“{PROMPT}”, seed {SEED}, {STEPS} steps; times in ms")
    for column in ("picture", "assets found on", "replica"):
        table.add_column(column)
    for column in ("queue", "fetch", "swap", "denoise", "decode", "total"):
        table.add_column(column, justify="right")
    for item in drawn:
        receipt, timings = item.answer["receipt"], item.answer["timings_ms"]
        named: dict[str, dict[str, int]] = {}
        for asset in receipt["assets"]:
            tiers = named.setdefault(asset["asset"], {})
            tiers[asset["found_on"]] = tiers.get(asset["found_on"], 0) + 1
        names = {asset: f"…{asset[-6:]}" if len(asset) > 20 else asset for asset in named}
        found = ", ".join(
            f"{names[asset]}: " + "+".join(f"{n}×{t}" if n > 1 else t for t, n in tiers.items())
            for asset, tiers in named.items()
        )
        cells = [timings[name] for name in ("queue", "fetch", "swap", "denoise", "decode")]
        table.add_row(
            item.panel.title,
            found,
            receipt["replica"],
            *(f"{cell:.1f}" for cell in cells),
            f"{item.total_ms:.0f}",
        )
    return table


def check(drawn: list[Drawn]) -> list[str]:
    """What is not as it must be: the last equals the first, the others differ from it."""
    first, last = drawn[0], drawn[-1]
    problems = [
        f"{item.panel.title!r} looks like {first.panel.title!r}"
        for item in drawn[1:-1]
        if item.picture == first.picture
    ]
    if last.picture != first.picture:
        problems.append(f"{last.panel.title!r} is not bit for bit {first.panel.title!r}")
    return problems


def contact_sheet(drawn: list[Drawn], path: Path, scale: int = 2) -> None:
    """All pictures side by side with their titles."""
    from PIL import Image, ImageDraw

    pictures = [Image.open(io.BytesIO(item.picture)).convert("RGB") for item in drawn]
    side = pictures[0].width * scale
    margin, caption = 12, 20
    width = margin + len(pictures) * (side + margin)
    sheet = Image.new("RGB", (width, side + caption + 2 * margin), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (item, picture) in enumerate(zip(drawn, pictures, strict=True)):
        left = margin + index * (side + margin)
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, margin))
        pen.text((left, margin + side + 4), item.panel.title, fill="black")
    sheet.save(path)
