"""An engine made from the settings. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from assets.model import ModelManifest, load_manifest
from assets.resolve import BASE_NAME
from assets.workshop import Workshop
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.commons.miniature import identity, write_miniature
from serving.commons.publish import publish_library, withdraw_library
from serving.composition import Backends, open_fetcher, open_store
from serving.engine.compiled import keep_artifacts
from serving.engine.engine import Engine
from serving.engine.probe import EngineProbe
from serving.settings import Settings
from serving.sizes import picture_size


def pick_device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


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


def open_workshop(settings: Settings, backends: Backends) -> Workshop:
    return Workshop(
        backends.records,
        backends.blobs,
        backends.store,
        settings.secret_bytes,
        settings.scratch_dir,
        fetcher=open_fetcher(settings),
        hub=settings.hub_url,
        probe=_open_probe(settings, backends) if settings.effect_probe else None,
        quota=backends.directory.storage_limit,
    )


_PROBE_BYTES = 1 << 30


def _open_probe(settings: Settings, backends: Backends) -> EngineProbe:
    def provisioner() -> Provisioner:
        """Tiers of its own: what is only looked at pushes nothing out that is drawn with."""
        folder = settings.scratch_dir / "probe"
        disk, host = (FileTier(name, folder / name, _PROBE_BYTES) for name in ("disk", "host"))
        return Provisioner(StoreSource(backends.store), disk, host)

    return EngineProbe(lambda: load_manifest(backends.store, BASE_NAME), provisioner)


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


def open_provisioner(settings: Settings) -> Provisioner:
    """The file tiers of this node, over the object store.

    Raises:
        TierUnusable: the host tier cannot be what it is configured to be.
    """
    return Provisioner(
        StoreSource(open_store(settings)),
        disk=FileTier("disk", settings.resolved_disk_dir, settings.disk_bytes),
        host=FileTier("host", settings.resolved_host_dir, settings.host_bytes),
    )


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
