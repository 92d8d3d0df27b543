"""Collect the reasons to reject a file, and report entries that need all tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from assets.errors import IngestRejected
from assets.formats.tensors import CANONICAL_FLOATS
from assets.report import Report

MAX_REASONS = 20


class Findings:
    """Rejection reasons and deferred report entries; complete after the last tensor is read."""

    def __init__(self) -> None:
        self._reasons: dict[str, None] = {}
        self._deferred: list[Callable[[], Report]] = []

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(self._reasons)

    def refuse(self, *reasons: str) -> None:
        self._reasons |= dict.fromkeys(reasons)

    def stored_dtype(self, name: str, dtype: str) -> str:
        """Return the canonical dtype; refuse a non-float one."""
        stored = CANONICAL_FLOATS.get(dtype)
        if stored is None:
            self.refuse(f"{name!r} is {dtype}; accepted: {', '.join(CANONICAL_FLOATS)}")
        return stored or "F32"

    def check_finite(self, name: str, tensor: torch.Tensor) -> None:
        if not torch.isfinite(tensor).all():
            self.refuse(f"{name!r} contains values that are not finite (NaN or infinite)")

    def at_the_end(self, compute: Callable[[], Report]) -> None:
        """Add the result of ``compute`` to the report after the last tensor."""
        self._deferred.append(compute)

    def finish(self) -> Report:
        """Return the deferred report entries.

        Raises:
            IngestRejected: as ``raise_all``.
        """
        entries = Report()
        for compute in self._deferred:
            entries |= compute()
        self.raise_all()
        return entries

    def raise_all(self) -> None:
        """Raise if anything was refused.

        Raises:
            IngestRejected: with at most ``MAX_REASONS`` reasons and a count of the rest.
        """
        reasons = list(self._reasons)
        if len(reasons) > MAX_REASONS:
            more = f"and {len(reasons) - MAX_REASONS} more like these"
            reasons = [*reasons[:MAX_REASONS], more]
        if reasons:
            raise IngestRejected(*reasons)
