"""The trade-off between throughput and fairness."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulingPolicy:
    """The trade-off between throughput and fairness.

    A request whose assets are loaded may overtake a request that must load, until the latter is
    overdue: a request is overdue when it has waited ``overdue_min_s`` and ``overdue_loads`` times
    its load time. A tenant gets at most ``lead_s`` of work ahead of its fair share.
    """

    overdue_min_s: float = 2.0
    overdue_loads: float = 4.0
    lead_s: float = 30.0
    #: In load times: how long a replica keeps a checkpoint while overdue requests need another.
    min_batch_loads: float = 4.0
    #: Of a deprioritized request.
    displacement_penalty: float = 4.0
    #: Of this many first requests of a checkpoint, those with resident LoRAs go first.
    overtaking: int = 8
    #: In load times: fade time and horizon of checkpoint popularity.
    fade_loads: float = 24.0
    horizon_loads: float = 12.0
