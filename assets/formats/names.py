"""Map SDXL's published parameter names (diffusers) to single-file names (LDM).

One direction suffices: readers iterate over published names and find unmatched ones by subtraction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from assets.content import Component

_UNET_HEAD = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\."
)
_RESNETS_PER_DOWN_BLOCK = 2
_RESNETS_PER_UP_BLOCK = 3
_UP_BLOCKS_WITH_ATTENTION = (0, 1)


def unet_ldm_name(name: str) -> str:
    """``down_blocks.1.attentions.0.…`` → ``input_blocks.4.1.…``.

    Raises:
        KeyError: the name is not one of the UNet's.
    """
    module, _, leaf = name.rpartition(".")
    if module in _UNET_HEAD:
        return f"{_UNET_HEAD[module]}.{leaf}"
    if name.startswith("mid_block."):
        _, kind, number, rest = name.split(".", 3)
        middle = 1 if kind == "attentions" else int(number) * 2
        return f"middle_block.{middle}.{_inside(kind, rest)}"
    match = _BLOCK.match(name)
    if match is None:
        raise KeyError(name)
    side, block, kind, index = match[1], int(match[2]), match[3], int(match[4])
    rest = name[match.end() :]
    if side == "down":
        first = 1 + block * (_RESNETS_PER_DOWN_BLOCK + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + _RESNETS_PER_DOWN_BLOCK}.0.op.{rest.split('.')[-1]}"
        return f"input_blocks.{first + index}.{int(kind == 'attentions')}.{_inside(kind, rest)}"
    first = block * _RESNETS_PER_UP_BLOCK
    if kind == "upsamplers":
        position = 2 if block in _UP_BLOCKS_WITH_ATTENTION else 1
        return f"output_blocks.{first + _RESNETS_PER_UP_BLOCK - 1}.{position}.{rest}"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    layer, _, leaf = rest.rpartition(".")
    return f"{_RESNET[layer]}.{leaf}"


_VAE_RESNET = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)")
_VAE_SAMPLER = re.compile(
    r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.(.+)"
)
_VAE_MID = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_BLOCKS = 4
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def vae_ldm_name(name: str) -> str:
    """``decoder.up_blocks.0.resnets.0.…`` → ``decoder.up.3.block.0.…``."""
    if match := _VAE_RESNET.match(name):
        level = int(match[3]) if match[2] == "down" else _VAE_BLOCKS - 1 - int(match[3])
        rest = match[5].replace("conv_shortcut", "nin_shortcut")
        return f"{match[1]}.{match[2]}.{level}.block.{match[4]}.{rest}"
    if match := _VAE_SAMPLER.match(name):
        level = int(match[3]) if match[2] == "down" else _VAE_BLOCKS - 1 - int(match[3])
        return f"{match[1]}.{match[2]}.{level}.{match[2]}sample.{match[4]}"
    if match := _VAE_MID.match(name):
        layer, _, leaf = match[4].rpartition(".")
        if match[2] == "resnets":
            return f"{match[1]}.mid.block_{int(match[3]) + 1}.{match[4]}"
        return f"{match[1]}.mid.attn_1.{_VAE_ATTENTION[layer]}.{leaf}"
    return name.replace("conv_norm_out", "norm_out")


_CLIP_G_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_CLIP_G_HEAD = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class SingleFileName:
    """A published parameter's location in a single file.

    ``third`` selects query (0), key (1) or value (2) of a fused ``in_proj``; ``transposed``: the
    file has the transpose. For rank 2 the file may have a 1×1 convolution.
    """

    name: str
    third: int | None = None
    transposed: bool = False


def _clip_g_name(name: str) -> SingleFileName:
    if name in _CLIP_G_HEAD:
        return SingleFileName(_CLIP_G_HEAD[name], transposed=name == "text_projection.weight")
    match = _CLIP_LAYER.match(name)
    if match is None:
        raise KeyError(name)
    layer, inner, leaf = match.groups()
    prefix = f"transformer.resblocks.{layer}."
    if inner in _CLIP_G_LAYER:
        return SingleFileName(f"{prefix}{_CLIP_G_LAYER[inner]}.{leaf}")
    third = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(inner)
    return SingleFileName(f"{prefix}attn.in_proj_{leaf}", third=third)


SINGLE_FILE_PREFIX: dict[Component, str] = {
    "unet": "model.diffusion_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
    "vae": "first_stage_model.",
}
_SINGLE_FILE: dict[Component, Callable[[str], SingleFileName]] = {
    "unet": lambda name: SingleFileName(unet_ldm_name(name)),
    "text_encoder": SingleFileName,
    "text_encoder_2": _clip_g_name,
    "vae": lambda name: SingleFileName(vae_ldm_name(name)),
}


def short_name(published: str) -> str:
    """Drop ``text_model.``, as transformers >= 5.6 does."""
    return published.removeprefix("text_model.")


def long_name(component: Component, name: str) -> str:
    """Restore a missing ``text_model.``."""
    is_text = component in ("text_encoder", "text_encoder_2")
    if is_text and not name.startswith(("text_model.", "text_projection.")):
        return f"text_model.{name}"
    return name


def single_file_name(component: Component, name: str, *, prefixed: bool = True) -> SingleFileName:
    """Return a published parameter's location in a single file."""
    location = _SINGLE_FILE[component](name)
    prefix = SINGLE_FILE_PREFIX[component] if prefixed else ""
    return SingleFileName(prefix + location.name, location.third, location.transposed)
