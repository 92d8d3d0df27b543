"""Processes that are killed at random; one replica and one gateway are spared."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import psutil

from benchmarks.faults.harness import Harness
from benchmarks.soak.background import Background

#: How often each, of a hundred.
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
    """Until the block ends; ``deeds`` says what died and when."""

    def __init__(self, harness: Harness, seed: int, mean_s: float, least_s: float) -> None:
        super().__init__()
        self.deeds: list[dict[str, Any]] = []
        self._stage = harness
        self._random = random.Random(seed)
        self._mean_s = mean_s
        self._least_s = least_s
        self._began_s = time.monotonic()
        spared = min(harness.up(), key=lambda replica: str(replica["id"]))
        self._replica = spared["id"]
        self._gateway = harness.pids("spawn_main")[0]
        #: Process ids of the spared, by what they are.
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
        """None when it is away at the moment."""
        finders: dict[str, Callable[[], list[int]]] = {
            "gateway killed": lambda: [
                pid for pid in self._stage.pids("spawn_main") if pid != self._gateway
            ],
        }
        for name in ("replica killed", "replica hung"):
            finders[name] = lambda: [
                int(r["pid"]) for r in self._stage.up() if r["id"] != self._replica
            ]
        with suppress(httpx.HTTPError, KeyError, ValueError, psutil.Error):
            found = finders.get(kind, lambda: self._stage.pids(_WORDS[kind]))()
            return found[0] if found else None
        return None
