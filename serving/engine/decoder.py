"""Decoding of latents to images with the VAE; compiled for warmed sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from serving.engine.attention import attention_order
from serving.engine.compiled import CompiledModule
from serving.engine.diagnosis import blame_vae
from serving.engine.options import AttentionBackend
from serving.engine.unet import UnetRunner
from serving.errors import NotFinite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class ImageDecoder:
    """The VAE decoder. Owned by the generating thread."""

    def __init__(
        self,
        vae: AutoencoderKL,
        factor: float,
        dtype: torch.dtype,
        unet: UnetRunner,
        compiled: CompiledModule | None,
        attention: Sequence[AttentionBackend],
    ) -> None:
        """``unet`` tells whether the engine warms up, and counts fallbacks."""
        self.compiled = compiled
        self._vae = vae
        self._factor = factor
        self._dtype = dtype
        self._unet = unet
        self._attention = attention

    def decode(self, latents: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield per latent the VAE's input [1, channels, height / 8, width / 8] and the image [3,
        height, width] in -1..1."""
        for latent in latents:
            scaled = latent[None] / self._factor
            with attention_order(self._attention):
                hidden = self._vae.post_quant_conv(scaled.to(self._dtype))
                image = self._run_decoder(hidden)[0]
            yield scaled, image

    def blame(self, key: str, scaled: torch.Tensor) -> NotFinite:
        """Return the error for the VAE ``key``, which decodes ``scaled`` to a non-finite image."""
        return blame_vae(self._vae, key, scaled, self._dtype)

    def _run_decoder(self, hidden: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor
        compiled, shape = self.compiled, tuple(hidden.shape)
        if compiled is None:
            decoded = self._vae.decoder(hidden)
        elif self._unet.is_warming:
            decoded = compiled.compile(shape, hidden)
        else:
            fallbacks_before = compiled.fallbacks
            decoded = compiled(shape, hidden)
            if shape not in compiled or compiled.fallbacks > fallbacks_before:
                self._unet.count(f"VAE, {8 * shape[3]}x{8 * shape[2]}")
        return decoded
