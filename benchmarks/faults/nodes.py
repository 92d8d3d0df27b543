"""A Ray cluster on this machine whose nodes can be killed and added again."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.servers import clean_environment, free_port

GPU = "test"
_START_S = 90.0


class RayNodes:
    """Nodes started by ``ray start``, each in its own process group."""

    def __init__(self, folder: Path) -> None:
        """Start a head without GPUs. Joining processes need ``environment``."""
        self._folder = folder
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            **clean_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(folder / "tables"),
        }
        head = ["--head", f"--port={port}", f"--temp-dir={folder / 'ray'}"]
        head += ["--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        self._head = self._start("head", [*head, "--num-cpus=4", "--num-gpus=0"])
        self._nodes: dict[int, psutil.Process] = {}

    def add(self, index: int) -> None:
        """Start a node that declares one GPU; the machine needs none."""
        resources = f'{{"gpu_{GPU}": 1}}'
        options = [f"--address={self.address}", "--num-cpus=2", "--num-gpus=1"]
        self._nodes[index] = self._start(f"node-{index}", [*options, f"--resources={resources}"])

    def _start(self, name: str, options: list[str]) -> psutil.Process:
        log = self._folder / f"{name}.log"
        log.unlink(missing_ok=True)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *options]
        command += [f"--object-store-memory={80 << 20}"]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                _kill(psutil.Process(process.pid))
                raise SystemExit(log.read_text()[-3000:])
            time.sleep(0.1)
        return psutil.Process(process.pid)

    def processes(self) -> list[psutil.Process]:
        return [
            process
            for root in (self._head, *self._nodes.values())
            for process in (root, *root.children(recursive=True))
        ]

    def of(self, index: int) -> set[int]:
        return {child.pid for child in self._nodes[index].children(recursive=True)}

    def lose(self, index: int) -> None:
        """Kill the node, like a loss of power."""
        _kill(self._nodes.pop(index))

    def close(self) -> None:
        for node in self._nodes.values():
            _kill(node)
        _kill(self._head)


def _kill(process: psutil.Process) -> None:
    family = [process]
    with suppress(psutil.Error):
        family += process.children(recursive=True)
    for member in family:
        with suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(family, timeout=30)
