"""Bound the change of a parameter by an adapter, so that it fits float16.

The bound of the largest element at weight 1 is, for a product of factors, the longest row times the
longest column (Cauchy–Schwarz); for Kronecker and elementwise products, the product of both bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: The largest finite float16.
LARGEST = 65504.0


def piece_bound(name: str, tensor: torch.Tensor) -> float:
    """Return the piece's longest row, column or element."""
    if name.startswith("up"):
        return float(torch.linalg.vector_norm(tensor.float(), dim=1).max())
    if name.startswith("down"):
        return float(torch.linalg.vector_norm(tensor.float(), dim=0).max())
    return float(tensor.float().abs().max())


def change_bound(pieces: Mapping[str, float], scale: float) -> float:
    """Return the change's bound; for DoRA, the changed weights'."""
    for name in ("magnitude", "magnitude_in"):
        if name in pieces:
            return pieces[name]
    bound = abs(scale)
    for value in pieces.values():
        bound *= value
    return bound
