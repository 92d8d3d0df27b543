"""An engine made from the settings. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from assets.model import ModelManifest, load_manifest
from assets.resolve import BASE_NAME
from orchestrator.provision import Provisioner
from serving.engine.compiled import keep_artifacts
from serving.engine.devices import pick_device
from serving.engine.engine import Engine
from serving.settings import Settings
from serving.sizes import picture_size
from serving.storage import open_store

#: What drawing itself takes on the device, at SDXL's sizes and the engine's batch.
_ACTIVATION_BYTES = 6 << 30
#: Room on the device for factors and vectors, where pristine weights lie apart.
_FACTOR_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Budgets:
    """``pristine_bytes`` is None where pristine weights lie on the device like all else."""

    device_bytes: int
    pristine_bytes: int | None


def budgets(settings: Settings, device: str, manifest: ModelManifest) -> Budgets:
    """As set; else what the card has beside the working weights and the activations. A card
    without room for two checkpoints keeps pristine weights in pinned host memory. The CPU has
    no tier of its own: there it is room for a few checkpoints in float32."""
    model_bytes = sum(blob.size_bytes for blob in manifest.parts.values())
    room = max(8 << 30, 3 * model_bytes)
    if device.startswith("cuda"):
        total = int(torch.cuda.get_device_properties(device).total_memory)
        room = max(_FACTOR_BYTES, total - model_bytes - _ACTIVATION_BYTES)
    room = settings.device_bytes or room
    apart = settings.pristine == "host" or (
        settings.pristine == "auto" and device.startswith("cuda") and room < 2 * model_bytes
    )
    return Budgets(room, (settings.pristine_bytes or 3 * model_bytes) if apart else None)


def open_engine(
    settings: Settings,
    name: str,
    provisioner: Provisioner,
    loaded: Callable[[], None] = lambda: None,
) -> Engine:
    """A warm engine: it has drawn what a first request would have to wait for. ``loaded`` is
    called once the model is there, before the first picture."""
    torch.set_num_threads(settings.threads_per_replica)
    store = open_store(settings)
    device = pick_device(settings.device)
    manifest = load_manifest(store, BASE_NAME)
    budget = budgets(settings, device, manifest)
    how = settings.compile
    if how == "auto":
        how = "regional" if device.startswith("cuda") else "off"
    if how != "off":
        keep_artifacts(settings.data_dir / "compiled")
    engine = Engine(
        manifest,
        provisioner,
        device,
        budget.device_bytes,
        name,
        pristine_budget_bytes=budget.pristine_bytes,
        compiling=how,
    )
    loaded()
    engine.warm_up(warm_sizes(settings, manifest), settings.warm_batches)
    return engine


def warm_sizes(settings: Settings, manifest: ModelManifest) -> list[tuple[int, int]]:
    """In pixels of the served model.

    Raises:
        InvalidRequest: a size that is not on offer.
    """
    native = manifest.native_size
    given = [size.partition("x") for size in settings.warm_sizes]
    sizes = [picture_size(int(w), int(h), native) for w, _, h in given]
    return [(size.width, size.height) for size in sizes] or [(native, native)]
