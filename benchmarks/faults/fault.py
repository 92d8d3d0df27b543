"""A fault and the outcome of its injection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults.client import Answer
from benchmarks.faults.harness import ONE_MACHINE, Deployment, Harness


@dataclass(slots=True)
class Harm:
    """Context and findings of one injection."""

    harness: Harness
    #: Answers to the fault's own requests.
    asked: list[Answer] = field(default_factory=list)
    #: Requests neither answered nor refused correctly, and other failures.
    lost: list[str] = field(default_factory=list)
    seen: str = ""


Inject = Callable[[Harm], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """``inject`` causes the fault, ends it if needed, and records findings."""

    name: str
    expected: str
    inject: Inject
    place: Deployment = ONE_MACHINE
