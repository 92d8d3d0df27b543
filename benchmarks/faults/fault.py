"""A fault and the outcome of its injection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults.client import Answer
from benchmarks.faults.harness import ONE_MACHINE, Deployment, Harness


@dataclass(slots=True)
class Harm:
    """The context and the findings of one injection."""

    harness: Harness
    #: Answers to the fault's own requests, beside the constant load.
    asked: list[Answer] = field(default_factory=list)
    #: Requests that were neither answered nor refused correctly, and other failures.
    lost: list[str] = field(default_factory=list)
    #: What was observed, for the table.
    seen: str = ""


Inject = Callable[[Harm], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """``inject`` causes the fault, ends it if it does not end by itself, and records findings."""

    name: str
    expected: str
    inject: Inject
    place: Deployment = ONE_MACHINE
