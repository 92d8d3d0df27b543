"""Read a component's weights from a diffusers folder, in one file or sharded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from assets.content import Component
from assets.errors import IngestRejected
from assets.formats.tensors import CANONICAL_FLOATS, PlannedTensor, TensorFile

_STEMS = ("diffusion_pytorch_model", "model")


def folder_weights(
    model: Path, component: Component, stack: ExitStack, *, canonical: bool = False
) -> dict[str, PlannedTensor] | None:
    """Return a component's tensors by name; None if absent.

    Prefers the fp16 variant. Files stay open until ``stack`` closes. ``canonical``: in canonical
    dtypes.

    Raises:
        IngestRejected: not safetensors, or the index and its files disagree.
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


def _from_index(index: Path, stack: ExitStack, *, canonical: bool) -> dict[str, PlannedTensor]:
    shards = _read_index(index)
    files: dict[str, TensorFile] = {}
    for name in sorted(set(shards.values())):
        path = index.parent / name
        if Path(name).name != name or not path.is_file():
            raise IngestRejected(f"{index} names {name[:100]!r}, which is not in its folder")
        files[name] = stack.enter_context(TensorFile(path))
    for name, file in files.items():
        for tensor in file.header.tensors:
            if shards.get(tensor) != name:
                raise IngestRejected(f"{index} does not list {tensor!r} under {name}")
    if missing := [tensor for tensor, name in shards.items() if tensor not in files[name]]:
        name = shards[missing[0]]
        raise IngestRejected(f"{index}: {missing[0]!r} is not in {name}")
    return {
        tensor: _planned(files[name], tensor, canonical=canonical)
        for tensor, name in shards.items()
    }


def _read_index(index: Path) -> Mapping[str, str]:
    try:
        read = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IngestRejected(f"{index} cannot be read: {error}") from None
    shards = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise IngestRejected(f"{index} has no weight_map from tensor names to file names")
    return shards


def _planned(file: TensorFile, name: str, *, canonical: bool) -> PlannedTensor:
    info = file.header.tensors[name]
    if not canonical or info.dtype not in CANONICAL_FLOATS:
        return PlannedTensor(info.dtype, info.shape, lambda: file.read(name))
    return PlannedTensor(CANONICAL_FLOATS[info.dtype], info.shape, lambda: file.read_weights(name))


def folder_config(model: Path, component: str, name: str = "config.json") -> Mapping[str, object]:
    """Return a component's configuration; empty if missing.

    Raises:
        IngestRejected: the file is not a JSON object.
    """
    path = model / component / name
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IngestRejected(f"{path} cannot be read: {error}") from None
    if not isinstance(read, dict):
        raise IngestRejected(f"{path} is not a JSON object")
    return read
