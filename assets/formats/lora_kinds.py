"""Convert each kind of adapter to one canonical expression.

The change of a parameter is

    Δ = kron ⊗ (up @ down ⊙ up_2 @ down_2)        or        Δ = kron ⊗ full

with ⊗ the Kronecker and ⊙ the elementwise product; only ``up @ down`` or ``full`` is required. LoRA
and LoCon (Hu et al. 2021, arXiv:2106.09685) are ``up @ down``; LoHa (FedPara, arXiv:2108.06098)
adds the second pair, LoKr (LyCORIS, arXiv:2309.14859) the Kronecker factor; ``full`` alone is a
difference. A convolution's kernel is flattened into its inputs; a Tucker core is multiplied into
the adjacent ``down`` (exact).

DoRA (arXiv:2402.09353) with ``magnitude`` m scales output rows to length m: Δ' = m · (W + Δ) / ‖W +
Δ‖ − W; ``magnitude_in``, input columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

import torch

from assets.families.schema import Shape

MAX_RANK = 1024

Shapes = Mapping[str, Shape]
Tensors = Mapping[str, torch.Tensor]

#: Key suffix → role. PEFT inserts the adapter's name, which the trainer chooses.
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
#: Adapter name included; bounds the regex search.
_MAX_SUFFIX_CHARS = 160


def split_key(key: str) -> tuple[str, str] | None:
    """Split an adapter key into module and role; None for other keys.

    ``unet.….to_q.lora_A.weight`` → (``unet.….to_q``, ``down``). Prefixes can contain user-chosen
    names.
    """
    match = _ROLE.search(key, max(1, len(key) - _MAX_SUFFIX_CHARS))
    if match is None:
        return None
    assert match.lastindex is not None
    return key[: match.start()], _ROLES[match.lastindex - 1][1]


@dataclass(frozen=True, slots=True)
class Piece:
    """One canonical tensor, made from those of ``roles``; a single one keeps the file's dtype."""

    shape: Shape
    roles: tuple[str, ...]
    make: Callable[[Tensors], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A module's canonical pieces by name. alpha is divided by ``rank``; None means no scale."""

    kind: str
    pieces: Mapping[str, Piece]
    rank: int | None
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class AdapterForm:
    """A form of adapters. ``fits(roles)``: by the roles of a module's tensors, without alpha."""

    fits: Callable[[Set[str]], bool]
    build: Callable[[Shapes], Adapter]


class AdapterMismatch(Exception):
    """A module's tensors form no supported adapter."""


def adapter_of(shapes: Shapes) -> Adapter:
    """Build the adapter for these roles and shapes. Pure.

    Raises:
        AdapterMismatch: missing or extra factors, inconsistent shapes, or too large a rank.
    """
    roles = set(shapes) - {"alpha"}
    build = next((form.build for form in FORMS if form.fits(roles)), None)
    if build is None:
        raise AdapterMismatch("has no factors")
    adapter = build(shapes)
    if roles & {"magnitude", "dora_scale"}:
        adapter = _decomposed(adapter, shapes)
    used = {role for piece in adapter.pieces.values() for role in piece.roles}
    if roles - used:
        raise AdapterMismatch(
            f"has {', '.join(sorted(roles - used))} in addition to a {adapter.kind}"
        )
    ranks = [adapter.rank] if adapter.rank is not None else []
    ranks += [piece.shape[1] for name, piece in adapter.pieces.items() if name in ("up", "up_2")]
    for rank in ranks:
        if not 0 < rank <= MAX_RANK:
            raise AdapterMismatch(f"has rank {rank}; at most {MAX_RANK} is accepted")
    if "alpha" in shapes and _elements(shapes["alpha"]) != 1:
        raise AdapterMismatch("has an alpha that is not a single number")
    return adapter


def _elements(shape: Shape) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _flat(shape: Shape) -> tuple[int, int]:
    if not shape:
        raise AdapterMismatch("has a factor without dimensions")
    return shape[0], _elements(shape[1:])


def _require(shapes: Shapes, *roles: str) -> list[Shape]:
    for role in roles:
        if role not in shapes:
            raise AdapterMismatch(f"has no {role} factor")
    return [shapes[role] for role in roles]


def _require_equal(what: str, left: int, right: int) -> None:
    if left != right:
        raise AdapterMismatch(
            f"has factors of different sizes: {what} is {left} in one and {right} in another"
        )


def _plain(role: str, shapes: Shapes) -> Piece:
    shape = _flat(shapes[role])
    return Piece(shape, (role,), lambda tensors: tensors[role].reshape(shape))


def _low_rank(shapes: Shapes) -> Adapter:
    down, up = _require(shapes, "down", "up")
    out, rank = _flat(up)
    pieces = {"up": _plain("up", shapes)}
    if "mid" in shapes:
        pieces["down"] = _with_core("mid", "down", shapes)
        _require_equal("the rank", rank, shapes["mid"][0])
    else:
        pieces["down"] = _plain("down", shapes)
        _require_equal("the rank", rank, down[0])
    kind = "LoRA" if len(down) == 2 else "LoCon"
    return Adapter(kind, pieces, down[0], out, pieces["down"].shape[1])


def _with_core(core: str, down: str, shapes: Shapes) -> Piece:
    """Merge ``down`` [r, in] and a Tucker core [s, r, kh, kw] into [s, in·kh·kw]."""
    if len(shapes[core]) < 3:
        raise AdapterMismatch(
            f"has a {core} of {len(shapes[core])} dimensions; at least 3 are required"
        )
    outer, inner, *kernel = shapes[core]
    rank, inputs = _flat(shapes[down])
    _require_equal("the core's rank", inner, rank)
    shape = (outer, inputs * _elements(tuple(kernel)))

    def make(tensors: Tensors) -> torch.Tensor:
        flat = tensors[down].float().reshape(rank, inputs)
        whole = torch.einsum("sr...,ri->si...", tensors[core].float(), flat)
        return whole.reshape(shape)

    return Piece(shape, (core, down), make)


def _transposed(role: str, shapes: Shapes) -> Piece:
    """[r, out], as in Tucker forms, to [out, r]."""
    rank, out = _flat(shapes[role])
    return Piece((out, rank), (role,), lambda tensors: tensors[role].reshape(rank, out).t())


def _pair(a: str, b: str, core: str, shapes: Shapes) -> tuple[Piece, Piece]:
    """Return (up, down) of ``a @ b``."""
    _require(shapes, a, b)
    if core in shapes:
        up, down = _transposed(a, shapes), _with_core(core, b, shapes)
    else:
        up, down = _plain(a, shapes), _plain(b, shapes)
    _require_equal("the rank", up.shape[1], down.shape[0])
    return up, down


def _hadamard(shapes: Shapes) -> Adapter:
    first = _pair("hada_w1_a", "hada_w1_b", "hada_t1", shapes)
    second = _pair("hada_w2_a", "hada_w2_b", "hada_t2", shapes)
    out, inputs = first[0].shape[0], first[1].shape[1]
    _require_equal("out", out, second[0].shape[0])
    _require_equal("in", inputs, second[1].shape[1])
    pieces = {"up": first[0], "down": first[1], "up_2": second[0], "down_2": second[1]}
    return Adapter("LoHa", pieces, first[0].shape[1], out, inputs)


def _difference(shapes: Shapes) -> Adapter:
    piece = _plain("diff", shapes)
    return Adapter("difference", {"full": piece}, None, *piece.shape)


def _decomposed(adapter: Adapter, shapes: Shapes) -> Adapter:
    """Add DoRA magnitudes.

    PEFT's are per output, in any shape; LyCORIS's [out, 1 …], or [1, in, …] in older versions.
    """
    role = "magnitude" if "magnitude" in shapes else "dora_scale"
    shape = shapes[role]
    count = _elements(shape)
    per_output = role == "magnitude" or len(shape) < 2 or shape[0] != 1
    if per_output:
        _require_equal("out", adapter.out_features, count)
    elif count == 0 or adapter.in_features % count:
        raise AdapterMismatch(f"has {count} input magnitudes for {adapter.in_features} inputs")
    piece = Piece((count,), (role,), lambda tensors: tensors[role].reshape(count))
    name = "magnitude" if per_output else "magnitude_in"
    pieces = {**adapter.pieces, name: piece}
    return replace(adapter, kind=f"DoRA on {adapter.kind}", pieces=pieces)


def _kronecker(shapes: Shapes) -> Adapter:
    rank: int | None = None
    pieces: dict[str, Piece] = {}
    if "lokr_w1" in shapes:
        pieces["kron"] = _plain("lokr_w1", shapes)
    else:
        first, second = _require(shapes, "lokr_w1_a", "lokr_w1_b")
        _require_equal("the rank", _flat(first)[1], second[0])
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


#: The first that fits. A new form is a line here and its roles in ``_ROLES``.
FORMS: tuple[AdapterForm, ...] = (
    AdapterForm(lambda roles: "diff" in roles, _difference),
    AdapterForm(lambda roles: not roles.isdisjoint({"up", "down"}), _low_rank),
    AdapterForm(lambda roles: any(role.startswith("hada") for role in roles), _hadamard),
    AdapterForm(lambda roles: any(role.startswith("lokr") for role in roles), _kronecker),
)
