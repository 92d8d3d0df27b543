"""A diffusers folder as one file, because an upload is one file.

Each tensor keeps its name, behind its component's: ``unet/conv_in.weight``. A component that
the folder lacks is left out; the base model's serves in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from assets.content import MODEL_COMPONENTS, Component
from assets.errors import IngestRejected
from assets.formats.tensors import Planned, TensorFile, write_tensors

_STEMS = ("diffusion_pytorch_model", "model")


def weights_of(model: Path, component: Component) -> Path | None:
    """The component's file in a diffusers folder, the float16 one where there are two.

    Raises:
        IngestRejected: its weights are there in another form.
    """
    folder = model / component
    for stem in _STEMS:
        for variant in (".fp16", ""):
            file = folder / f"{stem}{variant}.safetensors"
            if file.is_file():
                return file
    if folder.is_dir():
        raise IngestRejected(
            f"no .safetensors weights in {folder} (pickled weights are not read, nor are those "
            "in several files)"
        )
    return None


def pack_folder(model: Path, target: Path) -> Path:
    """Write ``target``.

    Raises:
        IngestRejected: the folder has no UNet that could be read.
    """
    with ExitStack() as stack:
        planned: dict[str, Planned] = {}
        for component in MODEL_COMPONENTS:
            source = weights_of(model, component)
            if source is None:
                continue
            file = stack.enter_context(TensorFile(source))
            for name, info in file.header.tensors.items():
                planned[f"{component}/{name}"] = Planned(
                    info.dtype, info.shape, _reader(file, name)
                )
        if not any(name.startswith("unet/") for name in planned):
            raise IngestRejected(f"{model} is no diffusers folder: it has no unet")
        write_tensors(target, planned, {})
    return target


def _reader(file: TensorFile, name: str) -> Callable[[], Any]:
    return lambda: file.read(name)
