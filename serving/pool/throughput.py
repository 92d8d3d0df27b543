"""Estimates the speeds of generation and tiers for the router."""

from __future__ import annotations

from dataclasses import replace

from router.cost import Speeds
from serving.generation.contract import GenerationResult, GenerationTask

#: Weight of a new measurement.
_SMOOTHING = 0.3
#: Smaller files' fetch time is not proportional to size.
_MIN_MEASURED_BYTES = 1 << 20


class ThroughputEstimator:
    """Exponential moving averages; the first measurement replaces the guess."""

    def __init__(self) -> None:
        self._measured = set[str]()

    def after(self, result: GenerationResult, request: GenerationTask, speeds: Speeds) -> Speeds:
        """Return ``speeds`` updated with a generation's measurements."""
        spent_s = (result.timings.denoise_ms + result.timings.decode_ms) / 1000
        if spent_s > 0:
            work_per_s = self._smoothed("work", speeds.work_per_s, request.work / spent_s)
            speeds = replace(speeds, work_per_s=work_per_s, is_measured=True)
        sizes = {blob.key: blob.size_bytes for blob in request.recipe.blobs()}
        for fetch in result.fetches:
            size_bytes = sizes.get(fetch.key, 0)
            known = speeds.bytes_per_s.get(fetch.tier)
            if known is not None and fetch.fetch_s > 0 and size_bytes >= _MIN_MEASURED_BYTES:
                bytes_per_s = self._smoothed(fetch.tier, known, size_bytes / fetch.fetch_s)
                speeds = replace(
                    speeds, bytes_per_s={**speeds.bytes_per_s, fetch.tier: bytes_per_s}
                )
        return speeds

    def _smoothed(self, name: str, known: float, measured: float) -> float:
        if name not in self._measured:
            self._measured.add(name)
            return measured
        return known + _SMOOTHING * (measured - known)
