"""The programs: their stages in order, the most valuable first.

Each has its own process: a hanging compilation or lost device ends only that. Expected seconds are
for an H100; a dry run ignores them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.gpu import device, kernels, load, switching, unet_calls, whole_images
from benchmarks.gpu import savings as savings_stage
from benchmarks.gpu.stages import Row, Stages
from benchmarks.gpu.world import World
from serving.engine.attention import default_order
from serving.engine.engine import Engine
from serving.engine.options import AttentionBackend, EngineOptions

#: Unguided doubles compile time; the self-check covers it.
_GUIDED = (True,)

Program = Callable[[World, Stages, bool], None]


class _Run:
    def __init__(self, world: World, stages: Stages, is_dry: bool) -> None:
        self.world = world
        self.stages = stages
        self._is_dry = is_dry

    def __call__(self, name: str, expected_s: float, work: Callable[[], Row]) -> None:
        self.stages.run(name, 0.0 if self._is_dry else expected_s, work)

    @property
    def order(self) -> tuple[AttentionBackend, ...]:
        return default_order(str(self.world.device))

    def engine(self) -> Engine:
        return self.world.engines["engine"]

    def start(self, options: EngineOptions, expected_s: float) -> None:
        world = self.world
        self("facts", 1, partial(device.facts, world))
        self("ceilings", 4, partial(device.ceilings, world))
        self("start", expected_s, partial(whole_images.start_engine, world, options))

    @property
    def matrix_tflops(self) -> float:
        row = self.stages.document["stages"].get("ceilings", {})
        return float(row.get("matrix_tflops", "nan"))

    def images(self, rivals: tuple[str, ...], rounds: int, expected_s: float) -> None:
        rounds = min(rounds, self.world.scale.rounds)
        self("images", expected_s, lambda: whole_images.images(
            self.world, self.engine(), rivals, rounds, self.matrix_tflops,
            lambda: self.stages.left_s,
        ))  # fmt: skip


def _options(run: _Run, **changes: object) -> EngineOptions:
    """Graphs on; on a CPU a stand-in and a backend that only traces."""
    backend = "inductor" if run.world.is_cuda else "eager"
    named: dict[str, object] = {
        "graphs": "on", "attention": run.order, "compile_backend": backend, **changes,
    }  # fmt: skip
    return EngineOptions(**named)  # type: ignore[arg-type]


def plain(world: World, stages: Stages, is_dry: bool) -> None:
    """Uncompiled: exactness, switches, steps, graphs, whole images."""
    run = _Run(world, stages, is_dry)
    run.start(_options(run), 8)
    run("switch is exact", 10, lambda: switching.switch_is_exact(world, run.engine()))
    run("switch", 8, lambda: switching.switch_times(world, run.engine()))
    run("graph", 12, lambda: unet_calls.capture_is_exact(world, run.engine()))
    run("step is right", 12, lambda: unet_calls.step_is_right(world, run.engine()))
    run("step", 8, lambda: unet_calls.step_times(world, run.engine()))
    run("warm-up", 8, lambda: whole_images.warm_up(world, run.engine()))
    run.images(("as it comes", "VAE in bfloat16"), 5, 30)
    run("around", 8, lambda: whole_images.around(world, run.engine()))
    run("batches", 15, lambda: whole_images.batches(world, run.engine()))
    run("kernels", 5, lambda: unet_calls.profile_step(world, run.engine()))
    run("stock LoRA", 10, lambda: whole_images.stock_lora(world))


def regional(world: World, stages: Stages, is_dry: bool) -> None:
    """The UNet's repeated blocks are compiled, then captured."""
    run = _Run(world, stages, is_dry)
    run.start(_options(run, compile="regional", compile_vae=False), 8)
    run("warm-up", 50, lambda: whole_images.warm_up(world, run.engine(), _GUIDED))
    run.images(("as it comes",), 6, 20)
    run("graph", 5, lambda: unet_calls.capture_is_exact(world, run.engine()))
    run("step is right", 12, lambda: unet_calls.step_is_right(world, run.engine()))
    run(
        "no fall-back",
        10,
        lambda: whole_images.no_fallback(world, run.engine(), world.scale.recipes),
    )


