"""The weights of a component in a diffusers folder, in one file or in several."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from assets.content import Component
from assets.errors import IngestRejected
from assets.formats.tensors import CANONICAL_FLOATS, Planned, TensorFile

_STEMS = ("diffusion_pytorch_model", "model")


def folder_weights(
    model: Path, component: Component, stack: ExitStack, *, canonical: bool = False
) -> dict[str, Planned] | None:
    """The component's tensors by their names there, those in float16 where there are two variants.
    Files stay open until ``stack`` is closed. ``canonical``: in types that canonical files have.
    None: the folder has no such component.

    Raises:
        IngestRejected: its weights are there in another form, or its index and its files disagree.
    """
    folder = model / component
    for source in _candidates(folder):
        if source.is_file():
            break
    else:
        if folder.is_dir():
            raise IngestRejected(
                f"no .safetensors weights in {folder}; pickled weights (.bin) are not read: save "
                "the pipeline again with safe_serialization=True"
            )
        return None
    if source.suffix != ".json":
        file = stack.enter_context(TensorFile(source))
        return {name: _planned(file, name, canonical=canonical) for name in file.header.tensors}
    return _from_index(source, stack, canonical=canonical)


def _candidates(folder: Path) -> Iterator[Path]:
    for stem in _STEMS:
        for variant in (".fp16", ""):
            yield folder / f"{stem}{variant}.safetensors"
            yield folder / f"{stem}.safetensors.index{variant}.json"
            if variant:
                yield folder / f"{stem}{variant}.safetensors.index.json"


def _from_index(index: Path, stack: ExitStack, *, canonical: bool) -> dict[str, Planned]:
    places = _read_index(index)
    files: dict[str, TensorFile] = {}
    for name in sorted(set(places.values())):
        path = index.parent / name
        if Path(name).name != name or not path.is_file():
            raise IngestRejected(f"{index} names {name[:100]!r}, which is not beside it")
        files[name] = stack.enter_context(TensorFile(path))
    for name, file in files.items():
        for tensor in file.header.tensors:
            if places.get(tensor) != name:
                raise IngestRejected(f"{index} does not say that {tensor!r} is in {name}")
    if missing := [tensor for tensor, name in places.items() if tensor not in files[name]]:
        place = places[missing[0]]
        raise IngestRejected(f"{index}: {missing[0]!r} is not in {place}")
    return {
        tensor: _planned(files[name], tensor, canonical=canonical)
        for tensor, name in places.items()
    }


def _read_index(index: Path) -> Mapping[str, str]:
    try:
        read = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IngestRejected(f"{index} cannot be read: {error}") from None
    places = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise IngestRejected(f"{index} has no weight_map from names of tensors to names of files")
    return places


def _planned(file: TensorFile, name: str, *, canonical: bool) -> Planned:
    info = file.header.tensors[name]
    if not canonical or info.dtype not in CANONICAL_FLOATS:
        return Planned(info.dtype, info.shape, lambda: file.read(name))
    return Planned(CANONICAL_FLOATS[info.dtype], info.shape, lambda: file.read_weights(name))


def folder_config(model: Path, component: str, name: str = "config.json") -> Mapping[str, Any]:
    """A component's configuration; empty when there is none.

    Raises:
        IngestRejected: it is no JSON object.
    """
    path = model / component / name
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IngestRejected(f"{path} cannot be read: {error}") from None
    if not isinstance(read, dict):
        raise IngestRejected(f"{path} is no JSON object")
    return read
