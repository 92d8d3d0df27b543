"""How far each start of a replica is, and how long its phases took."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from serving.generation.contract import PHASES, Phase
from serving.generation.status import StartProgress


@dataclass(slots=True)
class StartupTimeline:
    """When each phase of a start began, in epoch seconds."""

    began_s: dict[Phase, float] = field(default_factory=dict)

    @property
    def phase(self) -> Phase:
        return max(self.began_s, key=PHASES.index, default="node")

    def durations_s(self, now_s: float) -> dict[Phase, float]:
        marks = [(phase, self.began_s[phase]) for phase in PHASES if phase in self.began_s]
        if not marks:  # older than this autoscaler
            return {}
        ends = [at for _, at in marks[1:]] + [now_s]
        return {
            phase: max(0.0, end - at)
            for (phase, at), end in zip(marks, ends, strict=True)
            if phase != "ready"
        }


class StartupTimelines:
    """By replica, until it is stopped."""

    def __init__(self) -> None:
        self._timelines: dict[str, StartupTimeline] = {}

    def names(self) -> Collection[str]:
        return self._timelines.keys()

    def of(self, replica_id: str) -> StartupTimeline:
        """An empty one if it is not known."""
        return self._timelines.get(replica_id) or StartupTimeline()

    def adopt(self, replica_id: str) -> None:
        """Record a replica whose start was not seen."""
        self._timelines[replica_id] = StartupTimeline()

    def ordered(self, replica_id: str, at_s: float) -> None:
        self._timelines[replica_id] = StartupTimeline({"node": at_s})

    def phase_began(self, replica_id: str, phase: Phase, at_s: float) -> None:
        """Record the start of a phase. A ready replica restarts; an unknown one is ignored."""
        timeline = self._timelines.get(replica_id)
        if timeline is None:
            return
        if "ready" in timeline.began_s:
            timeline.began_s.clear()
        timeline.began_s[phase] = at_s

    def is_starting(self, replica_id: str) -> bool:
        timeline = self._timelines.get(replica_id)
        return timeline is not None and "ready" not in timeline.began_s

    def ready(self, replica_id: str, at_s: float) -> dict[Phase, float]:
        """Record the end of a start; return its durations, none if the start was not seen."""
        timeline = self._timelines[replica_id]
        timeline.began_s["ready"] = at_s
        return timeline.durations_s(at_s)

    def forget(self, replica_id: str) -> None:
        self._timelines.pop(replica_id, None)

    def furthest(self, starting: Collection[str], now_s: float) -> StartProgress | None:
        """The progress of the start that is furthest."""
        timelines = [self._timelines[name] for name in starting if name in self._timelines]
        if not timelines:
            return None
        furthest = max(
            timelines, key=lambda t: (PHASES.index(t.phase), -min(t.began_s.values(), default=0))
        )
        return StartProgress(furthest.phase, furthest.durations_s(now_s))
