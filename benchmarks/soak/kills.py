"""Random kills of processes; one replica and one gateway are spared."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import httpx2
import psutil

from benchmarks.document import Document
from benchmarks.faults.harness import Harness
from benchmarks.soak.background import Background

#: Frequency in percent.
KINDS = {
    "replica killed": 30,
    "replica hung": 10,
    "gateway killed": 20,
    "dispatcher killed": 15,
    "Serve's controller killed": 10,
    "control plane killed": 15,
}
_SIGNALS = {"replica hung": signal.SIGSTOP}
_WORDS = {
    "dispatcher killed": "ray::DispatcherActor",
    "Serve's controller killed": "ray::ServeController",
    "control plane killed": "gcs_server",
}


class Killer(Background):
    """Kills processes until the block ends; ``deeds`` lists them."""

    def __init__(self, harness: Harness, seed: int, mean_s: float, least_s: float) -> None:
        super().__init__()
        self.deeds: list[Document] = []
        self._harness = harness
        self._random = random.Random(seed)
        self._mean_s = mean_s
        self._least_s = least_s
        self._began_s = time.monotonic()
        spared = min(harness.up(), key=lambda replica: str(replica["id"]))
        self._replica = spared["id"]
        self._gateway = harness.pids("spawn_main")[0]
        #: Process ids by role.
        self.spared = {"gateway": self._gateway, "replica": int(spared["pid"])}

    def _run(self) -> None:
        while not self.ended.wait(self._least_s + self._random.expovariate(1 / self._mean_s)):
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            pid = self._victim(kind)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, _SIGNALS.get(kind, signal.SIGKILL))
                    self.deeds.append({"at_s": time.monotonic() - self._began_s, "what": kind})

    def _victim(self, kind: str) -> int | None:
        finders: dict[str, Callable[[], list[int]]] = {
            "gateway killed": lambda: [
                pid for pid in self._harness.pids("spawn_main") if pid != self._gateway
            ],
        }
        for name in ("replica killed", "replica hung"):
            finders[name] = lambda: [
                int(r["pid"]) for r in self._harness.up() if r["id"] != self._replica
            ]
        with suppress(httpx2.HTTPError, KeyError, ValueError, psutil.Error):
            pids = finders.get(kind, lambda: self._harness.pids(_WORDS[kind]))()
            return pids[0] if pids else None
        return None
