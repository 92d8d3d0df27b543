"""Generation on the device: exact, identical from graphs, without waits, and recoverable."""

from __future__ import annotations

import copy
import gc
import io
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu.world import exact_convolutions
from serving.engine.compiled import compilations
from serving.engine.denoise import STEPS_AHEAD
from serving.engine.engine import Engine
from serving.engine.graphs import UnetKey
from serving.engine.options import EngineOptions
from serving.errors import Cancelled, NotFinite, OutOfMemory
from serving.generation.contract import GenerationTask
from serving.generation.engine import StartPreview, Unobserved
from serving.generation.samplers import SAMPLERS
from tests.gpu.plugin import Rig, image, request
from tests.support.generation import CancelledWhen


def call_inputs(rig: Rig, seed: int) -> tuple[UnetKey, torch.Tensor, torch.Tensor, dict[str, Any]]:
    config = rig.manifest.configs["unet"]
    dtype = torch.float16 if rig.is_cuda else torch.float32
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(rig.device, dtype)

    key = UnetKey(schema=rig.manifest.schema.digest, width=128, height=128, batch=1, guided=True)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    added = {"text_embeds": noise(2, pooled), "time_ids": noise(2, 6).abs() * 100}
    return key, noise(2, 4, 16, 16), noise(2, 77, config["cross_attention_dim"]), added


@pytest.mark.compiles
@torch.inference_mode()
def test_a_step_is_as_exact_as_stock(rig: Rig) -> None:
    """(e) Error to float32 of at most 1.2 × the plain module's."""
    key, sample, context, added = call_inputs(rig, 1)
    timestep = torch.tensor(300.0, device=rig.device)
    plain = rig.engine(EngineOptions(graphs="off", keep_cross_kv=False, max_batch=4))
    named = {"encoder_hidden_states": context, "added_cond_kwargs": added}
    theirs = plain._unet(sample, timestep, **named).sample
    with exact_convolutions():
        exact = copy.deepcopy(plain._unet).float()(
            sample.float(), timestep, encoder_hidden_states=context.float(),
            added_cond_kwargs={name: tensor.float() for name, tensor in added.items()},
        ).sample  # fmt: skip
    limit = max(1.2 * float((theirs.float() - exact).norm()), 1e-5 * float(exact.norm()))
    for options in (rig.options, rig.compiled()):
        engine = rig.engine(options)
        with engine.unet.warming():
            replay = engine.unet.start(key, context, added)
        graphed = replay(sample, timestep).clone()
        eager = engine.unet.run(key, sample, timestep, context, added)
        for result in (graphed, eager):
            assert float((result.float() - exact).norm()) <= limit, options.compile


@torch.inference_mode()
def test_a_replay_equals_the_call(rig: Rig, engine: Engine) -> None:
    """(f) Catches inputs not copied in, and weights at other addresses."""
    inputs = [call_inputs(rig, seed) for seed in (1, 2)]
    assert inputs[0][0] in engine.unet.graphs
    dice = random.Random(1)
    for recipe in dice.sample(rig.recipes(), 6):
        with engine.prepare(recipe) as prepared:
            engine.switch_to(prepared)
        for key, sample, context, added in inputs:
            replay = engine.unet.start(key, context, added)
            for timestep in (torch.tensor(t, device=rig.device) for t in (900.0, 20.0)):
                graphed = replay(sample, timestep).clone()
                assert torch.equal(graphed, engine.unet.run(key, sample, timestep, context, added))


def check_mixed_recipes(rig: Rig, options: EngineOptions, guided: tuple[bool, ...]) -> None:
    """Nothing is compiled, all is replayed, in one thread that is not the main one."""
    sizes = [(128, 128), (128, 96)] if True in guided and False in guided else [(128, 128)]
    engine = rig.engine(options)  # in another thread, as in a replica
    with ThreadPoolExecutor(1) as thread:
        thread.submit(engine.warm_up, sizes, (1,), guided).result()
        before = compilations()["graphs"]
        dice = random.Random(1)
        for recipe in dice.choices(rig.recipes(), k=30 if rig.is_cuda else 12):
            width, height = dice.choice(sizes)
            task = request(
                recipe, steps=2, sampler=dice.choice(tuple(SAMPLERS)), width=width, height=height,
                cfg_scale=4.0 if dice.choice(guided) else 1.0,
            )  # fmt: skip
            thread.submit(image, engine, task).result()
    assert engine.unet.fallbacks.total() == 0
    assert compilations()["graphs"] == before


