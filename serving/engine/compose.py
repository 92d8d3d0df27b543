"""An engine made from the settings. Imports torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from assets.model import ModelManifest, load_manifest
from assets.resolve import BASE_NAME
from assets.workshop import Workshop
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.commons.miniature import identity, write_miniature
from serving.commons.publish import publish_library, withdraw_library
from serving.composition import Backends, StoreSource, open_store
from serving.drawing import DrawRequest
from serving.engine.engine import Engine
from serving.settings import Settings


def pick_device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


#: What drawing itself takes on the device, at SDXL's sizes and the engine's batch.
_ACTIVATION_BYTES = 6 << 30


def device_budget_bytes(settings: Settings, device: str, manifest: ModelManifest) -> int:
    """As set; else what the card has beside the working weights and the activations. The
    CPU has no tier of its own: there it is room for a few checkpoints in float32."""
    if settings.device_bytes:
        return settings.device_bytes
    model_bytes = sum(blob.size_bytes for blob in manifest.parts.values())
    if device.startswith("cuda"):
        total = int(torch.cuda.get_device_properties(device).total_memory)
        return max(model_bytes, total - model_bytes - _ACTIVATION_BYTES)
    return max(8 << 30, 3 * model_bytes)


def open_workshop(settings: Settings, backends: Backends) -> Workshop:
    return Workshop(backends.records, backends.store, settings.secret_bytes, settings.scratch_dir)


def install_model(
    settings: Settings, workshop: Workshop, progress: Callable[[str], None] = lambda _: None
) -> ModelManifest:
    """The model to serve, imported; without one of the operator's own, the miniature with its
    public library.

    Raises:
        IngestRejected: the operator's model is no SDXL model.
    """
    if settings.model is not None:
        manifest = workshop.install_base(settings.model, progress)
        withdraw_library(workshop)
        return manifest
    folder = settings.data_dir / "models" / f"miniature-{identity()}"
    manifest = workshop.install_base(write_miniature(folder), progress)
    publish_library(workshop, progress)
    return manifest


def open_engine(settings: Settings, name: str) -> Engine:
    """Raises TierUnusable when the host tier cannot be what it is configured to be."""
    torch.set_num_threads(settings.threads_per_replica)
    store = open_store(settings)
    device = pick_device(settings.device)
    provisioner = Provisioner(
        StoreSource(store),
        disk=FileTier("disk", settings.resolved_disk_dir, settings.disk_bytes),
        host=FileTier("host", settings.resolved_host_dir, settings.host_bytes),
    )
    manifest = load_manifest(store, BASE_NAME)
    budget_bytes = device_budget_bytes(settings, device, manifest)
    return Engine(manifest, provisioner, device, budget_bytes, name)


def warm_up_request(engine: Engine) -> DrawRequest:
    """A short drawing that touches everything a first request would."""
    side = engine.manifest.native_size
    return DrawRequest(
        "warm-up", engine.base, "warm up", side, side, seeds=(0,), steps=2, cfg_scale=7.0
    )
