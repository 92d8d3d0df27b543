"""Identify the kind and model family of a file from its keys and shapes.

``__metadata__`` is unreliable: a published FLUX LoRA declares ``sd_1.5``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from assets.asset import AssetKind
from assets.families.schema import Shape
from assets.formats.relatives import find_unsupported

#: Textual inversions' keys for the two text encoders.
PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))

Listing = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Identity:
    """A file's identification.

    ``kind`` is None if not recognised, ``family`` None if undetermined. ``evidence`` names the
    deciding keys. ``model`` is an unsupported kind of model with its article ("a ControlNet").
    """

    kind: AssetKind | None
    family: str | None
    evidence: str
    model: str | None = None


#: Inversions bundled in a LoRA (OneTrainer).
BUNDLE_PREFIX = "bundle_emb."
#: Adapters, supported or not. Prefixes can contain user-chosen names.
_ADAPTER_SUFFIX = re.compile(
    r"[._](?:lora[._](?:down|up|mid|[ABab])|lora_linear_layer\.(?:down|up)|lora_magnitude_vector"
    r"|hada_[wt]\w+|lokr_[wt]\w+|dora_scale|oft_\w+|boft_\w+|on_input)(?:\.[\w-]+){0,2}$"
    r"|\.(?:diff|diff_b|w_norm|b_norm)$"
)
#: Adapter name included; bounds the regex search.
_MAX_SUFFIX_CHARS = 160

#: (family, substrings that occur only in its keys)
_FOREIGN_PIECES = (
    ("FLUX", ("double_blocks", "single_blocks", "single_transformer_blocks", "context_embedder")),
    ("SD3", ("joint_blocks", "joint_transformer_blocks")),
    (
        "Qwen-Image",
        ("transformer_blocks_0_img_m", "transformer_blocks.0.img_m", "img_mlp", "txt_mlp"),
    ),
    ("Krea 2", ("text_fusion", "txtfusion")),
    ("Anima", ("llm_adapter", "lora_unet_blocks_", "diffusion_model.blocks.")),
    ("a diffusion transformer", ("lora_transformer_", "transformer.", "diffusion_model.blocks")),
    ("Stable Cascade", ("down_blocks.0.0.channelwise", "lora_prior_unet")),
)


def identify(listing: Listing) -> Identity:
    """Identify a file by keys and shapes. Pure."""
    if (single := _single_tensor_inversion(listing)) is not None:
        return single
    unbundled = {key: shape for key, shape in listing.items() if not key.startswith(BUNDLE_PREFIX)}
    if len(unbundled) < len(listing) or any(map(_is_adapter_key, unbundled)):
        family, evidence = _lora_family(unbundled)
        return Identity("lora", family, evidence)
    inversion = _inversion(listing)
    if inversion is not None:
        return inversion
    if (relative := find_unsupported(listing)) is not None:
        return Identity(None, None, relative.evidence, relative.name)
    return _weights(listing)


def _is_adapter_key(key: str) -> bool:
    return _ADAPTER_SUFFIX.search(key, max(0, len(key) - _MAX_SUFFIX_CHARS)) is not None


def _other_family(listing: Listing) -> tuple[str, str] | None:
    for family, pieces in _FOREIGN_PIECES:
        for key in listing:
            for piece in pieces:
                if piece in key and "lora_te" not in key and "conditioner." not in key:
                    if piece == "transformer." and not key.startswith("transformer."):
                        continue
                    return family, f"key {key!r}"
    return None


def _lora_family(listing: Listing) -> tuple[str | None, str]:
    if other := _other_family(listing):
        return other
    for key, shape in listing.items():
        if "attn2" in key and ("to_k" in key or "to_v" in key) and _is_down(key):
            width = shape[1] if len(shape) > 1 else 0
            if width in _CONTEXTS:
                return _CONTEXTS[width], f"{key!r} has a context width of {width}"
    for key in listing:
        if key.startswith(("lora_te2_", "text_encoder_2.", "clip_g.", "text_encoders.clip_g.")):
            return "SDXL", f"key {key!r} belongs to a second text encoder"
    for key in listing:
        if key.startswith("lora_te_"):
            return "SD 1.5 or SD 2", f"key {key!r} belongs to a model with one text encoder"
    return None, "the keys do not determine the family; coverage of the served model decides"


#: Cross-attention context width → family.
_CONTEXTS = {768: "SD 1.5", 1024: "SD 2", 1280: "the SDXL refiner", 2048: "SDXL"}


def _is_down(key: str) -> bool:
    return any(mark in key for mark in ("lora_down", "lora_A", "lora.down", "_lora.down"))


def _single_tensor_inversion(listing: Listing) -> Identity | None:
    """The name can be the trigger word, so it is not searched for trainers' names."""
    if len(listing) != 1:
        return None
    (key, shape), *_ = listing.items()
    if len(shape) not in (1, 2) or any(key in pair for pair in PAIRS):
        return None
    if _is_adapter_key(key) and key.startswith(_MODULE_PREFIXES):
        return None
    families = {768: "SD 1.5", 1024: "SD 2"}
    return Identity(
        "textual_inversion",
        families.get(shape[-1]),
        f"{key!r} contains vectors of width {shape[-1]}",
    )


