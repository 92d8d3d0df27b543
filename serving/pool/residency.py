"""What the replicas of a pool hold, as they report it, and what they are told to hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf

from assets.content import Blob
from assets.errors import AssetError
from orchestrator.errors import TierError
from orchestrator.file_tier import OPERATOR, POPULAR
from serving.errors import ServingError
from serving.generation.contract import ClusterDirectives, ReplicaReport, Residency
from serving.pool.replica_state import ReplicaState

#: A replica must answer within this.
PATIENCE_S = 10.0
#: For as long somebody is told where it was found; the bytes come on.
WARM_S = 60.0
#: So many of the most wanted assets are held wherever they are.
MOST_POPULAR = 8

_Guided = tuple[float, frozenset[str], frozenset[str] | None, ClusterDirectives]


class ResidencyIndex:
    """Reads the slots, which are the dispatcher's, and changes none."""

    def __init__(
        self,
        slots: Mapping[str, ReplicaState],
        popular: Callable[[int, float], Sequence[str]],
        heard: Callable[[ReplicaState, ReplicaReport], None],
        clock: Callable[[], float],
    ) -> None:
        """``popular``: the content keys most asked for lately, so many, now. ``heard``: whom to
        tell what a replica has reported."""
        self._slots = slots
        self._popular = popular
        self._heard = heard
        self._clock = clock
        #: By the operator; None until somebody has said so, and then all that is held stays held.
        self._pinned: frozenset[str] | None = None
        #: When guidance was made, for which nodes and pins, and what it was.
        self._guided: _Guided = (-inf, frozenset(), None, ClusterDirectives())

    def resident(self) -> frozenset[str]:
        """The content keys of what lies in any tier of any replica that is up."""
        reports = [slot.report for slot in self._slots.values() if slot.report is not None]
        return frozenset().union(*(keys for r in reports for keys in r.resident.values()))

    def residency(self, keys: Collection[str]) -> dict[str, Residency]:
        """Where each of these content keys lies; what lies nowhere is left out."""
        found = {}
        for key in keys:
            up = [s for s in self._slots.values() if s.report is not None]
            replicas = tuple(s.client.id for s in up if s.report and key in s.report.ready)
            nodes = {
                s.report.node: tuple(
                    tier for tier in ("host", "disk") if key in s.report.resident.get(tier, ())
                )
                for s in up if s.report is not None
            }  # fmt: skip
            nodes = {node: tiers for node, tiers in nodes.items() if tiers}
            if replicas or nodes:
                found[key] = Residency(replicas, nodes)
        return found

    def hold(self, keys: Collection[str]) -> None:
        """What the operator has pinned: exactly these. The replicas hear of it within seconds."""
        self._pinned = frozenset(keys)

    def directives(self) -> ClusterDirectives:
        """What every replica should know; made anew once a second."""
        now = self._clock()
        nodes = frozenset(s.report.node for s in self._slots.values() if s.report is not None)
        made_s, of_nodes, pinned, directives = self._guided
        if now < made_s + 1.0 and nodes == of_nodes and pinned == self._pinned:
            return directives
        directives = self._make_guidance(now)
        self._guided = now, nodes, self._pinned, directives
        return directives

    def _make_guidance(self, now_s: float) -> ClusterDirectives:
        reports = [slot.report for slot in self._slots.values() if slot.report is not None]
        nodes = {report.node: report.url for report in reports if report.url}
        if self._pinned is None:
            return ClusterDirectives(nodes)
        popular = self._popular(MOST_POPULAR, now_s)
        pins = dict.fromkeys(popular, POPULAR) | dict.fromkeys(self._pinned, OPERATOR)
        return ClusterDirectives(nodes, pins)

    async def forget(self, keys: Collection[str]) -> None:
        """Have every replica that holds one of these drop it. One that is down, or still leases
        it, is asked again when whoever calls this looks at ``resident`` again."""

        async def ask(slot: ReplicaState) -> None:
            with suppress(ServingError, TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    self._heard(slot, await slot.client.forget(keys))

        up = [slot for slot in self._slots.values() if slot.report is not None]
        await asyncio.gather(*map(ask, up))

    async def warm(self, blobs: Sequence[Blob]) -> dict[str, str]:
        """Bring blobs up on every replica's node; the tier on which each found them. A replica
        that is down, or has no room for them, is left out."""
        found: dict[str, str] = {}

        async def ask(slot: ReplicaState) -> None:
            with suppress(ServingError, TierError, AssetError, TimeoutError):
                async with asyncio.timeout(WARM_S):
                    found[slot.client.id] = await slot.client.warm(blobs)
            slot.news.set()  # it holds more now, and is to say so

        await asyncio.gather(*(ask(s) for s in self._slots.values() if s.report is not None))
        return found
