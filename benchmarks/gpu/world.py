"""A model with random weights in device memory, engines over it, and stock diffusers with the same
weights. Times do not depend on the values."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from assets.base_model.manifest import ModelManifest
from assets.content import MODEL_COMPONENTS, Blob, Component
from assets.families.config import Configs
from assets.families.sdxl import SDXL_CONFIGS, schema_of
from assets.recipe import LoraUse, Recipe
from benchmarks.document import Document
from benchmarks.gpu.random_model import random_lora, random_slabs
from benchmarks.gpu.stock import stock_pipeline
from orchestrator.device_tier import DeviceTier
from serving.engine.engine import Engine
from serving.engine.graphs import UnetKey
from serving.engine.options import EngineOptions
from serving.engine.slabs import layouts_of
from serving.engine.values import DeviceValue, Lora, Pristine
from serving.generation.contract import GenerationResult, GenerationTask
from serving.miniature.model import MINIATURE_CONFIGS
from tests.support.generation import changed, task_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


PROMPT = "a small red star on a blue background"
_TIER_BYTES = 64 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run: ``side`` in pixels, ``rounds`` of samples per figure."""

    configs: Configs
    side: int
    steps: int
    rounds: int
    loras: int
    rank: int
    recipes: int
    matrix: int
    copy_bytes: int
    soak_s: float
    #: (width, height), without the native size.
    other_sizes: tuple[tuple[int, int], ...]


FULL = Scale(
    configs=SDXL_CONFIGS, side=1024, steps=30, rounds=30, loras=6, rank=32, recipes=12,
    matrix=8192, copy_bytes=2 << 30, soak_s=25.0,
    other_sizes=((832, 1216), (1216, 832), (896, 1152), (1344, 768)),
)  # fmt: skip
#: The miniature, for CPUs.
SMALL = replace(
    FULL, configs=MINIATURE_CONFIGS, side=128, rank=32, matrix=512, copy_bytes=1 << 26,
    other_sizes=((64, 96),),
)  # fmt: skip
DRY = Scale(
    configs=MINIATURE_CONFIGS, side=64, steps=2, rounds=2, loras=2, rank=4, recipes=4,
    matrix=64, copy_bytes=1 << 16, soak_s=1.0, other_sizes=((64, 96),),
)  # fmt: skip


