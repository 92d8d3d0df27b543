"""Failures name causes, cost at most one request and leave the base unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.recipe import InversionUse, LoraUse, Recipe
from serving.errors import Cancelled, NotFinite, OutOfMemory, ReplicaLost, UnexpectedEngineError
from serving.generation.contract import GenerationTask
from serving.miniature.catalogue import weights_file
from serving.worker import Worker
from tests.support.generation import CancelledWhen, changed, image_of, task_of
from tests.support.samples import write_wild_lora


def request(recipe: Recipe, **changes: Any) -> GenerationTask:
    first = task_of("r", recipe, "a red star", 64, 64, (7,), steps=2, encoding="png")
    return changed(first, **changes)


def generate(engine: Any, recipe: Recipe, **changes: Any) -> bytes:
    return image_of(engine, request(recipe, **changes))


def failing(times: int, error: Exception, real: Any) -> Any:
    left = [times]

    def call(*inputs: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return real(*inputs, **named)

    return call


@pytest.fixture(scope="module")
def engine(bench: Any) -> Any:
    return bench.engine()


@pytest.fixture(scope="module")
def recipes(engine: Any, samples: dict[str, Any]) -> dict[str, Recipe]:
    lora = LoraUse(samples["lora_all"].parts["lora"], 0.8)
    return {"base": engine.base, "lora": replace(engine.base, loras=(lora,))}


def test_out_of_memory_evicts_and_retries_once(
    engine: Any, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = generate(engine, recipes["base"])
    with_lora = generate(engine, recipes["lora"])
    idle = recipes["lora"].loras[0].blob.key
    assert idle in engine.tier.resident()
    predict = engine.unet.call
    memory = torch.OutOfMemoryError("no memory left")
    monkeypatch.setattr(engine.unet, "call", failing(1, memory, predict))
    assert generate(engine, recipes["base"]) == before
    assert idle not in engine.tier.resident()
    monkeypatch.setattr(engine.unet, "call", failing(2, memory, predict))
    with pytest.raises(OutOfMemory, match="no memory left"):
        generate(engine, recipes["lora"])
    monkeypatch.undo()
    assert generate(engine, recipes["lora"]) == with_lora
    engine.tier.check_integrity()


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ],
)
def test_a_librarys_own_out_of_memory_errors_are_recognized(
    engine: Any, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    before = generate(engine, recipes["base"])
    call = engine.unet.call
    monkeypatch.setattr(engine.unet, "call", failing(1, RuntimeError(message), call))
    assert generate(engine, recipes["base"]) == before
    monkeypatch.setattr(engine.unet, "call", failing(2, RuntimeError(message), call))
    with pytest.raises(OutOfMemory, match=message[:20]):
        generate(engine, recipes["base"])
    assert engine.unhealthy is None


def test_out_of_memory_in_the_middle_of_a_swap(
    engine: Any, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a partial write, retry and next request rewrite every weight."""
    from serving.engine import working

    images = {name: generate(engine, recipe) for name, recipe in recipes.items()}
    memory = torch.OutOfMemoryError("no memory left")
    generate(engine, recipes["base"])
    monkeypatch.setattr(working, "_write", failing(1, memory, working._write))
    assert generate(engine, recipes["lora"]) == images["lora"]
    generate(engine, recipes["base"])
    monkeypatch.setattr(working, "_write", failing(2, memory, working._write))
    with pytest.raises(OutOfMemory):
        generate(engine, recipes["lora"])
    assert engine.unhealthy is None
    assert generate(engine, recipes["base"]) == images["base"]
    assert engine.digest() == engine._base_digest


