"""How fast things are, learnt from what they took: the router counts in seconds."""

from __future__ import annotations

from dataclasses import replace

from router.cost import Speeds
from serving.generation.contract import GenerationResult, GenerationTask

#: How much a new measurement counts against what was known.
_SMOOTHING = 0.3
#: Of small files it is not the bytes that take the time.
_TELLING_BYTES = 1 << 20


class ThroughputEstimator:
    """Mutable: which of the speeds are more than guesses by now."""

    def __init__(self) -> None:
        self._measured = set[str]()

    def after(self, result: GenerationResult, request: GenerationTask, speeds: Speeds) -> Speeds:
        """The speeds, now that this was drawn as well."""
        spent_s = (result.timings.denoise_ms + result.timings.decode_ms) / 1000
        if spent_s > 0:
            work_per_s = self._smoothed("work", speeds.work_per_s, request.work / spent_s)
            speeds = replace(speeds, work_per_s=work_per_s, is_measured=True)
        sizes = {blob.key: blob.size_bytes for blob in request.recipe.blobs()}
        for found in result.found:
            size_bytes = sizes.get(found.key, 0)
            known = speeds.bytes_per_s.get(found.tier)
            if known is not None and found.fetch_s > 0 and size_bytes >= _TELLING_BYTES:
                seen = self._smoothed(found.tier, known, size_bytes / found.fetch_s)
                speeds = replace(speeds, bytes_per_s={**speeds.bytes_per_s, found.tier: seen})
        return speeds

    def _smoothed(self, what: str, known: float, seen: float) -> float:
        if what not in self._measured:
            self._measured.add(what)
            return seen
        return known + _SMOOTHING * (seen - known)
