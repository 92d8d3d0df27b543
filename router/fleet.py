"""An index of the replicas that finds the cheapest one for a request without a scan."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from cachetools import LRUCache

from assets.rendezvous import home
from router.cost import Speeds, cost_s
from router.replica import Node, Replica
from router.request import QueuedRequest

#: A key with at most this many holders is rare.
_MAX_RARE_HOLDERS = 24
#: Exceeds any wait.
_AVOIDED_S = 1e9
_EMPTY: dict[str, None] = {}


class DisplacementCost(Protocol):
    """The seconds that an eviction costs other requests."""

    def __call__(self, replica: Replica, now_s: float) -> float: ...


@dataclass(slots=True)
class _Bucket:
    """Replicas with the same checkpoints. ``idle``: longest idle first. ``busy`` (with a free slot)
    and ``full``: sorted (``free_at_s``, replica ID)."""

    models: tuple[str, ...]
    idle: dict[str, None] = field(default_factory=dict)
    busy: list[tuple[float, str]] = field(default_factory=list)
    full: list[tuple[float, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.idle or self.busy or self.full)


class Fleet:
    """The replicas and nodes of a pool. Mutable; the caller reports every change."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.nodes: dict[str, Node] = {}
        #: With a free slot.
        self.open_count = 0
        #: In order; cleared by the scheduler.
        self.changed: list[str] = []
        self._buckets: dict[tuple[str, ...], _Bucket] = {}
        self._buckets_of: dict[str, dict[tuple[str, ...], _Bucket]] = {}  # by checkpoint
        self._holders: dict[str, dict[str, None]] = {}
        self._replicas_of_node: dict[str, dict[str, None]] = {}
        self._nodes_with: dict[str, dict[str, None]] = {}  # key → nodes with it in a file tier
        self._home_replicas: LRUCache[str, str] = LRUCache(10_000)  # by rendezvous hashing
        self._busy_until_s = 0.0  # sum over busy replicas

    def __len__(self) -> int:
        return len(self.replicas)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas.values())

    def __contains__(self, replica_id: str) -> bool:
        return replica_id in self.replicas

    def add(
        self, replica_id: str, node_id: str, *, checkpoint_capacity: int, max_in_flight: int
    ) -> Replica:
        node = self.nodes.setdefault(node_id, Node(node_id))
        replica = Replica(
            replica_id, node, checkpoint_capacity=checkpoint_capacity, max_in_flight=max_in_flight
        )
        self.replicas[replica_id] = replica
        self._home_replicas.clear()
        self._replicas_of_node.setdefault(node_id, {})[replica_id] = None
        self._index(replica)
        return replica

    def remove(self, replica_id: str) -> None:
        """Remove a replica; the caller requeues its requests."""
        replica = self.replicas.pop(replica_id)
        self._home_replicas.clear()
        self._unindex(replica)
        for key in replica.gpu:
            self._remove_holder(key, replica_id)
        node_id = replica.node.id
        del self._replicas_of_node[node_id][replica_id]
        if not self._replicas_of_node[node_id]:
            self.on_node(node_id, {})
            del self._replicas_of_node[node_id], self.nodes[node_id]

    def on_device(
        self,
        replica_id: str,
        keys: Collection[str],
        models: Collection[str],
    ) -> None:
        """Set a device's keys; ``models``: checkpoints. Assets of running requests are added."""
        replica = self.replicas[replica_id]
        self._unindex(replica)
        order = [key for key in replica.models if key in models]
        replica.models = dict.fromkeys(order + [key for key in models if key not in order])
        for key in replica.gpu.difference(keys):
            self._remove_holder(key, replica_id)
        for key in keys:
            if key not in replica.gpu:
                self._holders.setdefault(key, {})[replica_id] = None
        replica.gpu = set(keys)
        for request in replica.running.values():
            self._reserve(replica, request)
        self._index(replica)

    def on_node(self, node_id: str, resident: Mapping[str, frozenset[str]]) -> None:
        node = self.nodes[node_id]
        if node.resident == resident:
            return
        old_keys = frozenset[str]().union(*node.resident.values())
        new_keys = frozenset[str]().union(*resident.values())
        for key in old_keys - new_keys:
            nodes = self._nodes_with[key]
            del nodes[node_id]
            if not nodes:
                del self._nodes_with[key]
        for key in new_keys - old_keys:
            self._nodes_with.setdefault(key, {})[node_id] = None
        node.resident = resident

    def sent(
        self, replica_id: str, request: QueuedRequest, free_at_s: float, generation_s: float
    ) -> None:
        """Record a sent request; the replica finishes all its requests at ``free_at_s``."""
        replica = self.replicas[replica_id]
        self._unindex(replica)
        replica.running[request.id] = request
        replica.free_at_s = free_at_s
        if request.group not in replica.models:
            replica.batch_s = 0.0
        replica.batch_s += generation_s
        self._reserve(replica, request)
        self._index(replica)

    def ended(self, replica_id: str, request_id: str, free_at_s: float) -> None:
        replica = self.replicas.get(replica_id)
        if replica is not None and request_id in replica.running:
            self._unindex(replica)
            del replica.running[request_id]
            replica.free_at_s = free_at_s
            self._index(replica)

    def _reserve(self, replica: Replica, request: QueuedRequest) -> None:
        if request.group not in replica.models:
            while len(replica.models) >= replica.checkpoint_capacity:
                evicted = next(iter(replica.models))
                del replica.models[evicted]
                replica.gpu.discard(evicted)
                self._remove_holder(evicted, replica.id)
        replica.models.pop(request.group, None)
        replica.models[request.group] = None
        for blob in request.blobs:
            if blob.key not in replica.gpu:
                replica.gpu.add(blob.key)
                self._holders.setdefault(blob.key, {})[replica.id] = None

    def _index(self, replica: Replica) -> None:
        replica.version += 1
        kind = replica.kind = tuple(sorted(replica.models))
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = _Bucket(kind)
            for key in kind:
                self._buckets_of.setdefault(key, {})[kind] = bucket
        if not replica.running:
            bucket.idle[replica.id] = None
        else:
            entries = bucket.busy if replica.has_capacity else bucket.full
            insort(entries, (replica.free_at_s, replica.id))
            self._busy_until_s += replica.free_at_s
        if replica.has_capacity:
            self.open_count += 1
        self.changed.append(replica.id)

    def _unindex(self, replica: Replica) -> None:
        bucket = self._buckets[replica.kind]
        if not replica.running:
            del bucket.idle[replica.id]
        else:
            entries = bucket.busy if replica.has_capacity else bucket.full
            del entries[bisect_left(entries, (replica.free_at_s, replica.id))]
            self._busy_until_s -= replica.free_at_s
        if replica.has_capacity:
            self.open_count -= 1
        if not bucket:
            del self._buckets[replica.kind]
            for key in replica.kind:
                del self._buckets_of[key][replica.kind]

    def _remove_holder(self, key: str, replica_id: str) -> None:
        holders = self._holders[key]
        del holders[replica_id]
        if not holders:
            del self._holders[key]

    def holders(self, key: str) -> Collection[str]:
        """Return the replicas that hold a key on their device, or will."""
        return self._holders.get(key, _EMPTY)

    def has_open(self, model: str) -> bool:
        return any(b.idle or b.busy for b in self._buckets_of.get(model, {}).values())

    def total_busy_s(self, now_s: float) -> float:
        """Estimate the seconds of work left, at least 0; an overdue replica counts as negative."""
        busy = sum(len(b.busy) + len(b.full) for b in self._buckets.values())
        return max(0.0, self._busy_until_s - now_s * busy)

    def cheapest(
        self,
        request: QueuedRequest,
        speeds: Speeds,
        now_s: float,
        displacement_s: DisplacementCost,
        *,
        open_only: bool = False,
        warm_only: bool = False,
        idle_only: bool = False,
    ) -> tuple[float, Replica] | None:
        """Return the lowest cost in seconds and its replica. Exact: a test compares with a scan.

        Ties go to the home replica (rendezvous hashing), then to the longest idle. A replica to
        avoid is the last choice. ``warm_only``: with the checkpoint.
        """
        best_s, best = inf, None
        group = request.group

        def consider(replica_id: str) -> None:
            nonlocal best_s, best
            replica = self.replicas[replica_id]
            if (open_only and not replica.has_capacity) or (idle_only and replica.running):
                return
            cost = cost_s(request, replica, speeds, now_s)
            if cost < best_s:
                if group not in replica.models:
                    if warm_only:
                        return
                    cost += displacement_s(replica, now_s)
                if replica_id in request.avoid:
                    cost += _AVOIDED_S
                if cost < best_s:
                    best_s, best = cost, replica

        def search(bucket: _Bucket, bound_s: float) -> None:
            for replica_id in bucket.idle:
                if best_s <= bound_s:
                    return
                consider(replica_id)
            if idle_only:
                return
            for entries in (bucket.busy,) if open_only else (bucket.busy, bucket.full):
                for free_at_s, replica_id in entries:
                    if best_s <= max(bound_s, least_s + free_at_s - now_s):
                        break
                    consider(replica_id)

        if self.replicas:
            consider(self._home_replica(group))
        # For all but the holders of rare keys, the fetch time is a lower bound.
        least_s = speeds.swap_s + request.work / speeds.work_per_s
        lacking_s = loading_s = 0.0
        is_group_rare = len(self.holders(group)) <= _MAX_RARE_HOLDERS
        for blob in request.blobs:
            is_rare = len(self.holders(blob.key)) <= _MAX_RARE_HOLDERS
            if not is_rare and blob.key != group:
                continue
            nodes = self._nodes_with.get(blob.key, _EMPTY)
            is_rare_on_nodes = (
                sum(len(self._replicas_of_node[node]) for node in nodes) <= _MAX_RARE_HOLDERS
            )
            if is_rare:
                for replica_id in self.holders(blob.key):
                    consider(replica_id)
            if is_rare_on_nodes:
                for node in nodes:
                    for replica_id in self._replicas_of_node[node]:
                        consider(replica_id)
            fetch_s = blob.size_bytes / speeds.bytes_per_s["store" if is_rare_on_nodes else "host"]
            if blob.key == group:
                loading_s = fetch_s
            else:
                lacking_s = max(lacking_s, fetch_s)
        if not is_group_rare:
            for bucket in self._buckets_of[group].values():
                search(bucket, least_s + lacking_s)
        bound_s = least_s + max(lacking_s, loading_s)
        if best_s > bound_s and not warm_only:
            for bucket in self._buckets.values():
                if open_only and not bucket.idle and not bucket.busy:
                    continue
                if group not in bucket.models:
                    search(bucket, bound_s + displacement_s(self._any_replica(bucket), now_s))
        return None if best is None else (best_s, best)

    def _any_replica(self, bucket: _Bucket) -> Replica:
        for replica_id in bucket.idle:
            return self.replicas[replica_id]
        return self.replicas[(bucket.busy or bucket.full)[0][1]]

    def _home_replica(self, key: str) -> str:
        chosen = self._home_replicas.get(key)
        if chosen is None:
            chosen = self._home_replicas[key] = home(key, self.replicas)
        return chosen
