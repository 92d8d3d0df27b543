"""Samples of every process's memory and open files, and of the number of stored files."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.document import Document
from benchmarks.faults.harness import Harness
from benchmarks.soak.background import Background

#: Command-line substrings by role; the first match counts.
PARTS = (
    ("spawn_main", "gateways"),
    ("ServeReplica", "replicas"),
    ("DispatcherActor", "dispatcher"),
    ("serving.cli.main", "serve"),
    ("gcs_server", "control plane"),
)
REST = "rest of Ray"
PLACES = ("disk", "host", "scratch", "store")


class ResourceUsage(Background):
    """Samples every ``every_s`` seconds into ``samples``."""

    def __init__(self, harness: Harness, every_s: float, spared: Mapping[str, int]) -> None:
        """``spared``: process ids to sample individually, by name."""
        super().__init__()
        self.samples: list[Document] = []
        self._harness = harness
        self._every_s = every_s
        self._spared = spared
        self._began_s = time.monotonic()

    def _run(self) -> None:
        while True:
            self.samples.append(self._sample())
            if self.ended.wait(self._every_s):
                return

    def _sample(self) -> Document:
        memory: Counter[str] = Counter()
        descriptors: Counter[str] = Counter()
        count: Counter[str] = Counter()
        assert self._harness.process is not None
        family = [psutil.Process(self._harness.process.pid)]
        with suppress(psutil.Error):  # ended meanwhile
            family += self._harness.children()
        for process in family:
            with suppress(psutil.Error, OSError):
                part = _part(process)
                memory[part] += private_bytes(process.pid)
                descriptors[part] += process.num_fds()
                count[part] += 1
        spared = {}
        for name, pid in self._spared.items():
            with suppress(psutil.Error, OSError):
                spared[name] = {
                    "bytes": private_bytes(pid),
                    "descriptors": psutil.Process(pid).num_fds(),
                }
        return {
            "at_s": time.monotonic() - self._began_s,
            "bytes": dict(memory),
            "descriptors": dict(descriptors),
            "processes": dict(count),
            "spared": spared,
            "files": {place: _files(self._folder(place)) for place in PLACES},
        }

    def _folder(self, place: str) -> Path:
        harness = self._harness
        folders = {"scratch": harness.settings.scratch_dir, "store": harness.folder / "s3"}
        return folders.get(place, harness.folder / place)


def _part(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    return next((part for word, part in PARTS if word in command), REST)


def private_bytes(pid: int) -> int:
    """Return the proportional share of anonymous memory: no files, no tiers."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) << 10
    return 0


def _files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))
