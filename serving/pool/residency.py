"""Where assets are cached in a pool, and the directives to its replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf

from assets.content import Blob
from assets.errors import AssetError
from orchestrator.errors import TierError
from orchestrator.file_pins import OPERATOR, POPULAR
from serving.errors import ServingError
from serving.generation.contract import (
    REPORT_TIMEOUT_S,
    WARM_TIMEOUT_S,
    ClusterDirectives,
    ReplicaReport,
    Residency,
)
from serving.pool.replica_state import ReplicaState

#: Assets pinned on the nodes that have them.
MOST_POPULAR = 8

#: With their time, nodes and pins.
_CachedDirectives = tuple[float, frozenset[str], frozenset[str] | None, ClusterDirectives]


class ResidencyIndex:
    """Which replicas and nodes hold which assets. Changes no replica state."""

    def __init__(
        self,
        states: Mapping[str, ReplicaState],
        popular: Callable[[int, float], Sequence[str]],
        take_report: Callable[[ReplicaState, ReplicaReport], None],
        clock: Callable[[], float],
    ) -> None:
        """``popular(count, now_s)``: the most requested keys. ``take_report`` gets each report."""
        self._states = states
        self._popular = popular
        self._take_report = take_report
        self._clock = clock
        #: The operator's; until they are known, no pin is released.
        self._pinned: frozenset[str] | None = None
        self._cached: _CachedDirectives = (-inf, frozenset(), None, ClusterDirectives())

    def resident(self) -> frozenset[str]:
        reports = [state.report for state in self._states.values() if state.report is not None]
        return frozenset().union(*(keys for r in reports for keys in r.resident.values()))

    def residency(self, keys: Collection[str]) -> dict[str, Residency]:
        """Return each key's replicas and nodes; keys held nowhere are missing."""
        residencies = {}
        for key in keys:
            up = [s for s in self._states.values() if s.report is not None]
            replicas = tuple(s.client.id for s in up if s.report and key in s.report.ready)
            nodes = {
                s.report.node: tuple(
                    tier for tier in ("host", "disk") if key in s.report.resident.get(tier, ())
                )
                for s in up if s.report is not None
            }  # fmt: skip
            nodes = {node: tiers for node, tiers in nodes.items() if tiers}
            if replicas or nodes:
                residencies[key] = Residency(replicas, nodes)
        return residencies

    def hold(self, keys: Collection[str]) -> None:
        """Replace the operator's pins; replicas apply them within seconds."""
        self._pinned = frozenset(keys)

    def directives(self) -> ClusterDirectives:
        """Return the directives; cached for a second unless nodes or pins change."""
        now = self._clock()
        nodes = frozenset(s.report.node for s in self._states.values() if s.report is not None)
        made_s, of_nodes, pinned, directives = self._cached
        if now < made_s + 1.0 and nodes == of_nodes and pinned == self._pinned:
            return directives
        directives = self._make_directives(now)
        self._cached = now, nodes, self._pinned, directives
        return directives

    def _make_directives(self, now_s: float) -> ClusterDirectives:
        reports = [state.report for state in self._states.values() if state.report is not None]
        nodes = {report.node: report.url for report in reports if report.url}
        if self._pinned is None:
            return ClusterDirectives(nodes)
        popular = self._popular(MOST_POPULAR, now_s)
        pins = dict.fromkeys(popular, POPULAR) | dict.fromkeys(self._pinned, OPERATOR)
        return ClusterDirectives(nodes, pins)

    async def forget(self, keys: Collection[str]) -> None:
        """Delete keys from all replicas that are up.

        Those that are down or lease a key keep it: check ``resident`` and repeat.
        """

        async def ask(state: ReplicaState) -> None:
            with suppress(ServingError, TimeoutError):
                async with asyncio.timeout(REPORT_TIMEOUT_S):
                    self._take_report(state, await state.client.forget(keys))

        up = [state for state in self._states.values() if state.report is not None]
        await asyncio.gather(*map(ask, up))

    async def warm(self, blobs: Sequence[Blob]) -> dict[str, str]:
        """Load blobs on every node; return the tier found on, by replica.

        Replicas that are down, fail or take too long are missing.
        """
        tiers: dict[str, str] = {}

        async def ask(state: ReplicaState) -> None:
            with suppress(ServingError, TierError, AssetError, TimeoutError):
                async with asyncio.timeout(WARM_TIMEOUT_S):
                    tiers[state.client.id] = await state.client.warm(blobs)
            state.news.set()  # it holds more than reported

        await asyncio.gather(*(ask(s) for s in self._states.values() if s.report is not None))
        return tiers
