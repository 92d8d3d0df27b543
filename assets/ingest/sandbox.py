"""Convert untrusted files in a sandbox: a separate process with memory, CPU and time limits.

It may not connect, execute or unpickle, and receives no secret. Its answer is untrusted: this
process hashes the files and computes their keys. The sandbox contains accidents and misuse of
Python, not an attacker's native code.
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
from typing import IO, get_args

from assets.asset import AssetKind
from assets.content import Blob, Component, content_key
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.ingest.convert import Ingested, OwnerDeclaration, prediction_in
from assets.ingest.sandbox_messages import InspectionAnswer, InspectionJob

log = logging.getLogger(__name__)


#: Beyond the worker's own limit.
_GRACE_S = 30.0
_START_TIMEOUT_S = 120.0


class SandboxFailed(Exception):
    """The inspection failed for a reason other than the file's content."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Limits per file. Time grows with its size; memory does not: a conversion holds one tensor."""

    memory_bytes: int = 2 << 30
    base_s: float = 60.0
    least_bytes_per_s: float = 10e6
    #: A canonical file's size over the source's.
    most_growth: int = 4

    def seconds(self, size_bytes: int) -> float:
        return self.base_s + size_bytes / self.least_bytes_per_s


@dataclass(frozen=True, slots=True)
class Cost:
    """An inspection's cost; ``more_bytes`` is peak memory beyond Python and its libraries."""

    seconds: float
    more_bytes: int


class Sandbox:
    """Converts one file at a time in a sandbox process. Starts on first use; close it."""

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self._limits = limits or SandboxLimits()
        self.last_cost = Cost(0.0, 0)
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ingest(
        self,
        path: Path,
        kind: AssetKind,
        schema: ParameterSchema,
        salt: bytes | None,
        scratch: Path,
        declaration: OwnerDeclaration = OwnerDeclaration(),  # noqa: B008 (frozen)
    ) -> Ingested:
        """Run ``assets.ingest.convert.ingest_file`` in the sandbox.

        Raises:
            IngestRejected: the file cannot be used or exceeds a limit; carries every reason.
            SandboxFailed: the inspection failed for another reason.
        """
        size_bytes = path.stat().st_size
        seconds = self._limits.seconds(size_bytes)
        job: InspectionJob = {
            "id": secrets.token_hex(8), "path": str(path), "kind": kind,
            "schema": schema.to_json(), "scratch": str(scratch),
            "declaration": declaration.to_json(),
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
            raise SandboxFailed(answer["broke"])
        files: dict[Component, tuple[Blob, Path]] = {}
        for component in get_args(Component):
            if component in answer["components"]:
                output = scratch / component
                sha256, written_bytes = _digest(output)
                prediction = prediction_in(answer["report"])
                key = content_key(sha256, component, schema.digest, salt, prediction)
                files[component] = (Blob(key, sha256, written_bytes), output)
        return Ingested(files, answer["report"])

    def _ask(self, job: InspectionJob) -> InspectionAnswer:
        for attempt in (1, 2):
            worker = self._ensure_worker()
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                with suppress(BrokenPipeError):
                    worker.stdin.write(json.dumps(job).encode() + b"\n")
                    worker.stdin.flush()
                line = self._read_line(worker.stdout, job["wall_s"] + _GRACE_S)
                answer: InspectionAnswer = json.loads(line) if line else {}
            except BaseException:  # a late answer would be the next job's
                self._stop_worker()
                raise
            if answer.get("id") == job["id"]:
                return answer
            log.warning("the sandbox worker exited (%s), attempt %s", worker.poll(), attempt)
            self._stop_worker()
        raise SandboxFailed("the sandbox worker exited twice without an answer; see its output")

    def _ensure_worker(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            self._stop_worker()
            # No secrets, no credentials.
            kept = ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
            environment = {name: os.environ[name] for name in kept if name in os.environ}
            environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": _import_path()}
            self._worker = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "assets.ingest.sandbox_worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
            assert self._worker.stdout is not None
            if self._read_line(self._worker.stdout, _START_TIMEOUT_S) != b"ready\n":
                self._stop_worker()
                raise SandboxFailed("the sandbox worker did not start; see its output")
        return self._worker

    def _read_line(self, pipe: IO[bytes], timeout_s: float) -> bytes:
        """Empty on timeout or end of file."""
        deadline = time.monotonic() + timeout_s
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

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            for pipe in (self._worker.stdin, self._worker.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            self._worker = None

    def close(self) -> None:
        with self._lock:
            self._stop_worker()


def _digest(path: Path) -> tuple[str, int]:
    """Raise SandboxFailed for anything but a regular file, symbolic links included."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SandboxFailed(
            f"cannot open the inspection's output {path.name}: {error.strerror}"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SandboxFailed(f"the inspection's output {path.name} is not a regular file")
        return hashlib.file_digest(file, "sha256").hexdigest(), status.st_size


def _import_path() -> str:
    root = str(Path(__file__).parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return f"{root}{os.pathsep}{inherited}" if inherited else root
