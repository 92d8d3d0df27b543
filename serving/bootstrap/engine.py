"""Builds a warm worker from the settings. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from assets.base_model.manifest import ModelManifest, load_manifest
from assets.library.resolve import BASE_NAME
from orchestrator.provision import Provisioner
from serving.bootstrap.secret import platform_secret
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
from serving.generation.sizes import ImageSizes
from serving.settings import Settings
from serving.worker import Worker

#: Activations and VAE decoder, at SDXL's sizes.
_ACTIVATION_BYTES = 4 << 30
#: One call's activations, shared by captured graphs.
_GRAPH_BYTES = 2 << 30
#: LoRA factors and vectors, with pristine weights on the host.
_FACTOR_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Budgets:
    """Memory budgets; pristine weights use ``device_bytes`` if ``pristine_bytes`` is None."""

    device_bytes: int
    pristine_bytes: int | None


def budgets(settings: Settings, device: str, manifest: ModelManifest) -> Budgets:
    """Return the configured or default budgets.

    By default, pristine weights use pinned host memory if two checkpoints do not fit a GPU.
    """
    model_bytes = sum(blob.size_bytes for blob in manifest.parts.values())
    device_bytes = max(8 << 30, 3 * model_bytes)
    if device.startswith("cuda"):
        # Contexts, kernels and other processes take gigabytes.
        free_bytes, _ = torch.cuda.mem_get_info(device)
        device_bytes = max(
            _FACTOR_BYTES, free_bytes - model_bytes - _ACTIVATION_BYTES - _GRAPH_BYTES
        )
    device_bytes = settings.device_bytes or device_bytes
    is_pristine_on_host = settings.pristine == "host" or (
        settings.pristine == "auto" and device.startswith("cuda") and device_bytes < 2 * model_bytes
    )
    if not is_pristine_on_host:
        return Budgets(device_bytes, None)
    pinned = device.startswith("cuda")
    return Budgets(device_bytes, settings.pristine_bytes or _pristine_bytes(manifest, pinned))


def _pristine_bytes(manifest: ModelManifest, pinned: bool) -> int:
    """Pinned memory is allocated in powers of two."""
    dtype = torch.float16 if pinned else torch.float32
    layouts = layouts_of(manifest.schema)
    model_bytes = sum(layout.size_bytes(dtype, pinned) for layout in layouts.values())
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(model_bytes, min(3 * model_bytes, memory_bytes * 3 // 4))


def engine_options(settings: Settings, device: str) -> EngineOptions:
    """Return the engine options, with the device's defaults."""
    compile_mode = settings.compile
    if compile_mode == "auto":
        compile_mode = "regional" if device.startswith("cuda") else "off"
    order = default_order(device) if settings.attention is None else settings.attention
    return EngineOptions(
        compile=compile_mode,
        compile_vae=settings.compile_vae,
        graphs=settings.graphs,
        keep_cross_kv=settings.keep_cross_kv,
        attention=order,
        cudnn_benchmark=settings.cudnn_benchmark,
        prompt_cache_bytes=settings.prompt_cache_bytes,
        warm_chunks=settings.warm_chunks,
    )


def open_replica(
    settings: Settings,
    name: str,
    provisioner: Provisioner,
    node: str = "local",
    url: str = "",
    loaded: Callable[[], None] = lambda: None,
) -> Worker:
    """Load and warm up a worker.

    ``loaded`` is called before the warm-up; ``url`` is for peers.
    """
    torch.set_num_threads(settings.threads_per_replica)
    store = open_store(settings)
    device = pick_device(settings.device)
    manifest = load_manifest(store, BASE_NAME)
    budget = budgets(settings, device, manifest)
    options = engine_options(settings, device)
    sizes = warm_sizes(settings, manifest)
    artifacts, key = None, ""
    if options.compile != "off":
        artifacts = ArtifactStore(store, provisioner, platform_secret(settings))
        key = artifact_key(torch.device(device), manifest, options, sizes, settings.warm_batches)
        # PyTorch's cache keys omit the order of attention backends.
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
    worker = Worker(engine, node, url)
    worker.warm_up(sizes, settings.warm_batches)
    if artifacts is not None and compilations()["compiled"]:
        save_artifacts(artifacts, key)
    return worker


def warm_sizes(settings: Settings, manifest: ModelManifest) -> list[tuple[int, int]]:
    """Return the sizes to warm up, (width, height) in pixels.

    Raises:
        InvalidRequest: AO_WARM_SIZES has an unsupported size.
    """
    native = manifest.native_size
    allowed = ImageSizes(native, settings.max_pixels)
    configured = [size.partition("x") for size in settings.warm_sizes]
    sizes = [allowed.size(int(w), int(h)) for w, _, h in configured]
    return [(size.width, size.height) for size in sizes] or [(native, native)]
