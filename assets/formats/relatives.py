"""Recognize models that share key names with SDXL but are not supported.

Layer counts are from ``unet/config.json`` of segmind/SSD-1B, segmind/Segmind-Vega,
etri-vilab/koala-700m and koala-1b.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from assets.families.schema import ParameterSchema, Shape
from assets.formats.names import unet_ldm_name

Listing = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class UnsupportedModel:
    """Its ``name`` with article, and the deciding key."""

    name: str
    evidence: str


#: (name, key prefixes); one match suffices.
_PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("an IP-Adapter", ("ip_adapter.", "image_proj.", "image_proj_model.")),
    ("a ControlNet", ("control_model.", "controlnet_cond_embedding.", "input_hint_block.")),
    ("a ControlNet", ("controlnet_down_blocks.", "controlnet_mid_block.", "zero_convs.")),
    ("a T2I-Adapter", ("adapter.body.", "adapter.conv_in.")),
    ("a PhotoMaker", ("id_encoder.",)),
    ("a tiny autoencoder (TAESD)", ("decoder.layers.", "taesd_decoder.")),
    ("an upscaler of the ESRGAN family", ("model.1.sub.", "body.0.rdb1.", "params_ema.")),
    ("a CLIP image encoder", ("vision_model.", "visual.transformer.")),
    ("a T5 text encoder", ("encoder.block.0.layer.",)),
    ("a CLIP text encoder alone", ("text_model.encoder.", "transformer.resblocks.")),
)
#: (name, substring of the UNet's keys)
_PIECES = (
    ("an AnimateDiff motion module", "motion_modules."),
    ("a checkpoint of Kolors", "encoder_hid_proj."),
    ("a checkpoint distilled as a latent consistency model (LCM)", "cond_proj.weight"),
    ("a GLIGEN model", "position_net."),
)
#: Keys of the first convolution and of the size embedding (only SDXL).
_LAYOUTS = (
    ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"),
    ("unet/conv_in.weight", "unet/add_embedding.linear_1.weight"),
    ("unet.conv_in.weight", "unet.add_embedding.linear_1.weight"),
    ("conv_in.weight", "add_embedding.linear_1.weight"),
)
_INPUTS = {
    9: "inpainting checkpoint", 8: "image-editing checkpoint (InstructPix2Pix)",
    5: "depth-to-image checkpoint",
}  # fmt: skip
_REFINER_CHANNELS = 384
_REFINER = "the SDXL refiner"
_DISTILLED = {4: "SSD-1B", 2: "Segmind Vega", 5: "KOALA-700M", 6: "KOALA-1B"}
_TRANSFORMER = re.compile(r"down_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.(\d+)\.")


def find_unsupported(listing: Listing) -> UnsupportedModel | None:
    """Identify an unsupported model by keys and shapes. Pure."""
    has_unet = any(first in listing for first, _ in _LAYOUTS)
    if not has_unet:
        for name, prefixes in _PREFIXES:
            for key in listing:
                if key.startswith(prefixes):
                    return UnsupportedModel(name, f"key {key!r}")
    for key in listing:
        for name, piece in _PIECES:
            if piece in key and (not has_unet or key.startswith(("model.", "unet", piece, "time"))):
                return UnsupportedModel(name, f"key {key!r}")
        if key.startswith("conditioner.embedders.0.model."):
            return UnsupportedModel(_REFINER, f"key {key!r}: its only text encoder is OpenCLIP's")
    for first, sizes in _LAYOUTS:
        shape = listing.get(first, ())
        if len(shape) == 4:
            return _by_first_convolution(first, shape, has_sizes=sizes in listing)
    return None


def _by_first_convolution(key: str, shape: Shape, *, has_sizes: bool) -> UnsupportedModel | None:
    family = "an SDXL" if has_sizes else "a Stable Diffusion"
    if shape[1] in _INPUTS:
        name = f"{family} {_INPUTS[shape[1]]}"
        return UnsupportedModel(name, f"{key!r} has {shape[1]} input channels; text-to-image has 4")
    if has_sizes and shape[0] == _REFINER_CHANNELS:
        return UnsupportedModel(_REFINER, f"{key!r} has {shape[0]} channels")
    return None


def find_distilled(listing: Listing, schema: ParameterSchema) -> UnsupportedModel | None:
    """Identify a UNet with SDXL's widths and fewer transformer layers. Pure."""
    expected = schema.components["unet"]
    for prefix, rename in (
        ("model.diffusion_model.", unet_ldm_name), ("unet/", str), ("unet.", str), ("", str),
    ):  # fmt: skip
        present = [name for name in expected if prefix + rename(name) in listing]
        if "conv_in.weight" not in present:
            continue
        layers, expected_layers = _max_layers(present), _max_layers(expected)
        lacks_middle = not any(name.startswith("mid_block.attentions.") for name in present)
        if layers >= expected_layers and not lacks_middle:
            return None
        known = _DISTILLED.get(layers) if expected_layers == 10 else None
        name = known or "a distilled variant of SDXL, such as SSD-1B or Segmind Vega"
        if layers < expected_layers:
            return UnsupportedModel(
                name, f"{layers} transformer layers where SDXL has {expected_layers}"
            )
        return UnsupportedModel(name, "no attention in its middle block")
    return None


def _max_layers(names: Iterable[str]) -> int:
    return max((int(m[1]) + 1 for name in names if (m := _TRANSFORMER.match(name))), default=0)