@dataclass
class World:
    """A random model. ``tier`` holds base, second UNet and LoRAs for all engines."""

    device: torch.device
    scale: Scale
    tier: DeviceTier[DeviceValue]
    manifest: ModelManifest
    other_unet: Blob
    loras: list[Blob]
    engines: dict[str, Engine] = field(default_factory=dict)
    stocks: Document = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def timed_ms(self, work: Callable[[], object]) -> float:
        """Wall time until the device has finished."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return (time.perf_counter() - started) * 1000

    def host_ms(self, work: Callable[[], object]) -> float:
        """Wall time until the call returns."""
        self.synchronize()
        started = time.perf_counter()
        work()
        spent_ms = (time.perf_counter() - started) * 1000
        self.synchronize()
        return spent_ms

    def engine(self, options: EngineOptions, name: str = "engine") -> Engine:
        """Return the named engine, created at the first call."""
        if name not in self.engines:
            self.engines[name] = Engine(
                self.manifest, None, str(self.device), _TIER_BYTES, name,
                options=options, tier=self.tier,
            )  # fmt: skip
        return self.engines[name]

    @property
    def base(self) -> Recipe:
        parts = self.manifest.parts
        return Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])

    def with_lora(self, index: int, weight: float = 0.8) -> Recipe:
        return replace(self.base, loras=(LoraUse(self.loras[index % len(self.loras)], weight),))

    @property
    def with_checkpoint(self) -> Recipe:
        return replace(self.base, unet=self.other_unet)

    def recipes(self, count: int) -> list[Recipe]:
        """Return random recipes: two UNets, no to three LoRAs, weights of either sign."""
        rng = random.Random(3)
        recipes = []
        for _ in range(count):
            chosen = rng.sample(self.loras, rng.randint(0, min(3, len(self.loras))))
            uses = tuple(LoraUse(blob, rng.uniform(-1, 1)) for blob in chosen)
            unet = rng.choice((self.base.unet, self.other_unet))
            recipes.append(replace(self.base, unet=unet, loras=uses))
        return recipes

    def request(self, recipe: Recipe | None = None, **changes: Any) -> GenerationTask:
        first = task_of(
            "r", recipe or self.base, PROMPT, self.scale.side, self.scale.side, (7,),
            steps=self.scale.steps, cfg_scale=7.5, tenant_id="bench",
        )  # fmt: skip
        return changed(first, **changes)

    def generate(self, engine: Engine, request: GenerationTask) -> GenerationResult:
        with engine.prepare(request.recipe) as prepared:
            return engine.generate(prepared, request)

    def call_inputs(
        self, batch: int = 1, *, guided: bool = True, side: int = 0, seed: int = 5
    ) -> tuple[UnetKey, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        config = self.scale.configs["unet"]
        side = side or self.scale.side
        key = UnetKey(
            schema=self.manifest.schema.digest, width=side, height=side, batch=batch,
            guided=guided,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.float16 if self.is_cuda else torch.float32

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(self.device, dtype)

        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= 6 * config["addition_time_embed_dim"]
        added = {
            "text_embeds": noise(key.rows, pooled),
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * key.rows).to(
                self.device, dtype
            ),
        }
        sample = noise(key.rows, config["in_channels"], side // 8, side // 8)
        return key, sample, noise(key.rows, 77, config["cross_attention_dim"]), added

    def stock(self, how: str = "as it comes") -> StableDiffusionXLPipeline:
        """Stock's pipeline, made once per ``how``."""
        if how not in self.stocks:
            with torch.inference_mode(False):  # inference tensors cannot be cast to float32
                self.stocks[how] = stock_pipeline(self.manifest, self.tier, self.device)
            if how == "its best":
                best = self.stocks[how]
                best.unet.to(memory_format=torch.channels_last)
                best.vae.to(memory_format=torch.channels_last)
                best.unet.compile_repeated_blocks(
                    fullgraph=True, dynamic=False,
                    backend="inductor" if self.is_cuda else "eager",
                )  # fmt: skip
        return self.stocks[how]

    def stock_image(
        self,
        pipeline: StableDiffusionXLPipeline,
        vae_dtype: torch.dtype | None = None,
        prompt: str = PROMPT,
    ) -> Any:
        """Uses the noise of our seed 7; ``vae_dtype`` replaces stock's."""
        side = self.scale.side
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(1, 4, side // 8, side // 8, generator=generator)
        named: Document = {
            "num_inference_steps": self.scale.steps, "guidance_scale": 7.5,
            "width": side, "height": side,
            "latents": noise.to(self.device, pipeline.unet.dtype),
        }  # fmt: skip
        if vae_dtype is None:
            return pipeline(prompt, **named).images[0]
        latents = pipeline(prompt, output_type="latent", **named).images
        with torch.no_grad():
            scaled = latents / pipeline.vae.config.scaling_factor
            decoded = pipeline.vae.to(vae_dtype).decode(scaled.to(vae_dtype)).sample
        pipeline.vae.to(pipeline.unet.dtype)
        return pipeline.image_processor.postprocess(decoded.float())[0]

    def forget(self, *names: str) -> None:
        for name in names:
            self.engines.pop(name, None)
            self.stocks.pop(name, None)
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


def make_world(device: torch.device, scale: Scale) -> World:
    """Make a world resident on the device."""
    is_cuda = device.type == "cuda"
    schema = schema_of(scale.configs)
    layouts = layouts_of(schema, channels_last=is_cuda)
    tier: DeviceTier[DeviceValue] = DeviceTier(_TIER_BYTES)
    generator = torch.Generator(device).manual_seed(1)
    dtype = torch.float16 if is_cuda else torch.float32

    def put(key: str, size_bytes: int, make: Callable[[], DeviceValue]) -> Blob:
        lease, _ = tier.admit(key, size_bytes, make)
        lease.release()
        return Blob(key, "-", size_bytes)

    def pristine(component: Component, key: str) -> Blob:
        weight_dtype = torch.bfloat16 if is_cuda and component == "vae" else dtype
        layout = layouts[component]
        return put(
            key, layout.size_bytes(weight_dtype),
            lambda: Pristine(random_slabs(layout, device, weight_dtype, generator), component),
        )  # fmt: skip

    parts = {component: pristine(component, f"base-{component}") for component in MODEL_COMPONENTS}
    loras = []
    for index in range(scale.loras):
        groups = random_lora(layouts, device, dtype, generator, scale.rank)
        size_bytes = sum(p.nbytes for (f,) in groups.values() for p in f.pieces.values())
        loras.append(put(f"lora-{index}", size_bytes, lambda g=groups: Lora(g)))  # type: ignore[misc]
    other = pristine("unet", "other-unet")
    manifest = ModelManifest("base", "random weights", scale.configs, parts, schema)
    return World(device, scale, tier, manifest, other, loras)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Turn off cuDNN's TF32 (10 bits) for float32 convolutions."""
    flags = torch.backends.cudnn.flags
    with flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        yield


def median(samples: list[float]) -> float:
    return statistics.median(samples)


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Return ‖value − exact‖ ÷ ‖exact‖."""
    return float((value.double() - exact.double()).norm() / exact.double().norm())
