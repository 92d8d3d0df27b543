"""A warm replica made from the settings. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from assets.base_model.manifest import ModelManifest, load_manifest
from assets.library.resolve import BASE_NAME
from orchestrator.provision import Provisioner
from serving.bootstrap.storage import open_store
from serving.engine.artifacts import (
    ArtifactStore,
    artifact_key,
    load_artifacts,
    save_artifacts,
)
from serving.engine.attention import default_order
from serving.engine.compiled import compilations, keep_artifacts
from serving.engine.devices import pick_device
from serving.engine.engine import Engine
from serving.engine.options import EngineOptions
from serving.engine.slabs import layouts_of
from serving.generation.sizes import image_size
from serving.settings import Settings
from serving.worker import Worker

#: What generating takes on the device at SDXL's sizes and the engine's batch: activations, and
#: the VAE's decoder.
_ACTIVATION_BYTES = 4 << 30
#: Memory that captured graphs share; it holds one call's activations.
_GRAPH_BYTES = 2 << 30
#: Room on the device for factors and vectors, where pristine weights lie apart.
_FACTOR_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Budgets:
    """``pristine_bytes`` is None where pristine weights lie on the device like all else."""

    device_bytes: int
    pristine_bytes: int | None


def budgets(settings: Settings, device: str, manifest: ModelManifest) -> Budgets:
    """As set; else what is free on the card beside the working weights, activations and graphs.
    A card without room for two checkpoints keeps pristine weights in pinned host memory. A CPU
    has no memory of its own: there it is room for a few checkpoints in float32."""
    model_bytes = sum(blob.size_bytes for blob in manifest.parts.values())
    room = max(8 << 30, 3 * model_bytes)
    if device.startswith("cuda"):
        # What is free, not what there is: a context, kernels and neighbours take gigabytes.
        free_bytes, _ = torch.cuda.mem_get_info(device)
        room = max(_FACTOR_BYTES, free_bytes - model_bytes - _ACTIVATION_BYTES - _GRAPH_BYTES)
    room = settings.device_bytes or room
    apart = settings.pristine == "host" or (
        settings.pristine == "auto" and device.startswith("cuda") and room < 2 * model_bytes
    )
    if not apart:
        return Budgets(room, None)
    pinned = device.startswith("cuda")
    return Budgets(room, settings.pristine_bytes or _pristine_bytes(manifest, pinned))


def _pristine_bytes(manifest: ModelManifest, pinned: bool) -> int:
    """Room for three models, but at most three quarters of the machine's memory and at least one
    model. Pinned memory comes in powers of two."""
    dtype = torch.float16 if pinned else torch.float32
    layouts = layouts_of(manifest.schema)
    one = sum(layout.size_bytes(dtype, pinned) for layout in layouts.values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(one, min(3 * one, memory * 3 // 4))


def engine_options(settings: Settings, device: str) -> EngineOptions:
    """As set, with what suits the device where nothing is said."""
    how = settings.compile
    if how == "auto":
        how = "regional" if device.startswith("cuda") else "off"
    order = default_order(device) if settings.attention is None else settings.attention
    return EngineOptions(
        compile=how,
        compile_vae=settings.compile_vae,
        graphs=settings.graphs,
        keep_cross_kv=settings.keep_cross_kv,
        attention=order,
        cudnn_benchmark=settings.cudnn_benchmark,
        prompt_cache_bytes=settings.prompt_cache_bytes,
    )


def open_replica(
    settings: Settings,
    name: str,
    provisioner: Provisioner,
    node: str = "local",
    url: str = "",
    loaded: Callable[[], None] = lambda: None,
) -> Worker:
    """A warm replica: a first request waits for nothing that could have been done before.
    ``loaded`` is called once the model is there, before the warm-up. ``url`` is where other
    nodes find what this one holds."""
    torch.set_num_threads(settings.threads_per_replica)
    store = open_store(settings)
    device = pick_device(settings.device)
    manifest = load_manifest(store, BASE_NAME)
    budget = budgets(settings, device, manifest)
    options = engine_options(settings, device)
    sizes = warm_sizes(settings, manifest)
    artifacts, key = None, ""
    if options.compile != "off":
        artifacts = ArtifactStore(store, provisioner, settings.secret_bytes)
        key = artifact_key(torch.device(device), manifest, options, sizes, settings.warm_batches)
        # A folder for each key: PyTorch's own keys know nothing of the order of attention.
        keep_artifacts(settings.data_dir / "compiled" / key)
        load_artifacts(artifacts, key)
    engine = Engine(
        manifest,
        provisioner,
        device,
        budget.device_bytes,
        name,
        pristine_budget_bytes=budget.pristine_bytes,
        options=options,
    )
    loaded()
    replica = Worker(engine, node, url)
    replica.warm_up(sizes, settings.warm_batches)
    if artifacts is not None and compilations()["compiled"]:
        save_artifacts(artifacts, key)
    return replica


def warm_sizes(settings: Settings, manifest: ModelManifest) -> list[tuple[int, int]]:
    """In pixels of the served model.

    Raises:
        InvalidRequest: a size that is not on offer.
    """
    native = manifest.native_size
    given = [size.partition("x") for size in settings.warm_sizes]
    sizes = [image_size(int(w), int(h), native) for w, _, h in given]
    return [(size.width, size.height) for size in sizes] or [(native, native)]
