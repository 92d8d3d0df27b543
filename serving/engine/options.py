"""Options of how an engine computes. Each can be switched off, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compile = Literal["off", "regional", "full"]
Graphs = Literal["auto", "on", "off"]
AttentionBackend = Literal["cudnn", "flash", "efficient", "math"]

#: The first holds 75 % of SDXL's UNet. Compiling the others fuses GroupNorm and SiLU, which saves a
#: change of memory layout each.
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "Downsample2D", "Upsample2D")
PROMPT_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Computation options. On a CPU the defaults match stock diffusers bit for bit."""

    #: ``regional`` compiles the repeated blocks one by one; ``full`` the whole UNet and the whole
    #: VAE decoder, which takes longer.
    compile: Compile = "off"
    #: diffusers classes that ``regional`` compiles.
    compile_blocks: tuple[str, ...] = BLOCKS
    #: torch.compile's backend, and Inductor's options as (name, value).
    compile_backend: str = "inductor"
    compile_options: tuple[tuple[str, bool | int | str], ...] = ()
    #: Whether the VAE's decoder is compiled with the UNet.
    compile_vae: bool = True
    #: One captured graph for each warmed shape; ``auto`` means on CUDA only. ``on`` on a CPU uses
    #: a stand-in that re-runs the call on its static buffers.
    graphs: Graphs = "auto"
    #: Compute the prompt's keys and values once a batch instead of once a step.
    keep_cross_kv: bool = True
    #: The order in which CUDA's attention backends are tried; empty means PyTorch's default.
    attention: tuple[AttentionBackend, ...] = ()
    #: Let cuDNN time its convolution algorithms during warm-up.
    cudnn_benchmark: bool = False
    #: Size of the prompt embedding cache; 0 switches it off.
    prompt_cache_bytes: int = PROMPT_CACHE_BYTES
