"""How far an adapter may move a parameter: no further than float16 can hold.

The bound is of the largest element of the change at weight 1. For a product of factors that is
the longest row times the longest column (Cauchy and Schwarz), for Kronecker's and the
elementwise product the product of both sides' bounds; so it is never too small.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: The largest finite float16.
LARGEST = 65504.0


def piece_bound(name: str, tensor: torch.Tensor) -> float:
    """Of one canonical piece [rows, columns]; what a product of such bounds is made from."""
    if name.startswith("up"):
        return float(torch.linalg.vector_norm(tensor.float(), dim=1).max())
    if name.startswith("down"):
        return float(torch.linalg.vector_norm(tensor.float(), dim=0).max())
    return float(tensor.float().abs().max())


def change_bound(pieces: Mapping[str, float], scale: float) -> float:
    """The largest element that the change may have; for DoRA, that its weights may have."""
    for name in ("magnitude", "magnitude_in"):
        if name in pieces:
            return pieces[name]
    bound = abs(scale)
    for value in pieces.values():
        bound *= value
    return bound
