"""What a fault is: how it is injected, and what it leaves to be looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults.client import Answer
from benchmarks.faults.harness import ONE_MACHINE, Harness, Place


@dataclass(slots=True)
class Harm:
    """What one injection works on and leaves."""

    harness: Harness
    #: Answers to requests beside the constant client's.
    asked: list[Answer] = field(default_factory=list)
    #: What was neither drawn nor refused as it should be, and whatever else should not be.
    lost: list[str] = field(default_factory=list)
    seen: str = ""


Inject = Callable[[Harm], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """``inject`` harms the stage, heals it if it does not heal by itself, and says what it saw."""

    name: str
    expected: str
    inject: Inject
    place: Place = ONE_MACHINE
