"""Options of how an engine computes. Each can be switched off, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compile = Literal["off", "regional", "full"]
Graphs = Literal["auto", "on", "off"]
AttentionBackend = Literal["cudnn", "flash", "efficient", "math"]

#: The first is 75 % of SDXL's UNet; the others fuse GroupNorm and SiLU, saving a layout change.
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "Downsample2D", "Upsample2D")
PROMPT_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Computation options; on a CPU the defaults match stock diffusers bit for bit."""

    #: ``regional`` compiles repeated blocks; ``full`` UNet and VAE decoder whole, which is slower.
    compile: Compile = "off"
    #: diffusers classes that ``regional`` compiles.
    compile_blocks: tuple[str, ...] = BLOCKS
    #: Inductor's options are (name, value).
    compile_backend: str = "inductor"
    compile_options: tuple[tuple[str, bool | int | str], ...] = ()
    compile_vae: bool = True
    #: One captured graph per warmed shape; ``auto``: on CUDA only; ``on``: a stand-in on a CPU.
    graphs: Graphs = "auto"
    #: Compute the prompt's keys and values once a batch.
    keep_cross_kv: bool = True
    #: Lengths of prompts to warm up, in chunks of 75 tokens.
    warm_chunks: tuple[int, ...] = (1,)
    #: Most images denoised together. 0: MAX_BATCH; one on a CPU without graphs, where kernels round
    #: differently with the batch, so that an image does not depend on its request's others.
    max_batch: int = 0
    #: Empty means PyTorch's order.
    attention: tuple[AttentionBackend, ...] = ()
    #: Time convolution algorithms during warm-up.
    cudnn_benchmark: bool = False
    #: 0 switches the cache off.
    prompt_cache_bytes: int = PROMPT_CACHE_BYTES
