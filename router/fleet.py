"""The replicas, indexed: where a request costs least, found without looking at all of them.

Exact: what :meth:`Fleet.cheapest` answers is the minimum over every replica, as a test
compares with a scan. Mutable; whoever holds it says what has changed. No clock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf
from typing import Protocol

from cachetools import LRUCache

from router.cost import Speeds, cost_s
from router.replica import Node, Replica
from router.request import QueuedRequest

#: A key that no more replicas hold than this is looked up by its holders.
_FEW = 24
#: More than any wait: where a request has failed it goes only if nothing else is left.
_AVOIDED_S = 1e9
_NOBODY: dict[str, None] = {}


class DisplacementCost(Protocol):
    """What it costs others that a replica gives up a checkpoint, in seconds."""

    def __call__(self, replica: Replica, now_s: float) -> float: ...


@dataclass(slots=True)
class _Alike:
    """Replicas that hold the same checkpoints: for most requests one is as good as another."""

    models: tuple[str, ...]
    idle: dict[str, None] = field(default_factory=dict)  # the longest idle first
    busy: list[tuple[float, str]] = field(default_factory=list)  # with a slot; by when free
    full: list[tuple[float, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.idle or self.busy or self.full)


class Fleet:
    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.nodes: dict[str, Node] = {}
        #: How many have a free slot.
        self.open_count = 0
        #: Every change of a replica that may make it the better choice: its id, in order.
        self.changed: list[str] = []
        self._alike: dict[tuple[str, ...], _Alike] = {}
        self._with: dict[str, dict[tuple[str, ...], _Alike]] = {}  # by each checkpoint they hold
        self._holders: dict[str, dict[str, None]] = {}
        self._of_node: dict[str, dict[str, None]] = {}
        self._near: dict[str, dict[str, None]] = {}  # key → nodes that hold it in a file tier
        self._home_replicas: LRUCache[str, str] = LRUCache(10_000)  # by rendezvous
        self._busy_until_s = 0.0  # the sum over all that draw

    def __len__(self) -> int:
        return len(self.replicas)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas.values())

    def __contains__(self, replica_id: str) -> bool:
        return replica_id in self.replicas

    # What is there

    def add(
        self, replica_id: str, node_id: str, *, checkpoint_capacity: int, max_in_flight: int
    ) -> Replica:
        """A replica that draws nothing and holds nothing yet."""
        node = self.nodes.setdefault(node_id, Node(node_id))
        replica = Replica(
            replica_id, node, checkpoint_capacity=checkpoint_capacity, max_in_flight=max_in_flight
        )
        self.replicas[replica_id] = replica
        self._home_replicas.clear()
        self._of_node.setdefault(node_id, {})[replica_id] = None
        self._enter(replica)
        return replica

    def remove(self, replica_id: str) -> None:
        """It is down; what it was sent is somebody else's to send again."""
        replica = self.replicas.pop(replica_id)
        self._home_replicas.clear()
        self._leave(replica)
        for key in replica.gpu:
            self._drop(key, replica_id)
        node_id = replica.node.id
        del self._of_node[node_id][replica_id]
        if not self._of_node[node_id]:
            self.on_node(node_id, {})
            del self._of_node[node_id], self.nodes[node_id]

    def on_device(
        self,
        replica_id: str,
        keys: Collection[str],
        models: Collection[str],
    ) -> None:
        """What the replica says it holds on its device, all of it; ``models`` are those of the
        keys by which requests are grouped. What it was sent and has not drawn yet will be there
        too."""
        replica = self.replicas[replica_id]
        self._leave(replica)
        order = [key for key in replica.models if key in models]
        replica.models = dict.fromkeys(order + [key for key in models if key not in order])
        for key in replica.gpu.difference(keys):
            self._drop(key, replica_id)
        for key in keys:
            if key not in replica.gpu:
                self._holders.setdefault(key, {})[replica_id] = None
        replica.gpu = set(keys)
        for request in replica.running.values():
            self._expect(replica, request)
        self._enter(replica)

    def on_node(self, node_id: str, resident: Mapping[str, frozenset[str]]) -> None:
        """What lies in the file tiers of a node, all of it."""
        node = self.nodes[node_id]
        if node.resident == resident:
            return
        had = frozenset[str]().union(*node.resident.values())
        has = frozenset[str]().union(*resident.values())
        for key in had - has:
            nodes = self._near[key]
            del nodes[node_id]
            if not nodes:
                del self._near[key]
        for key in has - had:
            self._near.setdefault(key, {})[node_id] = None
        node.resident = resident

    def sent(
        self, replica_id: str, request: QueuedRequest, free_at_s: float, generation_s: float
    ) -> None:
        """The replica has one request more, and will therefore hold what that wants."""
        replica = self.replicas[replica_id]
        self._leave(replica)
        replica.running[request.id] = request
        replica.free_at_s = free_at_s
        if request.group not in replica.models:
            replica.batch_s = 0.0
        replica.batch_s += generation_s
        self._expect(replica, request)
        self._enter(replica)

    def ended(self, replica_id: str, request_id: str, free_at_s: float) -> None:
        """The replica has one request fewer; nothing if it is another one by now."""
        replica = self.replicas.get(replica_id)
        if replica is not None and request_id in replica.running:
            self._leave(replica)
            del replica.running[request_id]
            replica.free_at_s = free_at_s
            self._enter(replica)

    def _expect(self, replica: Replica, request: QueuedRequest) -> None:
        """It will hold what the request wants, in place of the checkpoint that was longest
        there if there is no room for another."""
        if request.group not in replica.models:
            while len(replica.models) >= replica.checkpoint_capacity:
                gone = next(iter(replica.models))
                del replica.models[gone]
                replica.gpu.discard(gone)
                self._drop(gone, replica.id)
        replica.models.pop(request.group, None)
        replica.models[request.group] = None
        for blob in request.blobs:
            if blob.key not in replica.gpu:
                replica.gpu.add(blob.key)
                self._holders.setdefault(blob.key, {})[replica.id] = None

    def _enter(self, replica: Replica) -> None:
        replica.version += 1
        kind = replica.kind = tuple(sorted(replica.models))
        alike = self._alike.get(kind)
        if alike is None:
            alike = self._alike[kind] = _Alike(kind)
            for key in kind:
                self._with.setdefault(key, {})[kind] = alike
        if not replica.running:
            alike.idle[replica.id] = None
        else:
            among = alike.busy if replica.has_capacity else alike.full
            insort(among, (replica.free_at_s, replica.id))
            self._busy_until_s += replica.free_at_s
        if replica.has_capacity:
            self.open_count += 1
        self.changed.append(replica.id)

    def _leave(self, replica: Replica) -> None:
        alike = self._alike[replica.kind]
        if not replica.running:
            del alike.idle[replica.id]
        else:
            among = alike.busy if replica.has_capacity else alike.full
            del among[bisect_left(among, (replica.free_at_s, replica.id))]
            self._busy_until_s -= replica.free_at_s
        if replica.has_capacity:
            self.open_count -= 1
        if not alike:
            del self._alike[replica.kind]
            for key in replica.kind:
                del self._with[key][replica.kind]

    def _drop(self, key: str, replica_id: str) -> None:
        holders = self._holders[key]
        del holders[replica_id]
        if not holders:
            del self._holders[key]

    # What is asked

    def holders(self, key: str) -> Collection[str]:
        """The replicas that hold a key on their device, or will."""
        return self._holders.get(key, _NOBODY)

    def has_open(self, model: str) -> bool:
        """Whether a replica with a free slot holds this checkpoint."""
        return any(a.idle or a.busy for a in self._with.get(model, {}).values())

    def total_busy_s(self, now_s: float) -> float:
        """Roughly: one that is overdue counts for nothing, or less."""
        busy = sum(len(a.busy) + len(a.full) for a in self._alike.values())
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
        """The replica on which the request costs least, and how much. Among equals its
        checkpoint's home by rendezvous hashing, then the one that was idle longest. One that the
        request avoids only if there is no other. None when there is none.

        ``open_only``: of those with a free slot. ``warm_only``: that hold its checkpoint.
        ``idle_only``: that draw nothing.
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

        def search(alike: _Alike, bound_s: float) -> None:
            for replica_id in alike.idle:
                if best_s <= bound_s:
                    return
                consider(replica_id)
            if idle_only:
                return
            for among in (alike.busy,) if open_only else (alike.busy, alike.full):
                for free_at_s, replica_id in among:
                    if best_s <= max(bound_s, least_s + free_at_s - now_s):
                        break
                    consider(replica_id)

        if self.replicas:
            consider(self._home_replica(group))
        # Those that hold a rare key are looked at by name. All others lack it: so much they
        # cost at least.
        least_s = speeds.swap_s + request.work / speeds.work_per_s
        lacking_s = loading_s = 0.0
        few_homes = len(self.holders(group)) <= _FEW
        for blob in request.blobs:
            few = len(self.holders(blob.key)) <= _FEW
            if not few and blob.key != group:
                continue
            near = self._near.get(blob.key, _NOBODY)
            nearby = sum(len(self._of_node[node]) for node in near) <= _FEW
            if few:
                for replica_id in self.holders(blob.key):
                    consider(replica_id)
            if nearby:
                for node in near:
                    for replica_id in self._of_node[node]:
                        consider(replica_id)
            fetch_s = blob.size_bytes / speeds.bytes_per_s["store" if nearby else "host"]
            if blob.key == group:
                loading_s = fetch_s
            else:
                lacking_s = max(lacking_s, fetch_s)
        if not few_homes:
            for alike in self._with[group].values():
                search(alike, least_s + lacking_s)
        bound_s = least_s + max(lacking_s, loading_s)
        if best_s > bound_s and not warm_only:
            for alike in self._alike.values():
                if open_only and not alike.idle and not alike.busy:
                    continue
                if group not in alike.models:
                    search(alike, bound_s + displacement_s(self._one_of(alike), now_s))
        return None if best is None else (best_s, best)

    def _one_of(self, alike: _Alike) -> Replica:
        for replica_id in alike.idle:
            return self.replicas[replica_id]
        return self.replicas[(alike.busy or alike.full)[0][1]]

    def _home_replica(self, key: str) -> str:
        home = self._home_replicas.get(key)
        if home is None:
            home = min(self.replicas, key=lambda name: rendezvous(key, name))
            self._home_replicas[key] = home
        return home


def rendezvous(key: str, name: str) -> bytes:
    """The least over all names is the key's home, and stays so when other names come and go."""
    return blake2b(f"{key}/{name}".encode(), digest_size=8).digest()
