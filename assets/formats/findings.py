"""What a conversion finds wrong with a file, all of it, and what can only be said at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from assets.errors import IngestRejected
from assets.formats.tensors import CANONICAL_FLOATS

MAX_REASONS = 20


class Findings:
    """Filled while the values of a file pass by; read once they all have."""

    def __init__(self) -> None:
        self._reasons: dict[str, None] = {}
        self._last: list[Callable[[], Mapping[str, Any]]] = []

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(self._reasons)

    def refuse(self, *reasons: str) -> None:
        self._reasons |= dict.fromkeys(reasons)

    def stored_dtype(self, name: str, dtype: str) -> str:
        """The type in which a canonical file holds the weights ``name``; a type that holds no
        weights is among the reasons."""
        stored = CANONICAL_FLOATS.get(dtype)
        if stored is None:
            self.refuse(f"{name!r} is {dtype}; accepted: {', '.join(CANONICAL_FLOATS)}")
        return stored or "F32"

    def check_finite(self, name: str, tensor: torch.Tensor) -> None:
        if not torch.isfinite(tensor).all():
            self.refuse(f"{name!r} holds values that are not finite (NaN or infinite)")

    def at_the_end(self, say: Callable[[], Mapping[str, Any]]) -> None:
        """``say`` is called when every value was seen; what it returns goes into the report."""
        self._last.append(say)

    def finish(self) -> dict[str, Any]:
        """Raises IngestRejected with every reason, as far as a person would read on."""
        facts: dict[str, Any] = {}
        for say in self._last:
            facts |= say()
        self.raise_all()
        return facts

    def raise_all(self) -> None:
        reasons = list(self._reasons)
        if len(reasons) > MAX_REASONS:
            more = f"and {len(reasons) - MAX_REASONS} more like these"
            reasons = [*reasons[:MAX_REASONS], more]
        if reasons:
            raise IngestRejected(*reasons)
