"""``python -m assets.ingest.sandbox_worker``: the inside of the cage (see cage.py).

A process that has imported everything and holds nothing forks a child for each file; the child
takes its limits upon itself, converts, answers, and is gone. It reads a job a line on standard
input and writes an answer a line on standard output.
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
from typing import Any

from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.ingest.convert import OwnersWord, ingest_file

#: What no conversion ever does. A file that brings it about is refused.
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
    os.dup2(2, 1)  # nothing but answers on standard output
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        job = json.loads(line)
        answer = _in_a_child(job, out.fileno())
        out.write(json.dumps({**answer, "id": job["id"]}) + "\n")
        out.flush()


def _in_a_child(job: dict[str, Any], answers: int) -> dict[str, Any]:
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


def _answer(job: dict[str, Any], text: str | None, status: int) -> dict[str, Any]:
    if text is None:
        return {"rejected": [f"its inspection took longer than {job['wall_s']:.0f} s"]}
    if not text:
        died = os.waitstatus_to_exitcode(status)
        if died == -signal.SIGXCPU:
            return {"rejected": [f"its inspection took more than {job['cpu_s']} s of work"]}
        return {"broke": f"the inspection ended without an answer ({died})"}
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:  # cut off
        return {"broke": "the inspection ended within its answer"}
    return answer


def _read_until(descriptor: int, deadline: float) -> str | None:
    """Everything that is written, until the other side is closed; None when time is up."""
    data = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return data.decode()
        data += chunk


def _convert(job: dict[str, Any]) -> dict[str, Any]:
    most = f"{job['memory_bytes']} bytes of memory"
    too_much = {"rejected": [f"its inspection needs more than {most}"]}
    try:
        _limit(job)
        sys.addaudithook(_refuse)
        schema = ParameterSchema.from_json(job["skeleton"])
        word = OwnersWord.of(job["word"])
        scratch = Path(job["scratch"])
        done = ingest_file(Path(job["path"]), job["kind"], schema, None, scratch, word)
    except IngestRejected as rejection:
        return {"rejected": list(rejection.reasons)}
    except MemoryError:
        return too_much
    except _Forbidden as forbidden:
        return {"rejected": [f"it makes its reader do what no conversion does ({forbidden})"]}
    except OSError as error:
        return {"broke": f"{type(error).__name__}: {error}"}
    except Exception as error:
        if "allocate memory" in str(error):  # torch's own MemoryError
            return too_much
        return {"broke": f"{type(error).__name__}: {error}"}
    return {"components": list(done.files), "report": dict(done.report)}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _limit(job: dict[str, Any]) -> None:
    """Beyond what the process has already: libraries map gigabytes that they never touch."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    mapped = pages * resource.getpagesize()
    total = mapped + job["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (total, total))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"] + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(AttributeError, OSError):  # on Linux: end with the keeper
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _refuse(event: str, _: Any) -> None:
    if event in _FORBIDDEN:
        raise _Forbidden(event)


if __name__ == "__main__":
    main()
