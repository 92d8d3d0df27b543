"""Starts servers on free loopback ports: the platform, S3, PostgreSQL. Callers end them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from serving.settings import Settings

START_TIMEOUT_S = 240.0
_END_TIMEOUT_S = 90.0
_KEY, _SECRET = "orchestrator-test-key", "orchestrator-test-secret"


class NotStarted(RuntimeError):
    """A server ended early or was not ready in time; the message has its output."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """Return the environment without variables of the platform and Ray."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AO_", "RAY_"))}


def start_serving(
    settings: Settings,
    log: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    checkout: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Run ``asset-orchestrator serve`` until ready; append output to ``log``.

    ``checkout`` is another checkout, with its own ``.venv``.

    Raises:
        NotStarted: it ended, or exceeded START_TIMEOUT_S.
    """
    python = sys.executable if checkout is None else str(checkout / ".venv" / "bin" / "python")
    command = [python, "-m", "serving.cli.main", "serve", *options]
    inherited = clean_environment() if environment is None else environment
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env={**inherited, **settings.to_environment()},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"{settings.resolved_public_url}/readyz", timeout=10).is_success:
                    return process
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(log.read_text()[-4000:])
            time.sleep(0.1)
    except BaseException:
        end_serving(process)
        raise


def end_serving(process: subprocess.Popen[bytes]) -> None:
    """End the platform and every process that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_TIMEOUT_S)
    with suppress(ProcessLookupError):  # the group survives a killed platform
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def s3_options(port: int) -> dict[str, Any]:
    """Return fsspec's options for :func:`s3_server`, or a proxy of it."""
    return {
        "key": _KEY,
        "secret": _SECRET,
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
    }


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """Run a real S3 server over a new folder with bucket "bucket"; yield its port."""
    (folder / "bucket").mkdir(parents=True)
    port = free_port()
    command = [str(Path(sys.executable).parent / "rclone"), "serve", "s3"]
    command += ["--auth-key", f"{_KEY},{_SECRET}", "--addr", f"127.0.0.1:{port}"]
    command += ["--config", "/dev/null", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_port(server, port)
        yield port
    finally:
        server.terminate()
        server.wait()


POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """Run PostgreSQL in a new folder; yield its URL.

    POSTGRES is the folder of Debian's binaries, or None. As root the server runs as user postgres,
    which needs access to the folder's parents.
    """
    assert POSTGRES is not None
    folder.mkdir()
    data, port = folder / "data", free_port()
    run: Any = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run["cwd"] = folder
    if os.getuid() == 0:  # PostgreSQL refuses root
        shutil.chown(folder, "postgres", "postgres")
        run |= {"user": "postgres", "group": "postgres", "extra_groups": []}
    try:
        command = [str(POSTGRES / "initdb"), "-D", str(data), "-U", "ao", "-A", "trust"]
        subprocess.run(command, **run)
        control = [str(POSTGRES / "pg_ctl"), "-D", str(data), "-w"]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        subprocess.run([*control, "-o", options, "start"], **run)
        try:
            yield f"postgresql+psycopg://ao@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def await_port(server: subprocess.Popen[bytes], port: int, timeout_s: float = 30.0) -> None:
    """Wait for connections.

    Raises:
        NotStarted: the server ended, or was late.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None or time.monotonic() > deadline:
            raise NotStarted(f"nothing listens on port {port}: {server.args!r}")
        time.sleep(0.05)
