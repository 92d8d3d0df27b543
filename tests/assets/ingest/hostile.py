"""Hostile and malformed files with the expected rejections."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from assets.families.schema import ParameterSchema
from tests.support.samples import write_kohya_lora

Write = Callable[[Path], None]
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}


@dataclass(frozen=True)
class Hostile:
    """A hostile file. ``reason`` is a regular expression; empty if accepted."""

    name: str
    kind: str
    write: Write
    reason: str


class Bomb:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._canary), "w"))


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Write:
    size = len(header) if length is None else length

    def write(path: Path) -> None:
        path.write_bytes(size.to_bytes(8, "little") + header + data)

    return write


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def tensor(begin: int = 0, end: int = 4, dtype: str = "F32", shape: Any = (1,)) -> str:
    fields = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return json.dumps(fields)


def listing(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> Write:
    """Return a writer of a sparse file of zeros."""

    def write(path: Path) -> None:
        document, position = {}, 0
        for name, shape in shapes.items():
            size = _BYTES[dtype]
            for extent in shape:
                size *= extent
            document[name] = {
                "dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size],
            }  # fmt: skip
            position += size
        header = json.dumps(document).encode()
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + position)

    return write


def malformed_headers() -> Iterator[Hostile]:
    """Headers that the strict parser refuses."""
    eight = tensor(0, 8, shape=(2,))
    one, four = tensor(), b"\0" * 4
    no_data, empty = tensor(0, 0, shape=(0,)), '"__metadata__":{}'
    hidden = tensor(2, 2, shape=(0,))
    twice = '"__metadata__":{"x":"1","x":"2"}'
    extra = one.replace("}", ', "x": 1}')
    rows: list[tuple[str, str, bytes, str]] = [
        ("duplicate tensor key", f'{{"a": {one}, "a": {one}}}', four, "duplicate key"),
        ("duplicate metadata key", f'{{{twice},"a":{one}}}', four, "duplicate key"),
        ("duplicate __metadata__", f'{{{empty},{empty},"a":{one}}}', four, "duplicate key"),
        ("metadata that is not text", f'{{"__metadata__":{{"x":1}},"a":{one}}}', four, "strings"),
        ("nested metadata", f'{{"__metadata__":{{"x":{{}}}},"a":{one}}}', four, "strings"),
        ("overlap", f'{{"a":{eight},"b":{tensor(4, 8)}}}', b"\0" * 8, "overlaps"),
        ("alias", f'{{"a":{one},"b":{one}}}', four, "overlaps"),
        ("gap", f'{{"a":{one},"b":{tensor(8, 12)}}}', b"\0" * 12, "gap"),
        ("trailing bytes", f'{{"a":{one}}}', b"\0" * 9, "padded"),
        ("truncation", f'{{"a":{one}}}', b"\0" * 2, "truncated"),
        ("shape overflow", f'{{"a":{tensor(shape=(1 << 40, 1 << 40))}}}', four, "shape|spans"),
        ("negative offset", f'{{"a":{tensor(-4, 0)}}}', four, "data_offsets"),
        ("unknown dtype", f'{{"a":{tensor(dtype="F3")}}}', four, "dtype"),
        ("nothing but markers", f'{{"a":{no_data},"b":{no_data}}}', b"", "tensors .* are empty"),
        ("empty tensor inside another", f'{{"a":{one},"b":{hidden}}}', four, "overlaps"),
        ("extra field", f'{{"a":{extra}}}', four, "exactly dtype"),
        ("leading space", f' {{"a":{one}}}', four, "begin"),
        ("name with a path", f'{{"../../etc/passwd":{one}}}', four, "the served model"),
        ("name with NUL", f'{{"a\\u0000b":{one}}}', four, "NUL"),
        ("no tensor", "{}", b"", "no tensor"),
        ("no JSON", "{" * 100, b"", "JSON"),
        ("deep JSON", '{"a":' + "[" * 50_000, b"", "JSON"),
    ]  # fmt: skip
    for name, header, data, reason in rows:
        yield Hostile(name, "lora", raw(header.encode(), data), reason)
    million = "{" + ",".join(f'"{i}":{tensor(0, 0, shape=(0,))}' for i in range(1_000_000)) + "}"
    yield Hostile("a million tensors", "lora", raw(million.encode()), "header length")
    many = "{" + ",".join(f'"{i}":{tensor(4 * i, 4 * i + 4)}' for i in range(20_001)) + "}"
    yield Hostile("20,001 tensors", "lora", raw(many.encode(), b"\0" * 80_004), "20001 tensors")
    yield Hostile(
        "header of 100 MB", "lora", raw(b"{" + b" " * 100_000_000 + b"}"), "header length"
    )
    yield Hostile("header beyond the file", "lora", raw(b"{}", length=1 << 60), "header length")
    yield Hostile("empty file", "lora", write_nothing, "no header")


def pickles(canary: Path) -> Iterator[Hostile]:
    """Pickles under every kind; never unpickled."""
    reason = "pickle|not a safetensors file"

    def plain(path: Path) -> None:
        path.write_bytes(pickle.dumps(Bomb(canary)))

    def protocol_0(path: Path) -> None:
        path.write_bytes(pickle.dumps(Bomb(canary), protocol=0))

    def torch_zip(path: Path) -> None:
        torch.save({"a": Bomb(canary)}, path)

    def torch_legacy(path: Path) -> None:
        torch.save({"a": Bomb(canary)}, path, _use_new_zipfile_serialization=False)

    def zipped(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(canary)))
            archive.writestr("bomb", b"\0" * (1 << 22))

    def polyglot(path: Path) -> None:
        header = f'{{"a": {tensor()}}}'.encode()
        plain(path)
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4 + path.read_bytes())

    for write in (plain, protocol_0, torch_zip, torch_legacy, zipped):
        for kind in ("lora", "checkpoint", "textual_inversion", "vae"):
            name = f"pickle ({write.__name__}) as {kind}"
            yield Hostile(name, kind, write, reason)
    yield Hostile("pickle behind safetensors", "lora", polyglot, "padded")


def invalid_contents(schema: ParameterSchema) -> Iterator[Hostile]:
    """Well-formed files with unusable or misleading contents."""

    def lora(change: Callable[[dict[str, torch.Tensor]], Any], metadata: Any = None) -> Write:
        def write(path: Path) -> None:
            from safetensors.torch import load_file

            write_kohya_lora(path, schema, rank=2)
            tensors = load_file(path)
            change(tensors)
            save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)

        return write

    def first(tensors: dict[str, torch.Tensor], end: str) -> str:
        return next(name for name in tensors if name.endswith(end))

    def nan(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first(tensors, "up.weight")][0, 0] = float("nan")

    def infinite(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first(tensors, "down.weight")][0, 0] = float("inf")

    def alpha(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("lora_up.weight")]:
            tensors[name.replace("lora_up.weight", "alpha")] = torch.tensor(1e9)

    def alpha_nan(tensors: dict[str, torch.Tensor]) -> None:
        name = first(tensors, "lora_up.weight").replace("lora_up.weight", "alpha")
        tensors[name] = torch.tensor(float("nan"))

    def rank(tensors: dict[str, torch.Tensor]) -> None:
        name = first(tensors, "lora_up.weight")
        down = name.replace("lora_up", "lora_down")
        tensors[name] = torch.zeros(tensors[name].shape[0], 1025)
        tensors[down] = torch.zeros(1025, tensors[down].shape[1])

    def contradiction(tensors: dict[str, torch.Tensor]) -> None:
        name = first(tensors, "lora_up.weight")
        tensors[name] = torch.zeros(7, tensors[name].shape[1])

    def renamed(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[
                "lora_unet_nowhere_" + name.split(".", 1)[0][-8:] + "." + name.split(".", 1)[1]
            ] = tensors.pop(name)

    def nothing(_: dict[str, torch.Tensor]) -> None:
        pass

    yield Hostile("NaN in a LoRA", "lora", lora(nan), "not finite")
    yield Hostile("infinity in a LoRA", "lora", lora(infinite), "not finite")
    yield Hostile("an alpha of 1e9", "lora", lora(alpha), "float16 maximum")
    yield Hostile("an alpha of NaN", "lora", lora(alpha_nan), "alpha")
    yield Hostile("rank 1025", "lora", lora(rank), "at most 1024")
    yield Hostile(
        "factors of different sizes", "lora", lora(contradiction), "the served model needs"
    )
    yield Hostile("modules of an unknown model", "lora", lora(renamed), "none of its")
    metadata = {"ss_base_model_version": "sd_1.5", "modelspec.architecture": "flux"}
    yield Hostile("metadata that declares SD 1.5", "lora", lora(nothing, metadata), "")
    script = {"ss_output_name": "<script>alert(1)</script>", "lora_adapter_metadata": "{}"}
    yield Hostile("metadata with a script", "lora", lora(nothing, script), "")
    yield Hostile(
        "metadata of 2 MB", "lora", lora(nothing, {"ss_tag_frequency": "x" * 2_000_000}), ""
    )
    broken = {"lora_adapter_metadata": "[" * 10_000}
    yield Hostile("metadata that is not JSON", "lora", lora(nothing, broken), "not JSON")
    yield Hostile("a LoRA declared as a VAE", "vae", lora(nan), "declared as vae.*not finite")
    huge = listing({"emb_params": (1 << 20, schema.text_widths[1])})
    yield Hostile("a million vectors", "textual_inversion", huge, "vectors")
    sparse = listing({f"model.diffusion_model.{i}": (1 << 24,) for i in range(4)})
    yield Hostile(
        "128 MB of zeros with a UNet's prefix",
        "checkpoint",
        sparse,
        "no UNet|not recognised|without",
    )


def other_models(real_data: Path) -> Iterator[Hostile]:
    """Keys and shapes of other published models."""
    for path in sorted((real_data / "foreign_listings").glob("*.json")):
        document = json.loads(path.read_text())
        shapes = document.get("state_dict_keys")
        if isinstance(shapes, dict):
            small = {key: tuple(shape) for key, shape in shapes.items()}
            yield Hostile(
                path.stem, "lora", listing(small, "F16"), "this is a|not recognised|none of its"
            )