_MODULE_PREFIXES = (
    "lora_", "lycoris_", "unet.", "text_encoder", "diffusion_model.", "model.diffusion_model.",
    "base_model.model.", "down_blocks.", "mid_block.", "up_blocks.", "clip_l.", "clip_g.",
    "transformer.",
)  # fmt: skip


def _inversion(listing: Listing) -> Identity | None:
    for pair in map(set, PAIRS):
        if pair <= set(listing):
            both = " and ".join(sorted(pair))
            return Identity("textual_inversion", "SDXL", f"contains {both} vectors")
        if pair & set(listing):
            missing = (pair - set(listing)).pop()
            return Identity(
                "textual_inversion",
                None,
                f"contains only one encoder's vectors; {missing} is missing",
            )
    return None


def _weights(listing: Listing) -> Identity:
    def first_key(prefix: str) -> str | None:
        return next((key for key in listing if key.startswith(prefix)), None)

    if first_key("model.diffusion_model."):
        if other := _other_family(listing):
            return Identity("checkpoint", *other)
        if key := first_key("conditioner.embedders.1."):
            return Identity("checkpoint", "SDXL", f"key {key!r}: two text encoders")
        if first_key("cond_stage_model.transformer."):
            return Identity(
                "checkpoint", "SD 1.5", "one CLIP text encoder (cond_stage_model.transformer)"
            )
        if first_key("cond_stage_model.model."):
            return Identity(
                "checkpoint", "SD 2", "one OpenCLIP text encoder (cond_stage_model.model)"
            )
        if key := first_key("model.diffusion_model.label_emb."):
            return Identity("checkpoint", "SDXL", f"key {key!r}; the file contains only a UNet")
        return Identity("checkpoint", None, "a UNet without text encoders")
    for unet in ("unet/", "unet."):
        if f"{unet}conv_in.weight" in listing:
            if (key := f"{unet}add_embedding.linear_1.weight") in listing:
                return Identity(
                    "checkpoint", "SDXL", f"key {key!r}: a diffusers folder packed into one file"
                )
            return Identity(
                "checkpoint", "SD 1.5 or SD 2", f"a UNet under {unet!r} without an add_embedding"
            )
    if first_key("first_stage_model.") or {
        "decoder.conv_in.weight",
        "encoder.conv_in.weight",
    } <= set(listing):
        return Identity("vae", None, "an autoencoder")
    if other := _other_family(listing):
        return Identity(None, *other)
    if "add_embedding.linear_1.weight" in listing:
        return Identity("checkpoint", "SDXL", "a UNet with diffusers names")
    first = sorted(listing)[:3]
    return Identity(None, None, f"{len(listing)} tensors such as {', '.join(map(repr, first))}")
