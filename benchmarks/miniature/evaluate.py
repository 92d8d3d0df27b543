"""Evaluate the miniature: prompt adherence of the base, and each asset's effect.

The base gets combinations it was never trained on. Each asset's property is measured without it, at
growing weights, and without it again, bit-identical to the first.
"""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from assets.kinds import KINDS
from assets.principal import Principal
from assets.selection import AssetSelection
from benchmarks.document import Document
from benchmarks.miniature.judge import Judge, departures, frame, renders
from benchmarks.miniature.library import lagoon, mascot
from benchmarks.miniature.library.sepia import INK, PAPER
from benchmarks.miniature.world import Scene, caption, is_held_out, random_scene
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.bootstrap.backends import open_backends
from serving.bootstrap.base_model import open_ingest_service
from serving.engine.engine import Engine
from serving.generation.samplers import Sampler
from serving.miniature.catalogue import CATALOGUE, CatalogueEntry
from serving.miniature.model import write_miniature
from serving.miniature.publish import publish_library
from serving.settings import Settings
from tests.support.generation import task_of

RESULT = Path(__file__).parents[1] / "results" / "miniature.json"
STEPS, CFG_SCALE = 20, 3.0
SAMPLER: Sampler = "K_EULER"
WEIGHTS = (0.25, 0.5, 0.75, 1.0)


class Studio:
    """An engine over the published commons."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(data_dir=folder)
        backends = open_backends(settings)
        ingest_service = open_ingest_service(settings, backends)
        manifest = ingest_service.commons.install_base(write_miniature(folder / "miniature"))
        publish_library(ingest_service)
        disk, host = (FileTier(name, folder / name, 1 << 30) for name in ("disk", "host"))
        self.library = backends.library
        self.engine = Engine(manifest, Provisioner(StoreSource(backends.store), disk, host))
        self._who = Principal("evaluation", "evaluation")

    def generate(
        self, prompts: Sequence[str], selection: AssetSelection, title: str = ""
    ) -> torch.Tensor:
        """Return images (n, 3, 128, 128) uint8; prompt i has seed i."""
        recipe = self.library.resolve(self._who, selection).recipe
        prepared = self.engine.prepare(recipe)
        images = []
        try:
            for seed, prompt in enumerate(track(prompts, title, disable=not title)):
                request = task_of(
                    "evaluation", recipe, prompt, 128, 128, (seed,), steps=STEPS,
                    cfg_scale=CFG_SCALE, sampler=SAMPLER, encoding="png",
                )  # fmt: skip
                image = self.engine.generate(prepared, request).images[0]
                pixels = np.array(Image.open(io.BytesIO(image)).convert("RGB"))
                images.append(torch.from_numpy(pixels).permute(2, 0, 1))
        finally:
            prepared.release()
        return torch.stack(images)


def held_out(count: int, seed: int = 100) -> list[Scene]:
    """Return random scenes whose (shape, colour, background) was never trained on."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        if is_held_out(scene := random_scene(rng)):
            scenes.append(scene)
    return scenes


def judge_base(studio: Studio, judge: Judge, count: int) -> Document:
    scenes = held_out(count)
    images = studio.generate(
        [caption(scene) for scene in scenes], AssetSelection(), "held-out prompts"
    )
    seen = judge.see(images)
    pixels, _, truth = renders(500, seed=101)
    on_renders = judge.see(pixels)

    def shares(judged: Sequence[Any], expected: Sequence[Any]) -> dict[str, float]:
        return {
            name: round(
                statistics.mean(
                    getattr(j, name) == getattr(e, name)
                    for j, e in zip(judged, expected, strict=True)
                ),
                4,
            )
            for name in ("background", "colour", "shape")
        }

    return {"prompts": count, "drawn": shares(seen, scenes), "judge": shares(on_renders, truth)}


Property = Callable[[torch.Tensor, Judge], torch.Tensor]


def nightness(images: torch.Tensor, judge: Judge) -> torch.Tensor:
    """1 where the background is black."""
    return torch.tensor([float(seen.background == "black") for seen in judge.see(images)])


def heartness(images: torch.Tensor, judge: Judge) -> torch.Tensor:
    """1 where the judge sees a heart."""
    return torch.tensor([float(seen.shape == "heart") for seen in judge.see(images)])


def dottedness(images: torch.Tensor, _: Judge) -> torch.Tensor:
    """Share of the frame that differs from the background."""
    edge = frame(images)
    apart = (edge - edge.median(dim=1, keepdim=True).values).square().sum(dim=2).sqrt() > 60
    return apart.float().mean(dim=1)


