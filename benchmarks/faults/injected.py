"""The faults. Each function harms the stage, heals it if it does not heal by itself, and says what
it saw; answers beside the constant client's are added to ``asked``."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from benchmarks.faults.client import Answer, ask, body
from benchmarks.faults.stage import Stage

_FAULT_S = 6.0
_STAMPEDE = 16


@dataclass(slots=True)
class Harm:
    """What one injection works on and leaves."""

    stage: Stage
    asked: list[Answer] = field(default_factory=list)
    #: Pictures drawn for requests that are not in ``asked``.
    drawn: int = 0
    seen: str = ""


Inject = Callable[[Harm], None]


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    expected: str
    inject: Inject


def _replica_killed(harm: Harm) -> None:
    os.kill(harm.stage.busiest(), signal.SIGKILL)


def _replica_hung(harm: Harm) -> None:
    os.kill(harm.stage.busiest(), signal.SIGSTOP)


def _killed(part: str) -> Inject:
    def inject(harm: Harm) -> None:
        pids = harm.stage.pids(part)
        if not pids:
            raise SystemExit(f"there is no process {part!r} to kill")
        os.kill(pids[0], signal.SIGKILL)

    return inject


def _store(fault: str) -> Inject:
    """While it lasts somebody asks for what lies nowhere but there."""

    def inject(harm: Harm) -> None:
        stage = harm.stage
        cold = stage.new_lora("cold-" + fault.replace(" ", "-"))
        with _asking(harm, cold):
            stage.proxy.fault = fault
            time.sleep(_FAULT_S)
            stage.proxy.fault = None
        harm.seen = _of_cold(harm)

    return inject


def _store_drips(harm: Harm) -> None:
    stage = harm.stage
    cold = stage.new_lora("cold-drip")
    with _asking(harm, cold):
        stage.proxy.bytes_per_s = 5e3
        time.sleep(_FAULT_S)
        stage.proxy.bytes_per_s = None
    harm.seen = _of_cold(harm)


def _of_cold(harm: Harm) -> str:
    (cold,) = harm.asked
    took_s = cold.answered_s - cold.asked_s
    return f"the cold asset after {took_s:.1f} s, {cold.attempts} attempts"


@contextmanager
def _asking(harm: Harm, lora: str) -> Iterator[None]:
    """One request for it, sent half a second from now."""

    def late() -> None:
        time.sleep(0.5)
        harm.asked.append(ask(harm.stage, 0, lora))

    thread = threading.Thread(target=late)
    thread.start()
    try:
        yield
    finally:
        harm.stage.proxy.fault = None
        harm.stage.proxy.bytes_per_s = None
        thread.join()


def _stampede(harm: Harm) -> None:
    stage = harm.stage
    cold = stage.new_lora("stampede")
    before = sum(count for path, count in stage.proxy.gets.items() if "/blobs/" in path)
    with ThreadPoolExecutor(_STAMPEDE) as crowd:
        harm.asked += crowd.map(lambda _: ask(stage, 0, cold), range(_STAMPEDE))
    after = sum(count for path, count in stage.proxy.gets.items() if "/blobs/" in path)
    pictures = len({answer.picture for answer in harm.asked})
    harm.seen = f"{_STAMPEDE} at once: {after - before} reads of the store, {pictures} picture"


def _database_locked(harm: Harm) -> None:
    path = harm.stage.settings.data_dir / "platform.db"
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(_FAULT_S)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _overload(harm: Harm) -> None:
    """Ten times as many as it can draw, whatever it answers; nobody comes again."""
    stage = harm.stage
    started = time.monotonic()
    for _ in range(4):
        harm.asked.append(ask(stage, 0))
    rate = 4 / (time.monotonic() - started)
    headers = {"Authorization": f"Bearer {stage.key}"}
    statuses: Counter[str] = Counter()
    honest = 0

    def one(index: int) -> None:
        nonlocal honest
        time.sleep(index / (10 * rate))
        response = httpx.post(
            f"{stage.url}/generate/sdxl", json=body(0), headers=headers, timeout=300
        )
        statuses[str(response.status_code)] += 1
        honest += response.status_code in (429, 503) and "retry-after" in response.headers

    count = max(100, int(40 * rate))
    with ThreadPoolExecutor(count) as crowd:
        list(crowd.map(one, range(count)))
    harm.drawn = statuses["200"]
    refused = count - harm.drawn
    harm.seen = f"{harm.drawn} of {count} drawn, {honest} of {refused} refused with Retry-After"
    if honest < refused:
        harm.seen += f": {dict(statuses)}"


def _restarted(harm: Harm) -> None:
    harm.stage.kill_everything()
    harm.stage.start()


FAULTS = (
    Fault("replica-killed", "drawn again elsewhere", _replica_killed),
    Fault("replica-hung", "noticed within seconds, drawn again elsewhere", _replica_hung),
    Fault("dispatcher-killed", "started anew, requests submitted again",
          _killed("ray::DispatcherActor")),
    Fault("gateway-killed", "another takes its clients and its jobs", _killed("spawn_main")),
    Fault("controller-killed", "nobody notices", _killed("ray::ServeController")),
    Fault("store-503", "what is near is drawn; the cold asset once it is back", _store("503")),
    Fault("store-cut", "resumed or read again, never half a file", _store("cut")),
    Fault("store-flipped", "noticed by its digest, read again", _store("flipped")),
    Fault("store-black-hole", "given up in time, read again", _store("black hole")),
    Fault("store-drips", "given up in time, read again", _store_drips),
    Fault("stampede", "one read of the store", _stampede),
    Fault("database-locked", "waits for it, or is told to come again", _database_locked),
    Fault("overload", "refused early with Retry-After, the accepted drawn", _overload),
    Fault("total-restart", "up again with cold caches, jobs go on", _restarted),
)  # fmt: skip
