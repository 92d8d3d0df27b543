"""What a file is, from its keys and shapes alone: metadata lies.

A real FLUX LoRA in the wild declares itself ``sd_1.5``; so nothing here reads
``__metadata__``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from assets.asset import AssetKind
from assets.families.schema import Shape
from assets.formats.relatives import relative_of

#: The names of both encoders' tensors in a textual inversion.
PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))

Listing = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Identity:
    """``kind`` is None when nothing is recognised; ``family`` is ``SDXL``, another
    model's name, or None when the keys alone do not tell; ``evidence`` says why. ``model`` names
    a kind of model that is not accepted, with its article ("a ControlNet")."""

    kind: AssetKind | None
    family: str | None
    evidence: str
    model: str | None = None


#: Before the words of inversions that a LoRA brings along, as OneTrainer bundles them.
BUNDLE_PREFIX = "bundle_emb."
#: How keys of adapters end, of kinds that are served and of others; how a file begins counts for
#: nothing, because people name what they train.
_ADAPTER_ENDING = re.compile(
    r"[._](?:lora[._](?:down|up|mid|[ABab])|lora_linear_layer\.(?:down|up)|lora_magnitude_vector"
    r"|hada_[wt]\w+|lokr_[wt]\w+|dora_scale|oft_\w+|boft_\w+|on_input)(?:\.[\w-]+){0,2}$"
    r"|\.(?:diff|diff_b|w_norm|b_norm)$"
)
#: No such ending with an adapter's name in it is longer.
_LONGEST_ENDING = 160

#: (family, a piece of a key that only this family's files have)
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
    """Kind and family of a file with these keys and shapes. Pure."""
    if (word := _single_vectors(listing)) is not None:
        return word
    own = {key: shape for key, shape in listing.items() if not key.startswith(BUNDLE_PREFIX)}
    if len(own) < len(listing) or any(map(_is_adapters, own)):
        family, evidence = _lora_family(own)
        return Identity("lora", family, evidence)
    inversion = _inversion(listing)
    if inversion is not None:
        return inversion
    if (relative := relative_of(listing)) is not None:
        return Identity(None, None, relative.evidence, relative.name)
    return _weights(listing)


def _is_adapters(key: str) -> bool:
    return _ADAPTER_ENDING.search(key, max(0, len(key) - _LONGEST_ENDING)) is not None


def _foreign(listing: Listing) -> tuple[str, str] | None:
    for family, pieces in _FOREIGN_PIECES:
        for key in listing:
            for piece in pieces:
                if piece in key and "lora_te" not in key and "conditioner." not in key:
                    if piece == "transformer." and not key.startswith("transformer."):
                        continue
                    return family, f"key {key!r}"
    return None


def _lora_family(listing: Listing) -> tuple[str | None, str]:
    if found := _foreign(listing):
        return found
    for key, shape in listing.items():
        if "attn2" in key and ("to_k" in key or "to_v" in key) and _is_down(key):
            width = shape[1] if len(shape) > 1 else 0
            if width in _CONTEXTS:
                return _CONTEXTS[width], f"{key!r} reads a context of width {width}"
    for key in listing:
        if key.startswith(("lora_te2_", "text_encoder_2.", "clip_g.", "text_encoders.clip_g.")):
            return "SDXL", f"key {key!r} belongs to a second text encoder"
    for key in listing:
        if key.startswith("lora_te_"):
            return "SD 1.5 or SD 2", f"key {key!r} belongs to a model with one text encoder"
    return None, "the keys do not tell the family; the coverage of the served model decides"


#: Widths of the text that attention reads.
_CONTEXTS = {768: "SD 1.5", 1024: "SD 2", 1280: "the SDXL refiner", 2048: "SDXL"}


def _is_down(key: str) -> bool:
    return any(mark in key for mark in ("lora_down", "lora_A", "lora.down", "_lora.down"))


def _single_vectors(listing: Listing) -> Identity | None:
    """A file with one tensor of token vectors. The tensor's name is the trigger word, so it is not
    searched for the names of trainers."""
    if len(listing) != 1:
        return None
    (key, shape), *_ = listing.items()
    if len(shape) not in (1, 2) or any(key in pair for pair in PAIRS):
        return None
    if _is_adapters(key) and key.startswith(_MODULE_PREFIXES):
        return None
    families = {768: "SD 1.5", 1024: "SD 2"}
    return Identity(
        "textual_inversion",
        families.get(shape[-1]),
        f"{key!r} holds vectors of width {shape[-1]}",
    )


#: How trainers' names of modules begin.
_MODULE_PREFIXES = (
    "lora_", "lycoris_", "unet.", "text_encoder", "diffusion_model.", "model.diffusion_model.",
    "base_model.model.", "down_blocks.", "mid_block.", "up_blocks.", "clip_l.", "clip_g.",
    "transformer.",
)  # fmt: skip


def _inversion(listing: Listing) -> Identity | None:
    for pair in map(set, PAIRS):
        if pair <= set(listing):
            both = " and ".join(sorted(pair))
            return Identity("textual_inversion", "SDXL", f"holds {both} vectors")
        if pair & set(listing):
            missing = (pair - set(listing)).pop()
            return Identity(
                "textual_inversion", None, f"holds only one encoder's vectors; no {missing}"
            )
    return None


def _weights(listing: Listing) -> Identity:
    def any_starts(prefix: str) -> str | None:
        return next((key for key in listing if key.startswith(prefix)), None)

    if any_starts("model.diffusion_model."):
        if found := _foreign(listing):
            return Identity("checkpoint", *found)
        if key := any_starts("conditioner.embedders.1."):
            return Identity("checkpoint", "SDXL", f"key {key!r}: two text encoders")
        if any_starts("cond_stage_model.transformer."):
            return Identity(
                "checkpoint", "SD 1.5", "one CLIP text encoder (cond_stage_model.transformer)"
            )
        if any_starts("cond_stage_model.model."):
            return Identity(
                "checkpoint", "SD 2", "one OpenCLIP text encoder (cond_stage_model.model)"
            )
        if key := any_starts("model.diffusion_model.label_emb."):
            return Identity("checkpoint", "SDXL", f"key {key!r}; only the UNet is in the file")
        return Identity("checkpoint", None, "a UNet without text encoders")
    for unet in ("unet/", "unet."):
        if f"{unet}conv_in.weight" in listing:
            if (key := f"{unet}add_embedding.linear_1.weight") in listing:
                return Identity("checkpoint", "SDXL", f"key {key!r}: a diffusers folder in a file")
            return Identity(
                "checkpoint", "SD 1.5 or SD 2", f"a UNet under {unet!r} without an add_embedding"
            )
    if any_starts("first_stage_model.") or {
        "decoder.conv_in.weight",
        "encoder.conv_in.weight",
    } <= set(listing):
        return Identity("vae", None, "an autoencoder")
    if found := _foreign(listing):
        return Identity(None, *found)
    if "add_embedding.linear_1.weight" in listing:
        return Identity("checkpoint", "SDXL", "a UNet in diffusers names")
    first = sorted(listing)[:3]
    return Identity(None, None, f"{len(listing)} tensors such as {', '.join(map(repr, first))}")
