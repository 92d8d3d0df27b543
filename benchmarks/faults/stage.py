"""The platform that is harmed: on Ray, with a real S3 behind a proxy that can be told to misbehave;
everything private to one folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from assets.sdxl import skeleton_of
from benchmarks.coldstart import s3_server, store_options
from benchmarks.samples import write_kohya_lora
from benchmarks.store_proxy import StoreProxy
from orchestrator.file_tier import FileTier
from serving.cli.client import Client
from serving.commons.miniature import MINIATURE_CONFIGS
from serving.composition import Backends, open_backends
from serving.settings import Settings

TENANT = "faults"
_START_S = 240.0


class Stage:
    """One running platform; ``proxy`` stands before its store."""

    def __init__(self, folder: Path, store_port: int) -> None:
        self.folder = folder
        self.proxy = StoreProxy(store_port)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.settings = Settings(
            data_dir=folder / "data",
            port=port,
            store_url="s3://bucket/faults",
            store_options=store_options(self.proxy.port),
            disk_dir=folder / "disk",
            host_dir=folder / "host",
            ray_temp_dir=folder / "ray",
            queue_per_tenant=32,
        )
        self.url = self.settings.resolved_public_url
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        directory = self.backends().directory
        directory.add_tenant(TENANT)
        self.key = directory.keyring.add_key(TENANT).text
        self.tenant_id = directory.keyring.authenticate(self.key).tenant_id

    def backends(self) -> Backends:
        return open_backends(self.settings)

    def start(self) -> None:
        log = open(self.folder / "serve.log", "ab")  # noqa: SIM115  (the process keeps it)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AO_", "RAY_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.cli.main", "serve"],
            env={**environment, **self.settings.to_environment()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_S
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=10).is_success:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((self.folder / "serve.log").read_text()[-3000:])
            time.sleep(0.1)

    def _children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def pids(self, part: str) -> list[int]:
        """Of the processes that have ``part`` in their command line."""
        found = []
        for child in self._children():
            with suppress(psutil.Error):
                if any(part in word for word in child.cmdline()):
                    found.append(child.pid)
        return found

    def kill_everything(self) -> None:
        """As a power cut would end it; the tiers of this machine are gone too."""
        assert self.process is not None
        family = [*self._children(), psutil.Process(self.process.pid)]
        for one in family:
            with suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(family, timeout=30)
        self.process.wait()
        for tier in ("disk", "host"):
            shutil.rmtree(self.folder / tier, ignore_errors=True)

    def status(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/v1/status", timeout=30).json())

    def up(self) -> list[dict[str, Any]]:
        return [replica for replica in self.status()["replicas"] if replica["state"] == "up"]

    def busiest(self) -> int:
        """The process of the replica that draws most."""
        return int(max(self.up(), key=lambda replica: replica["running"])["pid"])

    def new_lora(self, name: str) -> str:
        """One that lies nowhere but in the store."""
        skeleton = skeleton_of(MINIATURE_CONFIGS)
        seed = sum(name.encode())
        path = write_kohya_lora(self.folder / f"{name}.safetensors", skeleton, seed=seed)
        with Client(self.url, self.key) as client:
            asset = client.await_ready(client.upload(path, "lora", name)["id"])
        return str(asset["id"])

    def tiers(self) -> list[FileTier]:
        settings = self.settings
        return [
            FileTier("disk", settings.resolved_disk_dir, settings.disk_bytes),
            FileTier("host", settings.resolved_host_dir, settings.host_bytes),
        ]

    def end(self) -> None:
        self.proxy.fault = None
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=90)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.proxy.close()


@contextmanager
def staged() -> Iterator[Stage]:
    folder = Path("/tmp") / f"ao-faults-{os.getpid()}"  # Ray's sockets need a short path
    folder.mkdir()
    try:
        with s3_server(folder / "s3") as port:
            stage = Stage(folder, port)
            try:
                yield stage
            finally:
                stage.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
