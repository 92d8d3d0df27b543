"""What requests ask for: how popular checkpoints and extras are, and what loading them takes."""

from __future__ import annotations

from cachetools import LRUCache

from assets.content import Blob
from router.cost import Speeds
from router.policy import SchedulingPolicy
from router.popularity import Popularity
from router.request import QueuedRequest

_MAX_TRACKED = 10_000
_POPULAR_S = 3600.0


class Demand:
    """Mutable. Extras are LoRAs and inversions."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        #: Short-term; its fade time follows the load time.
        self._recent_checkpoints = Popularity(60.0)
        self._checkpoints = Popularity(_POPULAR_S)
        self._extras = Popularity(_POPULAR_S)
        #: By checkpoint or extra.
        self._blobs: LRUCache[str, tuple[Blob, ...]] = LRUCache(_MAX_TRACKED)
        self._load_s: LRUCache[str, float] = LRUCache(_MAX_TRACKED)

    def record(self, request: QueuedRequest, speeds: Speeds, now_s: float) -> None:
        load_s = self._load_s[request.group] = speeds.at_most_s(request.model)
        self._recent_checkpoints.fade_s = max(1.0, self._policy.fade_loads * load_s)
        self._recent_checkpoints.record(request.group, now_s)
        self._checkpoints.record(request.group, now_s)
        self._blobs[request.group] = tuple(request.model)
        for blob in request.extras:
            self._extras.record(blob.key, now_s)
            self._blobs[blob.key] = (blob,)

    def load_s(self, checkpoint: str) -> float:
        """Seconds to load it from the store; 0 if it is not tracked."""
        return self._load_s.get(checkpoint, 0.0)

    def soon(self, checkpoint: str, now_s: float) -> float:
        """The probability that it is asked for within some of its load times."""
        horizon_s = self._policy.horizon_loads * self.load_s(checkpoint)
        return self._recent_checkpoints.within(checkpoint, horizon_s, now_s)

    def later(self, checkpoint: str, now_s: float) -> float:
        """The probability that it is asked for within ten minutes."""
        return self._checkpoints.within(checkpoint, _POPULAR_S / 6, now_s)

    def popular_extras(self, count: int, now_s: float) -> list[str]:
        """The keys of the most requested extras."""
        return self._extras.most(count, now_s)

    def most_popular(self, count: int, now_s: float) -> list[Blob]:
        """The blobs of the two most requested checkpoints and of ``count`` extras."""
        keys = [*self._checkpoints.most(2, now_s), *self._extras.most(count, now_s)]
        return list(dict.fromkeys(blob for key in keys for blob in self._blobs.get(key, ())))