def test_warmed_shapes_do_not_fall_back(rig: Rig) -> None:
    """(g) Catches unwarmed batches and plans of another thread."""
    check_mixed_recipes(rig, rig.options, (True, False))


@pytest.mark.compiles
def test_compiled_shapes_do_not_fall_back(rig: Rig) -> None:
    """(g) Catches failing guards. One shape: compilation takes seconds."""
    check_mixed_recipes(rig, rig.compiled(), (True,))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_loop_never_waits_for_the_device(
    rig: Rig, engine: Engine, sampler: Any, syncs_are_errors: Callable[[bool], None]
) -> None:
    """(h) Catches ``.item()`` and copies from pageable memory."""
    task = request(rig.base, sampler=sampler)
    with engine.prepare(rig.base) as prepared, torch.inference_mode():
        engine.switch_to(prepared)
        positive, negative, _ = engine.prompts.encode(prepared, task)
        engine._settle()
        syncs_are_errors(True)
        for sampled in engine._denoiser.steps(task, (7,), positive, negative, lambda: False):
            last = sampled.latents
        syncs_are_errors(False)
        engine._settle()
        assert torch.isfinite(last).all()


def test_images_are_right_while_assets_load_and_evict(rig: Rig, engine: Engine) -> None:
    """(i) Catches slabs reused while read, blocks of streams no longer in use, and growth of
    memory."""
    recipes = rig.recipes() if rig.is_cuda else rig.recipes()[:4]
    tasks = [request(recipe, steps=2) for recipe in recipes]
    alone = [image(engine, task) for task in tasks]
    size = sum(blob.size_bytes for blob in rig.manifest.parts.values())
    busy = rig.engine(budget_bytes=4 * size)
    busy.warm_up([(128, 128)])
    stop = threading.Event()
    failures: list[BaseException] = []

    def load_and_evict(seed: int) -> None:
        dice = random.Random(seed)
        try:
            while not stop.is_set():
                busy.prepare(dice.choice(recipes)).release()
                busy.tier.evict_idle()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load_and_evict, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    reserved = []
    try:
        ends = time.monotonic() + (10 if rig.is_cuda else 2)
        while time.monotonic() < ends:
            for task, expected in zip(tasks, alone, strict=True):
                assert image(busy, task) == expected
            reserved.append(torch.cuda.memory_reserved() if rig.is_cuda else 0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert reserved[-1] <= 1.1 * reserved[len(reserved) // 2] + (64 << 20)
    busy.tier.check_integrity()


def test_cancelled_within_three_steps(rig: Rig, engine: Engine) -> None:
    """(j) Catches a host that queues all steps first."""
    before = image(engine, request(rig.base))
    recorded: list[Any] = []
    ahead: list[int] = []
    record = engine._denoiser._record

    def recording(device: torch.device) -> Any:
        recorded.append(record(device))
        return recorded[-1]

    def is_cancelled() -> bool:
        if rig.is_cuda:
            ahead.append(sum(not event._event.query() for event in recorded))
        return len(recorded) > 5

    engine._denoiser._record = recording
    try:
        task = request(rig.base, steps=30, width=512, height=512)
        with engine.prepare(rig.base) as prepared, pytest.raises(Cancelled):
            engine.generate(prepared, task, CancelledWhen(is_cancelled))
    finally:
        engine._denoiser._record = record
    assert len(recorded) == 6
    assert max(ahead, default=0) <= STEPS_AHEAD
    assert image(engine, request(rig.base)) == before


def test_previews_change_no_image(rig: Rig, engine: Engine) -> None:
    """Catches a copy that waits for the generation's stream, or reads reused memory."""
    task = request(rig.base, steps=6, seeds=(1, 2))
    before = image(engine, task)

    class Previewing(Unobserved):
        def __init__(self) -> None:
            self.encode: list[Callable[[], Sequence[bytes]]] = []

        def stepped(self, step: int, first: int, images: int, preview: StartPreview) -> None:
            self.encode.append(preview())

    observer = Previewing()
    with engine.prepare(rig.base) as prepared:
        result = engine.generate(prepared, task, observer)
    assert result.images[0] == before
    previews = [encode() for encode in observer.encode]
    assert [len(images) for images in previews] == [2] * 6
    sizes = {Image.open(io.BytesIO(data)).size for images in previews for data in images}
    assert sizes == {(task.width // 8, task.height // 8)}
    assert previews[0] != previews[-1]


def test_out_of_memory_costs_one_request(rig: Rig) -> None:
    """(k) Catches leaked leases and half-written weights."""
    engine = rig.engine(EngineOptions(graphs="off"))
    small = request(rig.base)
    before = image(engine, small)
    large = request(rig.base, width=1024, height=1024, seeds=(1, 2, 3, 4), steps=1)
    if not rig.is_cuda:
        real, engine.unet.call = engine.unet.call, _out_of_memory
        with pytest.raises(OutOfMemory):
            image(engine, large)
        engine.unet.call = real
    else:
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(rig.device).total_memory
        reserved = torch.cuda.memory_reserved(rig.device)
        torch.cuda.set_per_process_memory_fraction((reserved + (32 << 20)) / total)
        try:
            with pytest.raises(OutOfMemory):
                image(engine, large)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert image(engine, small) == before
    assert engine.unhealthy is None
    engine.tier.check_integrity()


def _out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("no memory left")


def test_a_lora_that_overflows_is_blamed(rig: Rig, engine: Engine) -> None:
    """(l) A real overflow (float16 on CUDA, float32 on a CPU). Catches flags read too early."""
    wild = replace(rig.base, loras=(rig.lora("night"), rig.lora("wild", 10.0)))
    before = image(engine, request(rig.base))
    with pytest.raises(NotFinite) as caught:
        image(engine, request(wild))
    assert caught.value.blamed == (rig.assets["wild"]["lora"].key,)
    assert image(engine, request(rig.base)) == before


@torch.inference_mode()
def test_the_vae_is_exact_enough_in_its_working_dtype(rig: Rig, engine: Engine) -> None:
    """(m) At least 40 dB PSNR to float32."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    latents = latents.to(rig.device)
    with engine.prepare(rig.base) as prepared:
        engine.switch_to(prepared)
    ((_, result),) = engine.decoder.decode(latents)
    exact_vae = copy.deepcopy(engine._vae).float()
    with exact_convolutions():
        exact = exact_vae.decode(latents / engine._vae.config.scaling_factor).sample[0]
    error = float((result.float().clamp(-1, 1) - exact.clamp(-1, 1)).square().mean())
    assert 10 * np.log10(4 / max(error, 1e-12)) >= 40


def test_the_first_image_of_a_warmed_size_is_as_fast_as_later_ones(
    rig: Rig, engine: Engine
) -> None:
    """(n) Print first ÷ later. Times vary: no assertion."""
    ratios = []
    for width, height in ((128, 128), (128, 96)):
        task = request(rig.base, width=width, height=height, steps=10)
        times_s = []
        for _ in range(3):
            started = time.perf_counter()
            image(engine, task)
            times_s.append(time.perf_counter() - started)
        ratios.append(times_s[0] / min(times_s[1:]))
    print("first image ÷ later ones:", [f"{ratio:.2f}" for ratio in ratios])


def test_images_do_not_depend_on_how_they_were_computed(rig: Rig, engine: Engine) -> None:
    """Graphs, kept keys and values, cached prompts change no bit."""
    bare = rig.engine(
        EngineOptions(
            graphs="off", keep_cross_kv=False, prompt_cache_bytes=0,
            attention=rig.options.attention,
        )
    )  # fmt: skip
    task: GenerationTask
    for recipe in rig.recipes():
        task = request(recipe, negative_prompt="blurred")
        assert image(engine, task) == image(engine, task) == image(bare, task), recipe
