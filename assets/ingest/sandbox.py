"""Strangers' files are converted in a cage: a process apart, with limits of memory, work and
time, that may neither connect, nor execute, nor unpickle.

A file that brings its reader down costs nobody else anything. What the inside (caged.py) says
is not believed: it names the components that it has written into the scratch folder, and they
are opened, hashed and given their keys out here; no secret goes in. This contains accidents
and what Python can be brought to do; it is no wall against native code of an attacker's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import select
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, get_args

from assets.asset import AssetKind
from assets.content import Blob, Component, content_key
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.ingest.convert import Ingested, OwnersWord, prediction_in

log = logging.getLogger(__name__)


#: Beyond what the keeper itself grants a file; and for it to come up.
_PATIENCE_S = 30.0
_START_S = 120.0


class CageBroke(Exception):
    """The inspection broke, and it may well be our fault."""


@dataclass(frozen=True, slots=True)
class Limits:
    """For one file. Time grows with its size, memory does not: a conversion holds one tensor."""

    memory_bytes: int = 2 << 30
    base_s: float = 60.0
    least_bytes_per_s: float = 10e6
    #: The canonical files may be larger than what they are made from, within reason.
    most_growth: int = 4

    def seconds(self, size_bytes: int) -> float:
        return self.base_s + size_bytes / self.least_bytes_per_s


@dataclass(frozen=True, slots=True)
class Cost:
    """``more_bytes``: beyond what every inspection starts with, Python and its libraries."""

    seconds: float
    more_bytes: int


class Cage:
    """Converts one file at a time. Close it once; it starts itself when it is needed."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        #: Of the last inspection, as the keeper saw it.
        self.last_cost = Cost(0.0, 0)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ingest(
        self,
        path: Path,
        kind: AssetKind,
        schema: ParameterSchema,
        salt: bytes | None,
        scratch: Path,
        word: OwnersWord = OwnersWord(),  # noqa: B008 (frozen)
    ) -> Ingested:
        """What ``assets.ingest.convert.ingest_file`` does, out there.

        Raises:
            IngestRejected: with every reason that was found, a limit among them.
            CageBroke: the inspection broke.
        """
        size_bytes = path.stat().st_size
        seconds = self._limits.seconds(size_bytes)
        job = {
            "id": secrets.token_hex(8), "path": str(path), "kind": kind,
            "skeleton": schema.to_json(), "scratch": str(scratch), "word": word.to_json(),
            "memory_bytes": self._limits.memory_bytes, "wall_s": seconds,
            "cpu_s": max(1, int(seconds)),
            "file_bytes": max(1 << 30, self._limits.most_growth * size_bytes),
        }  # fmt: skip
        with self._lock:
            answer = self._ask(job)
        self.last_cost = Cost(float(answer.get("seconds", 0)), int(answer.get("more_bytes", 0)))
        if "rejected" in answer:
            raise IngestRejected(*answer["rejected"])
        if "broke" in answer:
            raise CageBroke(answer["broke"])
        files: dict[Component, tuple[Blob, Path]] = {}
        for component in get_args(Component):
            if component in answer["components"]:
                place = scratch / component
                sha256, written_bytes = _digest(place)
                prediction = prediction_in(answer["report"])
                key = content_key(sha256, component, schema.digest, salt, prediction)
                files[component] = (Blob(key, sha256, written_bytes), place)
        return Ingested(files, answer["report"])

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        for attempt in (1, 2):
            keeper = self._running()
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            try:
                with suppress(BrokenPipeError):
                    keeper.stdin.write(json.dumps(job).encode() + b"\n")
                    keeper.stdin.flush()
                line = self._line(keeper.stdout, job["wall_s"] + _PATIENCE_S)
                answer: dict[str, Any] = json.loads(line) if line else {}
            except BaseException:  # whatever it still says must not be taken for the next answer
                self._end()
                raise
            if answer.get("id") == job["id"]:
                return answer
            log.warning("the cage's keeper ended (%s), attempt %s", keeper.poll(), attempt)
            self._end()
        raise CageBroke("the process that inspects files ended twice")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._keeper is None or self._keeper.poll() is not None:
            self._end()
            # Of the environment nothing but what Python needs: no secret, no credentials.
            kept = ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
            environment = {name: os.environ[name] for name in kept if name in os.environ}
            environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": _import_path()}
            self._keeper = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "assets.ingest.sandbox_worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
            assert self._keeper.stdout is not None
            if self._line(self._keeper.stdout, _START_S) != b"ready\n":
                self._end()
                raise CageBroke("the process that inspects files does not start; see its output")
        return self._keeper

    def _line(self, pipe: IO[bytes], patience_s: float) -> bytes:
        """The next line; empty when there is none in time, or none any more."""
        deadline = time.monotonic() + patience_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([pipe], [], [], left_s)[0]:
                return b""
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return b""
            line += chunk
        return line

    def _end(self) -> None:
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
            for pipe in (self._keeper.stdin, self._keeper.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            self._keeper = None

    def close(self) -> None:
        with self._lock:
            self._end()


def _digest(path: Path) -> tuple[str, int]:
    """sha256 and size of a regular file that is no link to anywhere.

    Raises:
        CageBroke: it is not there, or something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CageBroke(f"the inspection left no {path.name}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CageBroke(f"the inspection left something odd as {path.name}")
        return hashlib.file_digest(file, "sha256").hexdigest(), status.st_size


def _import_path() -> str:
    """So that the keeper finds this very package, wherever it was imported from."""
    here = str(Path(__file__).parents[2])
    given = os.environ.get("PYTHONPATH")
    return f"{here}{os.pathsep}{given}" if given else here