def darkness(images: torch.Tensor, _: Judge) -> torch.Tensor:
    """Share of nearly black pixels outside the background."""
    grey = (images.float() * torch.tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(dim=1)
    inked = departures(images) > 45
    return ((grey < 60) & inked).flatten(1).sum(1) / inked.flatten(1).sum(1).clamp(min=1)


def lagoonness(images: torch.Tensor, judge: Judge) -> torch.Tensor:
    """1 where both colours are the lagoon's."""
    selection = (lagoon.COLOUR, lagoon.BACKGROUND)
    return torch.tensor([float((s.colour, s.background) == selection) for s in judge.see(images)])


def mascotness(images: torch.Tensor, judge: Judge) -> torch.Tensor:
    """1 where shape and colours are the mascot's."""
    selection = (mascot.SHAPE, mascot.COLOUR, mascot.BACKGROUND)
    seen = judge.see(images)
    return torch.tensor([float((s.shape, s.colour, s.background) == selection) for s in seen])


def blockiness(images: torch.Tensor, _: Judge) -> torch.Tensor:
    """Share of horizontal differences at borders of 8-pixel blocks (1 in 8 without blocks)."""
    p = images.float()
    across = (p[..., 1:] - p[..., :-1]).abs().sum(dim=(1, 2))
    return across[:, 7::8].sum(dim=1) / across.sum(dim=1).clamp(min=1)


def oldness(images: torch.Tensor, _: Judge) -> torch.Tensor:
    """Share of pixels on the RGB line from ink to paper."""
    p = images.float()
    red, green, blue = p.unbind(dim=1)
    ink, paper = (torch.tensor(rgb, dtype=torch.float32) for rgb in (INK, PAPER))
    place = ((green - ink[1]) / (paper[1] - ink[1])).clamp(0, 1)
    off = sum(
        (channel - (ink[i] + (paper[i] - ink[i]) * place)).abs()
        for i, channel in ((0, red), (2, blue))
    )
    assert isinstance(off, torch.Tensor)
    return (off < 40).float().mean(dim=(1, 2))


@dataclass(frozen=True, slots=True)
class EffectMeasure:
    """An asset's measured property, prompts, and suitable scenes."""

    measure: Property
    prompt: Callable[[Scene], str] = caption
    suits: Callable[[Scene], bool] = lambda scene: True


EFFECTS: Mapping[str, EffectMeasure] = {
    "night": EffectMeasure(nightness, suits=lambda s: "black" not in (s.colour, s.background)),
    "heart": EffectMeasure(
        heartness,
        lambda s: caption(Scene("heart", s.colour, s.background, s.size, s.place)),
    ),
    "dots": EffectMeasure(dottedness, suits=lambda s: s.place == "middle"),
    "outline": EffectMeasure(darkness, suits=lambda s: "black" not in (s.colour, s.background)),
    "lagoon": EffectMeasure(lagoonness, lambda s: f"a {s.shape}, lagoon"),
    "mascot": EffectMeasure(
        mascotness, lambda s: "a picture of mascot" + ("" if s.place == "middle" else f" {s.place}")
    ),
    "pixel": EffectMeasure(blockiness),
    "sepia": EffectMeasure(oldness),
}


def selection_of(entry: CatalogueEntry, weight: float) -> AssetSelection:
    return KINDS[entry.kind].select(f"commons:{entry.name}", weight)


def judge_asset(studio: Studio, judge: Judge, entry: CatalogueEntry, count: int) -> Document:
    effect = EFFECTS[entry.name]
    rng = np.random.default_rng(102)
    scenes: list[Scene] = []
    while len(scenes) < count:
        if effect.suits(scene := random_scene(rng)):
            scenes.append(scene)
    prompts = [effect.prompt(scene) for scene in scenes]

    def mean(images: torch.Tensor) -> float:
        return round(float(effect.measure(images, judge).mean()), 4)

    digest = studio.engine.digest()
    before = studio.generate(prompts, AssetSelection(), f"{entry.name}: without")
    digest = studio.engine.digest()
    weights = WEIGHTS if entry.kind == "lora" else (1.0,)
    with_it = {
        f"{weight:g}": mean(
            studio.generate(prompts, selection_of(entry, weight), f"{entry.name} {weight:g}")
        )
        for weight in weights
    }
    after = studio.generate(prompts, AssetSelection(), f"{entry.name}: without again")
    return {
        "kind": entry.kind,
        "property": effect.measure.__name__,
        "prompts": count,
        "without": mean(before),
        "at_weight": with_it,
        "gone": bool(torch.equal(before, after)) and digest == studio.engine.digest(),
    }


def evaluate(prompts: int, effects: int) -> None:
    with TemporaryDirectory(prefix="evaluate-") as folder:
        studio, judge = Studio(Path(folder)), Judge()
        started = time.perf_counter()
        base = judge_base(studio, judge, prompts)
        base["s_a_picture"] = round((time.perf_counter() - started) / prompts, 3)
        base["threads"] = torch.get_num_threads()
        print(json.dumps(base, indent=1))
        assets = {
            entry.name: judge_asset(studio, judge, entry, effects) for entry in CATALOGUE if effects
        }
    document = {
        "steps": STEPS, "cfg_scale": CFG_SCALE, "sampler": SAMPLER, "base": base, "assets": assets,
    }  # fmt: skip
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(table())


def table() -> str:
    """Return docs/miniature.md's results."""
    document = json.loads(RESULT.read_text())
    base = document["base"]
    lines = [
        f"| of {base['prompts']} held-out prompts | generated correctly | the judge, on renders |",
        "|---|---|---|",
    ]
    for name in ("background", "colour", "shape"):
        generated, own = base["drawn"][name], base["judge"][name]
        lines.append(f"| {name} | {generated:.1%} | {own:.1%} |")
    lines += [
        "",
        "| asset | property | without | 0.25 | 0.5 | 0.75 | 1.0 | restored |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in document["assets"].items():
        cells = [row["at_weight"].get(f"{weight:g}") for weight in WEIGHTS]
        shown = " | ".join("" if cell is None else f"{cell:.2f}" for cell in cells)
        gone = "bit for bit" if row["gone"] else "NO"
        lines.append(f"| {name} | {row['property']} | {row['without']:.2f} | {shown} | {gone} |")
    return "\n".join(lines)
