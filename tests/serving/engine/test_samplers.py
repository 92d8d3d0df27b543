"""Every sampler through the engine: batches, evaluations of the UNet, no reads by the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serving.engine.denoise import Sampled
from serving.generation.samplers import SAMPLERS, Sampler, evaluations
from tests.support.generation import task_of

STEPS = 3
SEEDS = (3, 4, 5, 6)


@pytest.fixture(scope="module")
def engine(bench: Any) -> Any:
    return bench.engine()


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts tensors that the host reads, which waits for a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler(engine: Any, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(
        "r", engine.base, "a red star", 64, 64, SEEDS, steps=STEPS, sampler=sampler, encoding="png"
    )
    calls: list[int] = []
    call = engine.unet.call

    def counted(sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        calls.append(len(sample))
        return call(sample, *arguments, **named)

    monkeypatch.setattr(engine.unet, "call", counted)
    prepared = engine.prepare(task.recipe)
    try:
        engine.switch_to(prepared)
        positive, negative, _ = engine.prompts.encode(prepared, task)

        def latents(*seeds: int) -> torch.Tensor:
            with torch.inference_mode():
                steps: list[Sampled] = list(
                    engine._denoiser.steps(task, seeds, positive, negative, lambda: False)
                )
            return steps[-1].latents

        with HostReads() as reads:
            batch = latents(*SEEDS)
        assert reads.count == 0
        assert calls == [2 * len(SEEDS)] * evaluations(sampler, STEPS)
        alone = torch.cat([latents(seed) for seed in SEEDS])
        assert (batch - alone).norm() <= 1e-4 * alone.norm()
    finally:
        prepared.release()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_of_four_is_the_image_of_its_seed(engine: Any, sampler: Sampler) -> None:
    def images(*seeds: int) -> tuple[bytes, ...]:
        task = task_of(
            "r", engine.base, "a star", 64, 64, seeds, steps=2, sampler=sampler, encoding="png"
        )
        prepared = engine.prepare(task.recipe)
        try:
            generated: tuple[bytes, ...] = engine.generate(prepared, task).images
            return generated
        finally:
            prepared.release()

    assert images(*SEEDS) == tuple(images(seed)[0] for seed in SEEDS)