def full(world: World, stages: Stages, is_dry: bool) -> None:
    """UNet and decoder are compiled whole; the goals' figures against every stock variant."""
    run = _Run(world, stages, is_dry)
    run.start(_options(run, compile="full"), 8)
    run("warm-up", 110, lambda: whole_images.warm_up(world, run.engine(), _GUIDED))
    run.images(("as it comes", "VAE in bfloat16", "its best"), 30, 50)
    run("graph", 5, lambda: unet_calls.capture_is_exact(world, run.engine()))
    run("no fall-back", 10, lambda: whole_images.no_fallback(
        world, run.engine(), min(100, 9 * world.scale.recipes)
    ))  # fmt: skip
    run("step is right", 10, lambda: unet_calls.step_is_right(world, run.engine()))
    run("around", 6, lambda: whole_images.around(world, run.engine()))
    run("attention", 3, lambda: kernels.attention_backends(world))
    run("projections", 1, lambda: kernels.fused_projections(world))


def tuned(world: World, stages: Stages, is_dry: bool) -> None:
    """Regional, with tuned matrix products and cuDNN's benchmark mode."""
    run = _Run(world, stages, is_dry)
    options = _options(
        run, compile="regional", cudnn_benchmark=True,
        compile_options=(("max_autotune_gemm", True),) if world.is_cuda else (),
    )  # fmt: skip
    run.start(options, 8)
    run("warm-up", 90, lambda: whole_images.warm_up(world, run.engine(), _GUIDED))
    run.images(("as it comes",), 10, 25)
    run("graph", 5, lambda: unet_calls.capture_is_exact(world, run.engine()))
    run("convolutions", 8, lambda: kernels.convolutions(world))


def parts(world: World, stages: Stages, is_dry: bool) -> None:
    """What a served engine's step spends its time on, and alternatives for its parts."""
    run = _Run(world, stages, is_dry)
    run.start(_options(run, compile="regional"), 8)
    run("attention", 3, lambda: kernels.attention_backends(world))
    run("projections", 1, lambda: kernels.fused_projections(world))
    run("warm-up", 65, lambda: whole_images.warm_up(world, run.engine(), _GUIDED))
    run("graph", 5, lambda: unet_calls.capture_is_exact(world, run.engine()))
    run("kernels", 5, lambda: unet_calls.profile_step(world, run.engine()))
    run("around", 6, lambda: whole_images.around(world, run.engine()))
    run("convolutions", 8, lambda: kernels.convolutions(world))


def savings(world: World, stages: Stages, is_dry: bool) -> None:
    """Each saving on and off, interleaved, uncompiled. Also for CPUs."""
    run = _Run(world, stages, is_dry)
    run.start(_options(run), 8)
    run("call", 5, lambda: unet_calls.call_times(world, run.engine()))
    run("savings", 60, lambda: savings_stage.savings(world, _options(run)))
    run("overlap", 15, lambda: savings_stage.overlap(world, run.engine()))


def soak(world: World, stages: Stages, is_dry: bool) -> None:
    """A card with 24 GB; assets that come and go."""
    run = _Run(world, stages, is_dry)
    run.start(_options(run), 8)
    world.forget("engine")
    run("24 GB", 12, lambda: load.small_card(world, _options(run)))
    run("again", 2, lambda: whole_images.start_engine(world, _options(run)))
    run("warm-up", 8, lambda: whole_images.warm_up(world, run.engine()))
    run("soak", world.scale.soak_s + 12, lambda: load.soak(world, run.engine()))


PROGRAMS: dict[str, Program] = {
    "plain": plain, "regional": regional, "full": full, "tuned": tuned, "soak": soak,
    "parts": parts, "savings": savings,
}  # fmt: skip
