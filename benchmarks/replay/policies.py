"""Routing policies of other systems, for comparison.

They send requests at once to a replica, which queues. The platform's own policy is in
simulation.py.
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
    """Fewest outstanding requests, at random among equals."""

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        least = min(replica.outstanding for replica in replicas)
        return rng.choice([r for r in replicas if r.outstanding == least])

    return choose


def power_of_two(rng: random.Random) -> Choose:
    """The less loaded of two random replicas (Mitzenmacher 2001); Ray Serve's default."""

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        return _less_loaded_of_two(rng, replicas)

    return choose


def multiplexed(rng: random.Random, max_ongoing: int = 5) -> Choose:
    """Ray Serve's model multiplexing by checkpoint: the less loaded of two random replicas that
    hold the model and accept requests; else of two with the fewest models; if full, of any two."""

    def choose(request: TraceRequest, replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
        def accepting(candidates: Sequence[SimulatedReplica]) -> list[SimulatedReplica]:
            return [r for r in candidates if r.outstanding < max_ongoing]

        holders = accepting([r for r in replicas if r.holds(request.assets[0])])
        if holders:
            return _less_loaded_of_two(rng, holders)
        fewest = min(len(r.models.resident()) for r in replicas)
        emptiest = accepting([r for r in replicas if len(r.models.resident()) == fewest])
        return _less_loaded_of_two(rng, emptiest or replicas)

    return choose


def _less_loaded_of_two(
    rng: random.Random, replicas: Sequence[SimulatedReplica]
) -> SimulatedReplica:
    two = rng.sample(replicas, 2) if len(replicas) > 1 else replicas
    return min(two, key=lambda r: r.outstanding)


#: Per replica on the ring.
_POINTS = 64


class _Ring:
    def __init__(self, replicas: Sequence[SimulatedReplica]) -> None:
        points = sorted(
            (_hash(f"{r.name}/{point}"), at)
            for at, r in enumerate(replicas)
            for point in range(_POINTS)
        )
        self._hashes = [point_hash for point_hash, _ in points]
        self._replica_indices = [at for _, at in points]

    def walk(self, key: str) -> Sequence[int]:
        """Return replicas in ring order from the key's hash."""
        start = bisect(self._hashes, _hash(key)) % len(self._replica_indices)
        return self._replica_indices[start:] + self._replica_indices[:start]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def consistent_hash(bound: float | None = None) -> Choose:
    """Consistent hashing of checkpoints. Replicas above ``bound`` times the mean load are skipped
    (Mirrokni, Thorup and Zadimoghaddam 2018)."""
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
