"""Faults of the object store while a request needs a cold asset."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.faults.client import ask
from benchmarks.faults.fault import Harm, Inject

_FAULT_S = 6.0
SLOW_BYTES_S, DRIP_BYTES_S = 2e5, 5e3


def store(fault: str) -> Inject:
    """Return the injection of one of :data:`tests.support.store_proxy.FAULTS`."""

    def inject(harm: Harm) -> None:
        proxy = harm.harness.proxy
        with _cold_asset(harm, fault.replace(" ", "-")):
            proxy.fault = fault
            time.sleep(_FAULT_S)

    return inject


def store_sends(bytes_per_s: float) -> Inject:
    def inject(harm: Harm) -> None:
        with _cold_asset(harm, f"{bytes_per_s:.0f}"):
            harm.harness.proxy.bytes_per_s = bytes_per_s
            time.sleep(_FAULT_S)

    return inject


@contextmanager
def _cold_asset(harm: Harm, name: str) -> Iterator[None]:
    """Request a new asset half a second into the block; remove the fault at its end."""
    cold = harm.harness.new_lora(f"cold-{name}")

    def late() -> None:
        time.sleep(0.5)
        harm.asked.append(ask(harm.harness.endpoint, 0, {"loras": {cold: 1.0}}))

    before = harm.harness.proxy.harmed
    thread = threading.Thread(target=late)
    thread.start()
    try:
        yield
    finally:
        harm.harness.proxy.fault = None
        harm.harness.proxy.bytes_per_s = None
        thread.join()
    if harm.harness.proxy.harmed == before:
        harm.lost.append("the fault affected no request to the store")
    (answer,) = harm.asked
    took_s = answer.answered_s - answer.asked_s
    attempts = "1 attempt" if answer.attempts == 1 else f"{answer.attempts} attempts"
    harm.seen = f"the cold asset after {took_s:.1f} s, {attempts}"
