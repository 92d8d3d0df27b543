"""Cross-attention keys and values of the prompt, computed once for all steps.

Saves 140 matrix products a step in SDXL. The buffers are inputs of captured graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


class CachedCrossAttention:
    """A processor for diffusers' ``Attention`` with kept keys and values."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **ignored: object,
    ) -> torch.Tensor:
        """``hidden_states`` and the result are [rows, pixels, width]."""
        rows, pixels, _ = hidden_states.shape
        query = attn.to_q(hidden_states).view(rows, pixels, attn.heads, -1).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, attn.kept_key, attn.kept_value)
        output: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).reshape(rows, pixels, -1))
        return output


class CrossKeyValues:
    """The buffers of a UNet's cross-attentions, by the context's shape."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Skips cross-attentions with options beyond SDXL's."""
        blocks = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
        self._attentions = [b.attn2 for b in blocks if _is_plain(b.attn2)]
        for attention in self._attentions:
            attention.set_processor(CachedCrossAttention())
        self._buffers: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def write(self, context: torch.Tensor, *, keep: bool) -> None:
        """Fill the buffers from ``context`` [rows, tokens, width] with the current weights.

        ``keep`` retains them for a captured graph; others last until the next call.
        """
        rows, tokens, _ = context.shape
        buffers = self._buffers.get(context.shape)
        if buffers is None:
            buffers = [(_empty(a, context), _empty(a, context)) for a in self._attentions]
            if keep:
                self._buffers[context.shape] = buffers
        for attention, (key, value) in zip(self._attentions, buffers, strict=True):
            split = (rows, tokens, attention.heads, -1)
            key.copy_(attention.to_k(context).view(split))
            value.copy_(attention.to_v(context).view(split))
            attention.kept_key = key.transpose(1, 2)
            attention.kept_value = value.transpose(1, 2)


def _empty(attention: Attention, context: torch.Tensor) -> torch.Tensor:
    rows, tokens, _ = context.shape
    head_width = attention.to_k.out_features // attention.heads
    return context.new_empty((rows, tokens, attention.heads, head_width))


def _is_plain(attention: Attention) -> bool:
    unsupported = (
        "spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection",
    )  # fmt: skip
    return (
        attention is not None
        and not any(getattr(attention, name, None) for name in unsupported)
        and attention.rescale_output_factor == 1
    )
