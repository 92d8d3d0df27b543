"""Models that look like SDXL's files and are others, by the names that their authors gave them.

Layer counts of the distilled models: their published ``unet/config.json`` files (segmind/SSD-1B,
segmind/Segmind-Vega, etri-vilab/koala-700m and koala-1b).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from assets.families.schema import ParameterSchema, Shape
from assets.formats.names import unet_ldm_name

Listing = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Relative:
    """``name`` with its article, and the key that tells."""

    name: str
    evidence: str


#: (name, how its keys begin). A file that has one such key is this model.
_BEGINNINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
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
#: (name, a piece of the UNet's own keys)
_PIECES = (
    ("an AnimateDiff motion module", "motion_modules."),
    ("a checkpoint of Kolors", "encoder_hid_proj."),
    ("a checkpoint distilled as a latent consistency model (LCM)", "cond_proj.weight"),
    ("a GLIGEN model", "position_net."),
)
#: Where the UNet's first convolution lies, and its embedding of sizes, which only SDXL's have.
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


def relative_of(listing: Listing) -> Relative | None:
    """A model of another kind that shares names with SDXL's files, as far as keys and shapes
    tell. Pure."""
    has_unet = any(first in listing for first, _ in _LAYOUTS)
    if not has_unet:
        for name, beginnings in _BEGINNINGS:
            for key in listing:
                if key.startswith(beginnings):
                    return Relative(name, f"key {key!r}")
    for key in listing:
        for name, piece in _PIECES:
            if piece in key and (not has_unet or key.startswith(("model.", "unet", piece, "time"))):
                return Relative(name, f"key {key!r}")
        if key.startswith("conditioner.embedders.0.model."):
            return Relative(_REFINER, f"key {key!r}: its only text encoder is OpenCLIP's")
    for first, sizes in _LAYOUTS:
        shape = listing.get(first, ())
        if len(shape) == 4:
            return _by_first_convolution(first, shape, has_sizes=sizes in listing)
    return None


def _by_first_convolution(key: str, shape: Shape, *, has_sizes: bool) -> Relative | None:
    family = "an SDXL" if has_sizes else "a Stable Diffusion"
    if shape[1] in _INPUTS:
        name = f"{family} {_INPUTS[shape[1]]}"
        return Relative(name, f"{key!r} has {shape[1]} input channels, text to image has 4")
    if has_sizes and shape[0] == _REFINER_CHANNELS:
        return Relative(_REFINER, f"{key!r} has {shape[0]} channels")
    return None


def distilled(listing: Listing, schema: ParameterSchema) -> Relative | None:
    """A UNet that has SDXL's widths and fewer transformer layers. Pure."""
    wanted = schema.components["unet"]
    for prefix, spell in (
        ("model.diffusion_model.", unet_ldm_name), ("unet/", str), ("unet.", str), ("", str),
    ):  # fmt: skip
        present = [name for name in wanted if prefix + spell(name) in listing]
        if "conv_in.weight" not in present:
            continue
        have, need = _deepest(present), _deepest(wanted)
        lacks_middle = not any(name.startswith("mid_block.attentions.") for name in present)
        if have >= need and not lacks_middle:
            return None
        name = _DISTILLED.get(have) if need == 10 else None
        what = name or "a distilled relative of SDXL, such as SSD-1B or Segmind Vega"
        layers = f"{have} transformer layers where SDXL has {need}"
        return Relative(what, layers if have < need else "no attention in its middle block")
    return None


def _deepest(names: Iterable[str]) -> int:
    """Transformer layers of the deepest block on the way down."""
    return max((int(m[1]) + 1 for name in names if (m := _TRANSFORMER.match(name))), default=0)
