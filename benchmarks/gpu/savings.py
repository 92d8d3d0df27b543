"""The exact savings, measured on and off."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.document import Document
from benchmarks.gpu.stages import Row
from benchmarks.gpu.world import World, median
from serving.engine.engine import Engine
from serving.engine.options import EngineOptions
from serving.generation.contract import GenerationTask
from serving.worker import Worker

#: Compared with all savings on.
WITHOUT = {
    "everything off": EngineOptions(graphs="off", keep_cross_kv=False, prompt_cache_bytes=0),
    "no graphs": EngineOptions(graphs="off"),
    "keys and values in every step": EngineOptions(keep_cross_kv=False),
    "no prompt cache": EngineOptions(prompt_cache_bytes=0),
}


def savings(world: World, compared: EngineOptions) -> Row:
    """Time each saving on and off, interleaved, for the same and another LoRA. Ratios are off ÷
    on."""

    def on_top(options: EngineOptions) -> EngineOptions:
        names = ("graphs", "keep_cross_kv", "prompt_cache_bytes")
        changed = {name: getattr(options, name) for name in names}
        if changed["graphs"] == "auto":
            changed["graphs"] = compared.graphs
        return replace(compared, **changed)

    options = {"all": EngineOptions(), **WITHOUT}
    engines = {n: world.engine(on_top(chosen), f"saving: {n}") for n, chosen in options.items()}
    side = world.scale.side
    images: dict[str, set[bytes]] = {}
    rows: dict[str, list[float]] = {}
    for engine in engines.values():
        engine.warm_up([(side, side)], (1,), (True,))
    negative: Document = {"negative_prompt": "blurred, dark"}
    for index in range(max(3, world.scale.rounds // 3)):
        requests = {
            "same": world.request(**negative, encoding="png"),
            "lora": world.request(world.with_lora(index), **negative, encoding="png"),
        }
        for name, engine in engines.items():
            for kind, request in requests.items():
                distinct = images.setdefault(f"{kind} {index if kind == 'lora' else ''}", set())
                spent = world.timed_ms(partial(_generate_into, distinct, world, engine, request))
                rows.setdefault(f"{kind}, {name}", []).append(spent)
    row: Document = {"bit_equal": all(len(distinct) == 1 for distinct in images.values())}
    for kind in ("same", "lora"):
        with_all = rows[f"{kind}, all"][1:]
        row[f"{kind}_ms"] = median(with_all)
        for name in WITHOUT:  # paired by round: the machine's speed drifts
            pairs = zip(rows[f"{kind}, {name}"][1:], with_all, strict=True)
            row[f"{kind}: {name}"] = median([without / with_it for without, with_it in pairs])
    world.forget(*(f"saving: {name}" for name in options))
    return {**row, "samples": rows}


def _generate_into(
    images: set[bytes], world: World, engine: Engine, request: GenerationTask
) -> None:
    images.update(world.generate(engine, request).images)


def overlap(world: World, engine: Engine) -> Row:
    """Time requests encoded by the generating thread and concurrently: large PNGs of few steps."""

    class InTurn(Worker):
        def _generate(self, *arguments: Any) -> Any:
            rendered = super()._generate(*arguments)
            for image in rendered.images:
                image.result()
            return rendered

    side = 4 * world.scale.side if not world.is_cuda else world.scale.side
    steps = 1 if not world.is_cuda else 4
    requests = [
        world.request(seeds=(seed,), width=side, height=side, steps=steps, encoding="png")
        for seed in range(4)
    ]

    async def all_of(replica: Worker) -> list[tuple[bytes, ...]]:
        answers = await asyncio.gather(*(replica.generate(request) for request in requests))
        return [result.images for result, _ in answers]

    rivals: dict[str, Worker] = {"beside_ms": Worker(engine), "in_turn_ms": InTurn(engine)}
    rows: dict[str, list[float]] = {name: [] for name in rivals}
    kept: list[Any] = []
    for _ in range(max(3, world.scale.rounds // 5)):
        for name, replica in rivals.items():
            rows[name].append(world.timed_ms(lambda r=replica: kept.append(asyncio.run(all_of(r)))))  # type: ignore[misc]
    for replica in rivals.values():
        replica.close()
    medians = {name: median(samples[1:]) for name, samples in rows.items()}
    return {
        **medians, "in_turn_over_beside": medians["in_turn_ms"] / medians["beside_ms"],
        "equal": all(images == kept[0] for images in kept), "samples": rows,
    }  # fmt: skip
