"""The option and fixtures of the GPU self-check; loaded by tests/gpu/pytest.ini, not a conftest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from assets.base_model.import_model import import_model
from assets.base_model.manifest import ModelManifest
from assets.content import Blob
from assets.ingest.convert import ingest_file
from assets.recipe import InversionUse, LoraUse, Recipe
from assets.storage.object_paths import blob_key
from assets.storage.object_store import FsspecStore, put_file
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.engine.attention import default_order
from serving.engine.engine import Engine
from serving.engine.options import EngineOptions
from serving.generation.contract import GenerationTask
from serving.miniature.catalogue import CATALOGUE, weights_file
from serving.miniature.model import write_miniature
from tests.support.generation import changed, task_of
from tests.support.samples import write_wild_lora


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="cuda or cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compile run last: they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("compiles") is not None)


@dataclass(frozen=True)
class Rig:
    """The miniature and its library, really imported and ingested, without a database."""

    device: torch.device
    manifest: ModelManifest
    provisioner: Provisioner
    assets: dict[str, dict[str, Blob]]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def options(self) -> EngineOptions:
        return EngineOptions(graphs="on", attention=default_order(self.device.type))

    def compiled(self, how: Any = "regional") -> EngineOptions:
        backend = "inductor" if self.is_cuda else "eager"
        return replace(
            self.options, compile=how, compile_backend=backend, compile_vae=not self.is_cuda
        )

    def engine(self, options: EngineOptions | None = None, **named: Any) -> Engine:
        budget = named.pop("budget_bytes", 4 << 30)
        return Engine(
            self.manifest, self.provisioner, str(self.device), budget,
            options=options or self.options, **named,
        )  # fmt: skip

    @property
    def base(self) -> Recipe:
        parts = self.manifest.parts
        return Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])

    def lora(self, name: str, weight: float = 0.8) -> LoraUse:
        return LoraUse(self.assets[name]["lora"], weight)

    def recipes(self) -> list[Recipe]:
        base = self.base
        other = replace(base, unet=self.assets["pixel"]["unet"])
        word = InversionUse(self.assets["mascot"]["textual_inversion"], "mascot")
        loras = [self.lora(name) for name in ("night", "dots", "outline", "heart")]
        return [
            base,
            *(replace(base, loras=(lora,)) for lora in loras),
            replace(base, loras=tuple(loras)),
            replace(base, loras=(self.lora("night", -0.4), self.lora("dots", 0.3))),
            replace(base, loras=(self.lora("night", 0.8), self.lora("dots", 0.8))),
            replace(base, inversions=(word,)),
            replace(base, vae=self.assets["sepia"]["vae"]),
            other,
            replace(other, loras=(loras[1], loras[2]), inversions=(word,)),
        ]


def request(recipe: Recipe, **changes: Any) -> GenerationTask:
    task = task_of(
        "r", recipe, "a small red star, mascot", 128, 128, (7,), steps=6, cfg_scale=4.0,
        encoding="png", tenant_id="ada",
    )  # fmt: skip
    return changed(task, **changes)


def image(engine: Engine, task: GenerationTask) -> bytes:
    """Return the first image, with all leases released."""
    with engine.prepare(task.recipe) as prepared:
        return engine.generate(prepared, task).images[0]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def rig(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    if device.type == "cpu":
        torch.set_num_threads(2)
    else:  # PyTorch fixes its order at the first call
        zeros = torch.zeros(1, 1, 8, 64, device=device, dtype=torch.float16)
        torch.nn.functional.scaled_dot_product_attention(zeros, zeros, zeros)
    folder = tmp_path_factory.mktemp("rig")
    store = FsspecStore(f"file://{folder}/store")
    manifest = import_model(store, write_miniature(folder / "miniature"), "base")

    def ingest(path: Path, kind: Any) -> dict[str, Blob]:
        scratch = folder / f"scratch-{path.stem}"
        scratch.mkdir()
        blobs = {}
        ingested = ingest_file(path, kind, manifest.schema, None, scratch)
        for component, (blob, file) in ingested.files.items():
            put_file(store, blob_key(blob), file)
            blobs[component] = blob
        return blobs  # type: ignore[return-value]

    assets = {entry.name: ingest(weights_file(entry.name), entry.kind) for entry in CATALOGUE}
    wild = write_wild_lora(folder / "wild.safetensors", manifest.schema)
    assets["wild"] = ingest(wild, "lora")
    disk, host = (FileTier(name, folder / name, 4 << 30) for name in ("disk", "host"))
    return Rig(device, manifest, Provisioner(StoreSource(store), disk, host), assets)


@pytest.fixture(scope="session")
def engine(rig: Rig) -> Engine:
    """An engine with graphs, warmed at two sizes."""
    engine = rig.engine()
    engine.warm_up([(128, 128), (128, 96)], (1, 2))
    return engine


@pytest.fixture
def syncs_are_errors(rig: Rig) -> Iterator[Callable[[bool], None]]:
    """A switch that makes waits for the device errors."""

    def switch(on: bool) -> None:
        if rig.is_cuda:
            torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield switch
    switch(False)
