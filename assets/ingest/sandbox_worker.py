"""``python -m assets.ingest.sandbox_worker``: the process inside the sandbox (see sandbox.py).

Reads a job per line, writes an answer per line. Each file gets a forked child, which limits itself,
converts, answers and exits.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.ingest.convert import OwnerDeclaration, ingest_file
from assets.ingest.sandbox_messages import InspectionAnswer, InspectionJob

#: Audit events that reject a file.
_FORBIDDEN = frozenset(
    {
        "pickle.find_class", "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg",
        "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system",
        "os.fork", "os.forkpty", "os.kill", "ctypes.dlopen", "webbrowser.open",
    }
)  # fmt: skip


_PR_SET_PDEATHSIG = 1


class _Forbidden(Exception):
    pass


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps standard output for answers
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        job: InspectionJob = json.loads(line)
        answer = _run_in_child(job, out.fileno())
        out.write(json.dumps({**answer, "id": job["id"]}) + "\n")
        out.flush()


def _run_in_child(job: InspectionJob, answers: int) -> InspectionAnswer:
    reader, writer = os.pipe()
    inherited_bytes, started = _resident_bytes(), time.monotonic()
    child = os.fork()
    if child == 0:
        for inherited in (reader, answers, 0):
            os.close(inherited)
        try:
            with os.fdopen(writer, "w") as pipe:
                pipe.write(json.dumps(_convert(job)))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        text = _read_until(reader, time.monotonic() + job["wall_s"])
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
    answer = _answer(job, text, status)
    more_bytes = max(0, used.ru_maxrss * 1024 - inherited_bytes)
    return {**answer, "seconds": time.monotonic() - started, "more_bytes": more_bytes}


def _answer(job: InspectionJob, text: str | None, status: int) -> InspectionAnswer:
    if text is None:
        return {"rejected": [f"its inspection took longer than {job['wall_s']:.0f} s"]}
    if not text:
        exit_code = os.waitstatus_to_exitcode(status)
        if exit_code == -signal.SIGXCPU:
            return {"rejected": [f"its inspection took more than {job['cpu_s']} s of CPU time"]}
        return {"broke": f"the inspection ended without an answer (exit code {exit_code})"}
    try:
        answer: InspectionAnswer = json.loads(text)
    except ValueError:
        return {"broke": "the inspection's answer is truncated"}
    return answer


def _read_until(descriptor: int, deadline: float) -> str | None:
    """Return all until the other end closes; None at the deadline."""
    data = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return data.decode()
        data += chunk


def _convert(job: InspectionJob) -> InspectionAnswer:
    limit = f"{job['memory_bytes']} bytes of memory"
    out_of_memory: InspectionAnswer = {"rejected": [f"its inspection needs more than {limit}"]}
    try:
        _limit(job)
        sys.addaudithook(_refuse)
        schema = ParameterSchema.from_json(job["schema"])
        declaration = OwnerDeclaration.from_json(job["declaration"])
        scratch = Path(job["scratch"])
        done = ingest_file(Path(job["path"]), job["kind"], schema, None, scratch, declaration)
    except IngestRejected as rejection:
        return {"rejected": list(rejection.reasons)}
    except MemoryError:
        return out_of_memory
    except _Forbidden as forbidden:
        return {"rejected": [f"reading it triggers a forbidden operation ({forbidden})"]}
    except OSError as error:
        return {"broke": f"{type(error).__name__}: {error}"}
    except Exception as error:
        if "allocate memory" in str(error):  # torch's own MemoryError
            return out_of_memory
        return {"broke": f"{type(error).__name__}: {error}"}
    return {"components": list(done.files), "report": done.report}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _limit(job: InspectionJob) -> None:
    """Limit memory relative to current use: libraries map gigabytes that they never touch."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    mapped = pages * resource.getpagesize()
    total = mapped + job["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (total, total))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"] + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(AttributeError, OSError):  # Linux: exit with the parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _refuse(event: str, _: object) -> None:
    if event in _FORBIDDEN:
        raise _Forbidden(event)


if __name__ == "__main__":
    main()
