"""How an engine computes, as opposed to what. Each option can be switched off, to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compile = Literal["off", "regional", "full"]
Graphs = Literal["auto", "on", "off"]
AttentionBackend = Literal["cudnn", "flash", "efficient", "math"]

#: 75 % of SDXL's UNet is in the first; GroupNorm and SiLU of the others fuse, which saves a change
#: of memory layout each.
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "Downsample2D", "Upsample2D")
PROMPT_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The defaults give the same bits as stock diffusers on a CPU."""

    #: ``regional`` compiles the repeated blocks one by one; ``full`` the whole UNet and the whole
    #: VAE decoder, which takes longer.
    compile: Compile = "off"
    #: Classes of diffusers that are compiled one by one where ``compile`` is ``regional``.
    compile_blocks: tuple[str, ...] = BLOCKS
    #: torch.compile's backend, and Inductor's options as (name, value).
    compile_backend: str = "inductor"
    compile_options: tuple[tuple[str, bool | int | str], ...] = ()
    #: Whether the VAE's decoder is compiled with the UNet.
    compile_vae: bool = True
    #: One captured graph for each warmed shape; ``auto`` means on CUDA. ``on`` on a CPU runs a
    #: stand-in that re-runs the call on its static buffers.
    graphs: Graphs = "auto"
    #: Compute the keys and values of the prompt once an image instead of once a step.
    keep_cross_kv: bool = True
    #: The order in which CUDA's attention backends are tried; empty means PyTorch's own.
    attention: tuple[AttentionBackend, ...] = ()
    #: Let cuDNN time its convolution algorithms during warm-up.
    cudnn_benchmark: bool = False
    #: Memory of the cache of prompt embeddings; 0 switches it off.
    prompt_cache_bytes: int = PROMPT_CACHE_BYTES
