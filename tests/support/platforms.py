"""Starts a platform as a subprocess on a free port and a private folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from serving.bootstrap.backends import open_backends
from serving.cli.client import Client
from serving.settings import Settings
from tests.support.servers import clean_environment, end_serving, free_port, start_serving


@dataclass
class Running:
    """A running platform, with API keys and clients by tenant."""

    url: str
    settings: Settings
    process: subprocess.Popen[bytes]
    log: Path
    directory: Any
    keys: dict[str, str] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)

    def key(self, tenant: str) -> str:
        if tenant not in self.keys:
            self.directory.add_tenant(tenant)
            self.keys[tenant] = self.directory.keyring.add_key(tenant).text
        return self.keys[tenant]

    def client(self, tenant: str = "acme") -> Client:
        if tenant not in self.clients:
            self.clients[tenant] = Client(self.url, self.key(tenant))
        return self.clients[tenant]

    def status(self) -> dict[str, Any]:
        return dict(httpx2.get(f"{self.url}/v1/status", timeout=30).json())

    def descendants(self) -> list[Any]:
        import psutil

        return psutil.Process(self.process.pid).children(recursive=True)

    def gateways(self) -> list[int]:
        """Process ids of the gateways: uvicorn workers, spawned by multiprocessing."""
        pids = []
        for child in self.descendants():
            with suppress(Exception):
                if any("spawn_main" in part for part in child.cmdline()):
                    pids.append(child.pid)
        return pids


@contextmanager
def running(
    folder: Path, *options: str, checkout: Path | None = None, **settings: Any
) -> Iterator[Running]:
    """Run ``asset-orchestrator serve``, of another ``checkout`` if given; stop all its processes at
    the end."""
    port = free_port()
    temporary = Path("/tmp") / f"ao-{os.getpid()}-{port}"  # Ray's sockets need a short path
    configured = Settings(
        data_dir=folder / "data",
        port=port,
        host_dir=folder / "host",
        ray_temp_dir=temporary,
        **settings,
    )
    log = folder / "serve.log"
    try:
        environment = None
        if checkout is not None:
            environment = {**clean_environment(), "PYTHONPATH": str(checkout)}
        process = start_serving(
            configured, log, *options, environment=environment, checkout=checkout
        )
        try:
            backends = open_backends(configured)
            directory = backends.directory
            server = Running(f"http://127.0.0.1:{port}", configured, process, log, directory)
            yield server
            for client in server.clients.values():
                client.close()
            backends.close()
        finally:
            end_serving(process)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll until true; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(0.02)


def put_asset(
    http: httpx2.Client, file: Path, kind: str, name: str, **fields: Any
) -> dict[str, Any]:
    """Upload a file through the API; return the ready asset."""
    new = {"asset_type": kind, "name": name, **fields}
    answer = http.post("/v1/assets", json=new)
    assert answer.status_code == 200, answer.text
    created = answer.json()
    httpx2.put(created["transfer_api"]["put_url"], content=file.read_bytes()).raise_for_status()
    asset_id = created["asset"]["id"]
    http.post(f"/v1/assets/{asset_id}/complete-upload", json={}).raise_for_status()

    def asset_now() -> dict[str, Any]:
        return dict(http.get(f"/v1/assets/{asset_id}").json()["asset"])

    wait_until(lambda: asset_now()["status"] != "uploaded")
    asset = asset_now()
    assert asset["status"] == "ready", asset
    return asset
