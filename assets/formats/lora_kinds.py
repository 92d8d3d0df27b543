"""The kinds of adapter, and how each becomes one canonical expression.

Whatever a trainer calls it, the change of a parameter is an instance of

    Δ = kron ⊗ (up @ down ⊙ up_2 @ down_2)        or        Δ = kron ⊗ full

with everything optional but one of the two inner terms; ⊗ is Kronecker's product, ⊙ the
elementwise one. LoRA and LoCon are ``up @ down`` (Hu et al. 2021, arXiv:2106.09685), LoHa
adds the second pair (FedPara, arXiv:2108.06098), LoKr the Kronecker factor (LyCORIS,
arXiv:2309.14859); ``full`` alone is a difference of weights, biases or norms. A convolution's
kernel is flattened into its inputs; a Tucker core is multiplied into the ``down`` next to it,
which is exact.

DoRA (arXiv:2402.09353) goes on from there: with ``magnitude`` m, an output's row of W + Δ is
brought to length m, so Δ' = m · (W + Δ) / ‖W + Δ‖ − W; with ``magnitude_in`` an input's column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from assets.families.schema import Shape

MAX_RANK = 1024

Shapes = Mapping[str, Shape]
Tensors = Mapping[str, torch.Tensor]

#: How a key ends → the role of its tensor. PEFT puts the adapter's name in between, which is the
#: trainer's to choose.
_ROLES: tuple[tuple[str, str], ...] = (
    (r"[._]lora[._]down\.weight", "down"),
    (r"[._]lora[._]up\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.lora_A(\.[\w-]+)?\.weight", "down"),
    (r"\.lora_B(\.[\w-]+)?\.weight", "up"),
    (r"\.lora_linear_layer\.down\.weight", "down"),
    (r"\.lora_linear_layer\.up\.weight", "up"),
    *(
        (rf"\.{role}(\.[\w-]+)?" if role != "alpha" else r"\.alpha", role)
        for role in (
            "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
            "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
            "alpha",
        )
    ),
    (r"\.dora_scale", "dora_scale"),
    (r"\.lora_magnitude_vector(\.[\w-]+)?(\.weight)?", "magnitude"),
    (r"\.(diff|w_norm)", "diff"),
    (r"\.(diff_b|b_norm)", "diff_b"),
)  # fmt: skip
_ROLE = re.compile("(?:" + "|".join(f"({end.replace('(', '(?:')})" for end, _ in _ROLES) + r")\Z")
#: No role with an adapter's name in it is longer.
_LONGEST_ROLE = 160


def split_key(key: str) -> tuple[str, str] | None:
    """``unet.….to_q.lora_A.weight`` → (``unet.….to_q``, ``down``); None when it is no adapter's.
    Only how the key ends counts: its beginning may be made of anybody's words."""
    match = _ROLE.search(key, max(1, len(key) - _LONGEST_ROLE))
    if match is None:
        return None
    assert match.lastindex is not None
    return key[: match.start()], _ROLES[match.lastindex - 1][1]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the canonical form. ``make`` gets the tensors of ``roles``; with a
    single role it only reshapes, and keeps the file's type."""

    shape: Shape
    roles: tuple[str, ...]
    make: Callable[[Tensors], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A module's change: its canonical pieces by name, and the rank that alpha is divided
    by (None: this kind has no scale)."""

    kind: str
    pieces: Mapping[str, Piece]
    rank: int | None
    out_features: int
    in_features: int


class Unfit(Exception):
    """The roles or shapes of a module make no adapter; says which."""


def adapter_of(shapes: Shapes) -> Adapter:
    """What the tensors with these roles and shapes are. Pure.

    Raises:
        Unfit: a factor is missing, too many, or the shapes contradict each other.
    """
    roles = set(shapes) - {"alpha"}
    if "diff" in roles:
        adapter = _difference(shapes)
    elif roles & {"up", "down"}:
        adapter = _low_rank(shapes)
    elif any(role.startswith("hada") for role in roles):
        adapter = _hadamard(shapes)
    elif any(role.startswith("lokr") for role in roles):
        adapter = _kronecker(shapes)
    else:
        raise Unfit("has no factors")
    if roles & {"magnitude", "dora_scale"}:
        adapter = _decomposed(adapter, shapes)
    used = {role for piece in adapter.pieces.values() for role in piece.roles}
    if roles - used:
        raise Unfit(f"has {', '.join(sorted(roles - used))} beside a {adapter.kind}")
    ranks = [adapter.rank] if adapter.rank is not None else []
    ranks += [piece.shape[1] for name, piece in adapter.pieces.items() if name in ("up", "up_2")]
    for rank in ranks:
        if not 0 < rank <= MAX_RANK:
            raise Unfit(f"has rank {rank}; at most {MAX_RANK} is accepted")
    if "alpha" in shapes and _elements(shapes["alpha"]) != 1:
        raise Unfit("has an alpha that is not a single number")
    return adapter


def _elements(shape: Shape) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _flat(shape: Shape) -> tuple[int, int]:
    if not shape:
        raise Unfit("has a factor without dimensions")
    return shape[0], _elements(shape[1:])


def _need(shapes: Shapes, *roles: str) -> list[Shape]:
    for role in roles:
        if role not in shapes:
            raise Unfit(f"has no {role} factor")
    return [shapes[role] for role in roles]


def _same(what: str, left: int, right: int) -> None:
    if left != right:
        raise Unfit(f"has factors that do not meet: {what} is {left} here and {right} there")


def _plain(role: str, shapes: Shapes) -> Piece:
    shape = _flat(shapes[role])
    return Piece(shape, (role,), lambda tensors: tensors[role].reshape(shape))


def _low_rank(shapes: Shapes) -> Adapter:
    down, up = _need(shapes, "down", "up")
    out, rank = _flat(up)
    pieces = {"up": _plain("up", shapes)}
    if "mid" in shapes:
        pieces["down"] = _cored("mid", "down", shapes)
        _same("the rank", rank, shapes["mid"][0])
    else:
        pieces["down"] = _plain("down", shapes)
        _same("the rank", rank, down[0])
    kind = "LoRA" if len(down) == 2 else "LoCon"
    return Adapter(kind, pieces, down[0], out, pieces["down"].shape[1])


def _cored(core: str, down: str, shapes: Shapes) -> Piece:
    """``down`` [r, in] behind a Tucker core [s, r, kh, kw]: one factor of [s, in·kh·kw]."""
    if len(shapes[core]) < 3:
        raise Unfit(f"has a {core} of {len(shapes[core])} dimensions; a kernel is wanted")
    outer, inner, *kernel = shapes[core]
    rank, inputs = _flat(shapes[down])
    _same("the core's rank", inner, rank)
    shape = (outer, inputs * _elements(tuple(kernel)))

    def make(tensors: Tensors) -> torch.Tensor:
        flat = tensors[down].float().reshape(rank, inputs)
        whole = torch.einsum("sr...,ri->si...", tensors[core].float(), flat)
        return whole.reshape(shape)

    return Piece(shape, (core, down), make)


def _turned(role: str, shapes: Shapes) -> Piece:
    """[r, out] as Tucker forms keep it → [out, r]."""
    rank, out = _flat(shapes[role])
    return Piece((out, rank), (role,), lambda tensors: tensors[role].reshape(rank, out).t())


def _pair(a: str, b: str, core: str, shapes: Shapes) -> tuple[Piece, Piece]:
    """The product ``a @ b``, with its Tucker core if there is one, as up and down."""
    _need(shapes, a, b)
    if core in shapes:
        up, down = _turned(a, shapes), _cored(core, b, shapes)
    else:
        up, down = _plain(a, shapes), _plain(b, shapes)
    _same("the rank", up.shape[1], down.shape[0])
    return up, down


def _hadamard(shapes: Shapes) -> Adapter:
    first = _pair("hada_w1_a", "hada_w1_b", "hada_t1", shapes)
    second = _pair("hada_w2_a", "hada_w2_b", "hada_t2", shapes)
    out, inputs = first[0].shape[0], first[1].shape[1]
    _same("out", out, second[0].shape[0])
    _same("in", inputs, second[1].shape[1])
    pieces = {"up": first[0], "down": first[1], "up_2": second[0], "down_2": second[1]}
    return Adapter("LoHa", pieces, first[0].shape[1], out, inputs)


def _difference(shapes: Shapes) -> Adapter:
    piece = _plain("diff", shapes)
    return Adapter("difference", {"full": piece}, None, *piece.shape)


def _decomposed(adapter: Adapter, shapes: Shapes) -> Adapter:
    """DoRA over any kind. PEFT's magnitudes are of outputs, whatever their shape; LyCORIS's
    ``dora_scale`` is [out, 1 …], or in its older form [1, in, …]."""
    role = "magnitude" if "magnitude" in shapes else "dora_scale"
    shape = shapes[role]
    count = _elements(shape)
    of_outputs = role == "magnitude" or len(shape) < 2 or shape[0] != 1
    if of_outputs:
        _same("out", adapter.out_features, count)
    elif count == 0 or adapter.in_features % count:
        raise Unfit(f"has {count} magnitudes of inputs for {adapter.in_features} inputs")
    piece = Piece((count,), (role,), lambda tensors: tensors[role].reshape(count))
    name = "magnitude" if of_outputs else "magnitude_in"
    pieces = {**adapter.pieces, name: piece}
    return replace(adapter, kind=f"DoRA on {adapter.kind}", pieces=pieces)


def _kronecker(shapes: Shapes) -> Adapter:
    rank: int | None = None
    pieces: dict[str, Piece] = {}
    if "lokr_w1" in shapes:
        pieces["kron"] = _plain("lokr_w1", shapes)
    else:
        first, second = _need(shapes, "lokr_w1_a", "lokr_w1_b")
        _same("the rank", _flat(first)[1], second[0])
        rank = second[0]
        pieces["kron"] = Piece(
            (first[0], second[1]),
            ("lokr_w1_a", "lokr_w1_b"),
            lambda tensors: tensors["lokr_w1_a"].float() @ tensors["lokr_w1_b"].float(),
        )
    rows, columns = pieces["kron"].shape
    if "lokr_w2" in shapes:
        pieces["full"] = _plain("lokr_w2", shapes)
        out, inputs = pieces["full"].shape
    else:
        pieces["up"], pieces["down"] = _pair("lokr_w2_a", "lokr_w2_b", "lokr_t2", shapes)
        out, inputs = pieces["up"].shape[0], pieces["down"].shape[1]
        rank = pieces["up"].shape[1]
    return Adapter("LoKr", pieces, rank, rows * out, columns * inputs)
