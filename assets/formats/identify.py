"""What a file is, from its keys and shapes alone: metadata lies.

A real FLUX LoRA in the wild declares itself ``sd_1.5``; so nothing here reads
``__metadata__``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from assets.asset import AssetKind
from assets.skeleton import Shape

#: The names of both encoders' tensors in a textual inversion.
PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))

Listing = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Identity:
    """``kind`` is None when nothing is recognised; ``family`` is ``SDXL``, another
    model's name, or None when the keys alone do not tell; ``evidence`` says why."""

    kind: AssetKind | None
    family: str | None
    evidence: str


_LORA_MARKS = (
    "lora_down", "lora_up", "lora_A.", "lora_B.", "lora.down", "lora.up", "lora_a.", "lora_b.",
    "hada_w", "lokr_w", "_lora.down", "_lora.up", "dora_scale", "oft_", "boft", ".on_input",
    "bundle_emb.",
)  # fmt: skip

_LORA_ENDINGS = (".diff", ".diff_b", ".w_norm", ".b_norm")

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
    is_lora = any(
        key.endswith(_LORA_ENDINGS) or any(mark in key for mark in _LORA_MARKS) for key in listing
    )
    if is_lora:
        family, evidence = _lora_family(listing)
        return Identity("lora", family, evidence)
    inversion = _inversion(listing)
    if inversion is not None:
        return inversion
    return _weights(listing)


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
    for key in listing:
        if key.startswith(("lora_te2_", "text_encoder_2.")):
            return "SDXL", f"key {key!r} belongs to a second text encoder"
    for key, shape in listing.items():
        if "attn2" in key and ("to_k" in key or "to_v" in key) and _is_down(key):
            width = shape[1] if len(shape) > 1 else 0
            if width == 768:
                return "SD 1.5", f"{key!r} reads a context of width 768"
            if width == 1024:
                return "SD 2", f"{key!r} reads a context of width 1024"
            if width == 2048:
                return "SDXL", f"{key!r} reads a context of width 2048"
    for key in listing:
        if key.startswith("lora_te_"):
            return "SD 1.5 or SD 2", f"key {key!r} belongs to a model with one text encoder"
    return None, "the keys do not tell the family; the coverage of the served model decides"


def _is_down(key: str) -> bool:
    return any(mark in key for mark in ("lora_down", "lora_A", "lora.down", "_lora.down"))


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
    if len(listing) == 1:
        (key, shape), *_ = listing.items()
        if len(shape) in (1, 2):
            families = {768: "SD 1.5", 1024: "SD 2"}
            return Identity(
                "textual_inversion",
                families.get(shape[-1]),
                f"{key!r} holds vectors of width {shape[-1]}",
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
