"""Estimates the speeds of generation and tiers for the router."""

from __future__ import annotations

from dataclasses import replace

from router.cost import Speeds
from serving.generation.contract import MAX_BATCH, GenerationResult, GenerationTask
from serving.pool.duration_fit import DurationFit

#: Weight of a new measurement.
_SMOOTHING = 0.3
#: Smaller files' fetch time is not proportional to size.
_MIN_MEASURED_BYTES = 1 << 20


class ThroughputEstimator:
    """Exponential moving averages; the first measurement replaces the guess."""

    def __init__(self) -> None:
        self._measured = set[str]()
        #: By UNet calls and work; by images and pixels.
        self._denoising, self._decoding = DurationFit(), DurationFit()
        #: Of each request: switching, encoding prompts.
        self._own_s = 0.0
        #: The largest one lately.
        self._batch = MAX_BATCH

    def after(self, result: GenerationResult, request: GenerationTask, speeds: Speeds) -> Speeds:
        """Return ``speeds`` updated with a generation's measurements."""
        timings = result.timings
        denoise_s, decode_s = timings.denoise_ms / 1000, timings.decode_ms / 1000
        if denoise_s + decode_s > 0:
            measured = request.work / (denoise_s + decode_s)
            work_per_s = self._smoothed("work", speeds.work_per_s, measured)
            speeds = replace(speeds, work_per_s=work_per_s, is_measured=True)
        if denoise_s > 0 and decode_s > 0:
            if len(request.seeds) > 1 and result.batches:
                self._batch = max(result.batches)
            self._denoising.add(self._calls(request), request.work, denoise_s)
            self._decoding.add(len(request.seeds), request.pixels, decode_s)
            own_s = timings.engine_s - denoise_s - decode_s
            self._own_s = self._smoothed("own", self._own_s, own_s)
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

    def generate_s(self, request: GenerationTask) -> float | None:
        """Return the engine seconds of a request, without fetches; None: not measured yet."""
        per_call_s, per_work_s = self._denoising.prices()
        per_image_s, per_pixel_s = self._decoding.prices()
        if not per_call_s and not per_work_s:
            return None
        denoise_s = per_call_s * self._calls(request) + per_work_s * request.work
        decode_s = per_image_s * len(request.seeds) + per_pixel_s * request.pixels
        return self._own_s + denoise_s + decode_s

    def _calls(self, request: GenerationTask) -> int:
        """Of the UNet."""
        return request.evaluations * -(-len(request.seeds) // self._batch)

    def _smoothed(self, name: str, known: float, measured: float) -> float:
        if name not in self._measured:
            self._measured.add(name)
            return measured
        return known + _SMOOTHING * (measured - known)
