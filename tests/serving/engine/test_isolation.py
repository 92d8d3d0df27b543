"""After any requests and failures, each image equals a fresh engine's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from assets.recipe import InversionUse, LoraUse, Recipe
from orchestrator.errors import TierError
from serving.errors import Cancelled, UnexpectedEngineError
from serving.generation.contract import GenerationTask
from tests.support.generation import CancelledWhen, task_of

WORD = "qzebra"
TENANTS = ("ada", "bob", "eve")


@pytest.fixture(scope="module")
def recipes(bench: Any, samples: dict[str, Any]) -> list[Recipe]:
    parts = bench.manifest.parts
    base = Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])
    other = replace(base, unet=samples["checkpoint"].parts["unet"])
    inversions = tuple(
        InversionUse(samples[name].parts["textual_inversion"], WORD)
        for name in ("inversion", "inversion_long")
    )

    def loras(**weights: float) -> tuple[LoraUse, ...]:
        return tuple(LoraUse(samples[n].parts["lora"], w) for n, w in weights.items())

    return [
        base,
        replace(base, loras=loras(lora_all=1.0)),
        replace(base, loras=loras(lora_all=-0.4)),
        replace(base, loras=loras(lora_cross=1.0, lora_alpha=0.5)),
        replace(base, inversions=(inversions[0],)),
        replace(base, inversions=(inversions[1],), loras=loras(lora_cross=0.3)),
        other,
        replace(other, loras=loras(lora_all=0.9)),
    ]


def request(recipe: Recipe, tenant: str) -> GenerationTask:
    seed = TENANTS.index(tenant)
    return task_of(
        tenant, recipe, f"a {WORD} star", 64, 64, (seed,), steps=2, encoding="png"
    )  # fmt: skip


class Broken(Exception):
    pass


def test_no_tenant_sees_another(bench: Any, recipes: list[Recipe]) -> None:
    engine = bench.engine()
    base_digest = engine.digest()
    fresh: dict[tuple[int, str], bytes] = {}

    def expected(index: int, tenant: str) -> bytes:
        if (index, tenant) not in fresh:
            new = bench.engine("fresh")
            prepared = new.prepare(recipes[index])
            generated = new.generate(prepared, request(recipes[index], tenant)).images
            fresh[index, tenant] = generated[0]
        return fresh[index, tenant]

    indices = st.integers(0, len(recipes) - 1)
    tenants = st.sampled_from(TENANTS)

    class Tenants(RuleBasedStateMachine):
        """One engine for all tenants and examples."""

        @rule(index=indices, tenant=tenants)
        def generate(self, index: int, tenant: str) -> None:
            prepared = engine.prepare(recipes[index])
            image = engine.generate(prepared, request(recipes[index], tenant)).images[0]
            prepared.release()
            assert image == expected(index, tenant)

        @rule(index=indices, tenant=tenants, after=st.integers(0, 1))
        def cancel(self, index: int, tenant: str, after: int) -> None:
            answers = iter([False] * after)
            cancelled = CancelledWhen(lambda: next(answers, True))
            prepared = engine.prepare(recipes[index])
            with pytest.raises(Cancelled):
                engine.generate(prepared, request(recipes[index], tenant), cancelled)
            prepared.release()

        @rule(index=indices, tenant=tenants, step=st.integers(0, 1))
        def fail_while_generating(self, index: int, tenant: str, step: int) -> None:
            predict, left = engine.unet.call, [step]

            def failing(*inputs: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Broken
                return predict(*inputs, **named)

            engine.unet.call = failing
            prepared = engine.prepare(recipes[index])
            try:
                with pytest.raises(UnexpectedEngineError):
                    engine.generate(prepared, request(recipes[index], tenant))
            finally:
                engine.unet.call = predict
                prepared.release()

        @rule(index=indices, writes=st.integers(0, 6))
        def fail_while_swapping(self, index: int, writes: int) -> None:
            from serving.engine import working

            write, left = working._write, [writes]

            def failing(
                source: torch.Tensor,
                target: torch.Tensor,
                changes: Sequence[working.Change],
                staged: bool,
            ) -> None:
                left[0] -= 1
                if left[0] < 0:
                    working._write = write
                    raise Broken
                write(source, target, changes, staged)

            working._write = failing
            prepared = engine.prepare(recipes[index])
            try:
                engine.switch_to(prepared)
            except Broken:
                assert engine.digest() == base_digest
            finally:
                working._write = write
                prepared.release()
            assert engine.unhealthy is None

        @rule(index=indices)
        def fail_while_loading(self, index: int) -> None:
            load = engine.device_cache._load

            def failing(*_: Any) -> Any:
                raise TierError("gone")

            engine.tier.evict_idle()
            engine.device_cache._load = failing
            try:
                engine.prepare(recipes[index]).release()
            except TierError:
                pass
            finally:
                engine.device_cache._load = load

        @rule()
        def evict(self) -> None:
            engine.tier.evict_idle()

        @invariant()
        def check_integrity(self) -> None:
            engine.tier.check_integrity()
            leased = [e.leases for e in engine.tier._entries.values()]
            assert sum(leased) == len(engine._base.leases)

    run_state_machine_as_test(
        Tenants,
        settings=settings(
            max_examples=8,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    prepared = engine.prepare(engine.base)
    engine.switch_to(prepared)
    prepared.release()
    assert engine.digest() == base_digest


def test_a_thousand_swaps_leave_the_base_unchanged(bench: Any, recipes: list[Recipe]) -> None:
    engine = bench.engine()
    digest = engine.digest()
    pristine = engine._base.pristine(engine.base.unet).slabs
    dice = random.Random(11)
    prepared = [engine.prepare(recipe) for recipe in recipes]
    for _ in range(1000):
        engine.switch_to(dice.choice(prepared))
    engine.switch_to(prepared[0])
    assert engine.digest() == digest
    for shape, slab in engine._working._slabs["unet"].items():
        assert torch.equal(slab, pristine[shape])
    for each in prepared:
        each.release()
