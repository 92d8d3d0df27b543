"""Ways to choose a replica as a request arrives: what others do, for comparison.

Each is given what a router of its kind knows, and sends every request at once; it waits in
the replica's own queue. Ours is not here: it is the platform's own (see simulation.py).
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import ceil

from benchmarks.replay.replica import SimulatedReplica
from benchmarks.replay.trace import TraceRequest

Choose = Callable[[TraceRequest, Sequence[SimulatedReplica]], SimulatedReplica]


def random_choice(rng: random.Random) -> Choose:
    return lambda request, replicas: rng.choice(replicas)


def round_robin() -> Choose:
    turn = -1

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        nonlocal turn
        turn = (turn + 1) % len(replicas)
        return replicas[turn]

    return choose


def least_loaded(rng: random.Random) -> Choose:
    """By how many requests each has; a lot decides between equals."""

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        least = min(replica.outstanding for replica in replicas)
        return rng.choice([r for r in replicas if r.outstanding == least])

    return choose


def power_of_two(rng: random.Random) -> Choose:
    """The less loaded of two taken by lot (Mitzenmacher 2001); Ray Serve's own way."""

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        return _lesser_of_two(rng, replicas)

    return choose


def multiplexed(rng: random.Random, max_ongoing: int = 5) -> Choose:
    """Ray Serve's model multiplexing, one model id (the checkpoint) a request: two by lot among
    the replicas that have it loaded and take another request; if there is none, two among those
    with the fewest models; if these are full, two among all."""

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        def accepting(some: Sequence[SimulatedReplica]) -> list[SimulatedReplica]:
            return [r for r in some if r.outstanding < max_ongoing]

        holders = accepting([r for r in replicas if r.holds(request.assets[0])])
        if holders:
            return _lesser_of_two(rng, holders)
        fewest = min(len(r.models.resident()) for r in replicas)
        roomy = accepting([r for r in replicas if len(r.models.resident()) == fewest])
        return _lesser_of_two(rng, roomy or replicas)

    return choose


def _lesser_of_two(rng: random.Random, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
    two = rng.sample(replicas, 2) if len(replicas) > 1 else replicas
    return min(two, key=lambda r: r.outstanding)


#: Points of each replica on the ring.
_POINTS = 64


class _Ring:
    def __init__(self, replicas: Sequence[SimulatedReplica]) -> None:
        points = sorted(
            (_hashed(f"{r.name}/{point}"), at)
            for at, r in enumerate(replicas)
            for point in range(_POINTS)
        )
        self._places = [place for place, _ in points]
        self._at = [at for _, at in points]

    def walk(self, key: str) -> Sequence[int]:
        """Replicas from the key's place on, each once or more."""
        start = bisect(self._places, _hashed(key)) % len(self._at)
        return self._at[start:] + self._at[:start]


def _hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def consistent_hash(bound: float | None = None) -> Choose:
    """A ring of checkpoints. With ``bound``: the next one on the ring where a replica has more
    than so many times its share of the requests (Mirrokni, Thorup and Zadimoghaddam 2018)."""
    ring: _Ring | None = None

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        nonlocal ring
        ring = ring or _Ring(replicas)
        order = ring.walk(request.checkpoint)
        if bound is None:
            return replicas[order[0]]
        most = ceil(bound * (sum(r.outstanding for r in replicas) + 1) / len(replicas))
        return next(replicas[at] for at in order if replicas[at].outstanding < most)

    return choose