def test_out_of_memory_while_loading_an_asset(
    engine: Any, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_lora = generate(engine, recipes["lora"])
    load, memory = engine.device_cache._load, torch.OutOfMemoryError("no memory left")
    for times, expected in ((1, None), (2, OutOfMemory)):
        engine.tier.evict_idle()
        monkeypatch.setattr(engine.device_cache, "_load", failing(times, memory, load))
        if expected is None:
            assert generate(engine, recipes["lora"]) == with_lora
        else:
            with pytest.raises(expected):
                engine.prepare(recipes["lora"])
    monkeypatch.undo()
    engine.tier.check_integrity()
    assert generate(engine, recipes["lora"]) == with_lora


def test_a_non_finite_image_names_the_lora(
    bench: Any, engine: Any, recipes: dict[str, Recipe], samples: dict[str, Any], tmp_path: Path
) -> None:
    """Among harmless assets, at an overflowing weight."""
    before = generate(engine, recipes["base"])
    asset = bench.ingest(
        write_wild_lora(tmp_path / "wild.safetensors", bench.manifest.schema), "lora"
    )
    wild = LoraUse(asset.parts["lora"], 10.0)
    inversion = InversionUse(samples["inversion"].parts["textual_inversion"], "qzebra")
    recipe = replace(recipes["lora"], loras=(*recipes["lora"].loras, wild), inversions=(inversion,))
    with pytest.raises(NotFinite, match="at weight 10") as caught:
        generate(engine, recipe, prompt="a qzebra star")
    assert caught.value.blamed == (asset.parts["lora"].key,)
    assert "'mine'" in str(caught.value.named({asset.parts["lora"].key: "mine"}))
    assert generate(engine, recipes["base"]) == before
    tame = replace(recipe, loras=(*recipes["lora"].loras, replace(wild, weight=0.0)))
    assert generate(engine, tame, prompt="a qzebra star")


def test_a_non_finite_image_names_the_checkpoint_or_the_vae(
    bench: Any, engine: Any, recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    before = generate(engine, recipes["base"])
    tensors = load_file(weights_file("vae"))
    for name, tensor in tensors.items():
        if name.startswith("decoder.") and tensor.ndim == 4:
            tensors[name] = tensor.float() * 1e25
    save_file(tensors, tmp_path / "vae.safetensors")
    vae = bench.ingest(tmp_path / "vae.safetensors", "vae").parts["vae"]
    with pytest.raises(NotFinite, match="no finite image") as caught:
        generate(engine, replace(recipes["lora"], vae=vae))
    assert caught.value.blamed == (vae.key,)

    tensors = {name: t.float() * 1e10 for name, t in load_file(weights_file("unet")).items()}
    save_file(tensors, tmp_path / "unet.safetensors")
    unet = bench.ingest(tmp_path / "unet.safetensors", "checkpoint").parts["unet"]
    with pytest.raises(NotFinite, match="the checkpoint") as caught:
        generate(engine, replace(recipes["lora"], unet=unet))
    assert unet.key in caught.value.blamed
    assert generate(engine, recipes["base"]) == before


def test_a_failed_swap_restores_the_base_weights(engine: Any, recipes: dict[str, Recipe]) -> None:
    prepared = engine.prepare(recipes["lora"])
    lease = prepared.leases[recipes["lora"].loras[0].blob.key]
    real = lease.value
    groups = dict(real.groups)
    last = sorted(groups)[-1]
    factors = groups[last][0]
    invalid = replace(factors, pieces={**factors.pieces, "up": factors.pieces["up"][:, :1]})
    lease.value = replace(real, groups={**groups, last: (invalid,)})
    with pytest.raises(UnexpectedEngineError, match="RuntimeError"):
        engine.generate(prepared, request(recipes["lora"]))
    assert engine.unhealthy is None
    assert engine.digest() == engine._base_digest
    lease.value = real
    prepared.release()


def test_an_engine_that_cannot_restore_the_base_is_unhealthy(
    bench: Any, samples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker's report raises ReplicaLost, which replaces the replica."""
    engine = bench.engine("spoilt")
    worker = Worker(engine)
    assert worker.report().id == "spoilt"
    slab = next(iter(engine._base.pristine(engine.base.unet).slabs.values()))
    slab.view(-1)[0] += 1  # corrupts a pristine weight
    engine._working._current = None  # forces a full rewrite
    error = RuntimeError("torn")
    monkeypatch.setattr(engine._working, "switch_to", failing(1, error, engine._working.switch_to))
    prepared = engine.prepare(engine.base)
    with pytest.raises(UnexpectedEngineError, match="RuntimeError"):
        engine.generate(prepared, request(engine.base))
    prepared.release()
    assert engine.unhealthy == "the digest of the restored base weights has changed"
    with pytest.raises(ReplicaLost, match="unhealthy"):
        worker.report()
    worker.close()


def test_an_error_during_generation_fails_only_its_request(
    engine: Any, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = generate(engine, recipes["lora"])
    fail_once = failing(1, ZeroDivisionError("odd"), engine.unet.call)
    monkeypatch.setattr(engine.unet, "call", fail_once)
    with pytest.raises(UnexpectedEngineError, match="ZeroDivisionError"):
        generate(engine, recipes["lora"])
    assert generate(engine, recipes["lora"]) == before
    prepared = engine.prepare(recipes["base"])
    with pytest.raises(Cancelled):
        engine.generate(prepared, request(recipes["base"]), CancelledWhen(lambda: True))
    prepared.release()
