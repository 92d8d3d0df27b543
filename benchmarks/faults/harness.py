"""The platform that is harmed: on Ray, with a real S3 behind a proxy that can be told to misbehave;
everything private to one folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from assets.families.sdxl import schema_of
from assets.storage.object_paths import stored_blob_key
from benchmarks.faults.client import Endpoint
from benchmarks.faults.nodes import GPU, RayNodes
from benchmarks.samples import write_kohya_lora
from benchmarks.servers import (
    POSTGRES,
    clean_environment,
    end_serving,
    free_port,
    postgres_server,
    s3_options,
    s3_server,
    start_serving,
)
from benchmarks.store_proxy import StoreProxy
from orchestrator.file_tier import FileTier
from serving.bootstrap.backends import Backends, open_backends
from serving.cli.client import Client
from serving.miniature.model import MINIATURE_CONFIGS
from serving.settings import PoolSettings, Settings

TENANT = "faults"
#: Of the disk tier's own disk, where one can be mounted.
DISK_BYTES = 96 << 20


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where it runs. Without nodes it starts Ray itself, on this machine; with some it joins a
    cluster of that many GPU nodes, each with tiers of its own. Machines whose clocks differ share
    no SQLite: for them there is PostgreSQL."""

    nodes: int = 0
    has_postgres: bool = False


ONE_MACHINE = Place()


class Skipped(Exception):
    """This machine cannot be harmed in that way; says what it lacks."""


class Harness:
    """One running platform; ``proxy`` stands before its store."""

    def __init__(
        self,
        folder: Path,
        store_port: int,
        place: Place,
        database_url: str,
        ends: ExitStack,
        **settings: Any,
    ) -> None:
        """``settings`` beside those that make it private. What is started ends with ``ends``."""
        node_count = place.nodes
        self.folder = folder
        self.proxy = StoreProxy(store_port)
        ends.callback(self.proxy.close)
        self.node_count = node_count
        self.nodes: RayNodes | None = None
        ray: dict[str, Any] = {"ray_temp_dir": folder / "ray"}
        tiers = ("disk", "host")
        if node_count:
            self.nodes = RayNodes(folder)
            ends.callback(self.nodes.close)
            for index in range(node_count):
                self.nodes.add(index)
            ray = {
                "ray_address": self.nodes.address,
                "pools": {"gpus": PoolSettings(gpu=GPU, min=node_count, max=node_count)},
            }
            tiers = ("disk-{node}", "host-{node}")
        self.has_small_disk = not node_count and _mount(folder / "disk")
        if self.has_small_disk:
            ends.callback(_unmount, folder / "disk")
        self.settings = Settings(
            data_dir=folder / "data",
            port=free_port(),
            store_url="s3://bucket/faults",
            store_options=s3_options(self.proxy.port),
            disk_dir=folder / tiers[0],
            host_dir=folder / tiers[1],
            queue_per_tenant=32,
            database_url=database_url,
            **ray,
            **settings,
        )
        (pool,) = self.settings.resolved_pools
        self.replicas = pool.min
        self.url = self.settings.resolved_public_url
        self.process: subprocess.Popen[bytes] | None = None
        ends.callback(self.end)
        self.start()
        self.endpoint = self.door_of(TENANT)
        self.tenant_id = self.tenant_id_of(TENANT)

    def door_of(self, tenant: str) -> Endpoint:
        directory = self.backends().directory
        directory.add_tenant(tenant)
        return Endpoint([self.url], directory.keyring.add_key(tenant).text)

    def tenant_id_of(self, tenant: str) -> str:
        tenants = self.backends().directory.tenants()
        return next(each.id for each in tenants if each.name == tenant)

    def backends(self) -> Backends:
        return open_backends(self.settings)

    def start(self) -> None:
        environment = clean_environment() if self.nodes is None else self.nodes.environment
        log = self.folder / "serve.log"
        self.process = start_serving(self.settings, log, environment=environment)

    def children(self) -> list[psutil.Process]:
        """What the platform has started, on this machine's own nodes too."""
        assert self.process is not None
        found = psutil.Process(self.process.pid).children(recursive=True)
        if self.nodes is not None:
            found += self.nodes.processes()
        return found

    def pids(self, part: str) -> list[int]:
        """Of the processes that have ``part`` in their command line."""
        found = []
        for child in self.children():
            with suppress(psutil.Error):
                if any(part in word for word in child.cmdline()):
                    found.append(child.pid)
        return found

    def gateway_environment(self) -> Mapping[str, str]:
        """With which another process becomes a gateway, or joins Ray."""
        return psutil.Process(self.pids("spawn_main")[0]).environ()

    def kill_everything(self) -> None:
        """As a power cut would end it; the tiers of this machine are gone too."""
        assert self.process is not None
        family = [*self.children(), psutil.Process(self.process.pid)]
        for one in family:
            with suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(family, timeout=30)
        self.process.wait()
        for tier in ("disk", "host"):
            for path in (self.folder / tier).glob("*"):
                shutil.rmtree(path, ignore_errors=True)

    def status(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/v1/status", timeout=30).json())

    def up(self) -> list[dict[str, Any]]:
        return [replica for replica in self.status()["replicas"] if replica["state"] == "up"]

    def busiest(self) -> int:
        """The process of the replica that draws most."""
        return int(max(self.up(), key=lambda replica: replica["running"])["pid"])

    def new_lora(self, name: str, endpoint: Endpoint | None = None) -> str:
        """One that lies nowhere but in the store."""
        schema = schema_of(MINIATURE_CONFIGS)
        seed = sum(name.encode())
        path = write_kohya_lora(self.folder / f"{name}.safetensors", schema, seed=seed)
        with Client(self.url, (endpoint or self.endpoint).key) as client:
            asset = client.await_ready(client.upload(path, "lora", name)["id"])
        path.unlink()
        return str(asset["id"])

    def tiers(self) -> list[FileTier]:
        budgets = {"disk": self.settings.disk_bytes, "host": self.settings.host_bytes}
        return [
            FileTier(name, folder, budget)
            for name, budget in budgets.items()
            for folder in sorted(self.folder.glob(f"{name}*"))
        ]

    def rotten(self) -> list[str]:
        """Files of the tiers that are not what the store has under the same key."""
        stored = self.folder / "s3" / "bucket" / "faults"
        found = []
        for path in self.folder.glob("*/objects/*"):
            with suppress(FileNotFoundError):  # evicted meanwhile
                held, original = _digest(path), stored / stored_blob_key(path.name)
                if not original.exists() or held != _digest(original):
                    found.append(f"{path.parent.parent.name} tier: {path.name} is not the store's")
        return found

    def leased(self) -> list[str]:
        """Entries of the tiers that somebody still holds."""
        found = []
        for path in self.folder.glob("*/locks/*"):
            with suppress(FileNotFoundError), open(path, "rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(f"{path.parent.parent.name} tier: {path.name} is leased")
        return found

    def weights(self) -> dict[str, str]:
        """The digest of each replica's working weights, from the replica itself."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.faults.digests"],
            env=dict(self.gateway_environment()),
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        digests: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return digests

    def end(self) -> None:
        self.proxy.fault = None
        if self.process is not None:
            end_serving(self.process)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mount(folder: Path) -> bool:
    """A small disk of its own at ``folder``; whoever is not root has none."""
    folder.mkdir(mode=0o700)
    options = f"size={DISK_BYTES},mode=700"  # a tmpfs is open to everybody by default
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _unmount(folder: Path) -> None:
    """Even while somebody still looks into it."""
    if subprocess.run(["umount", str(folder)], capture_output=True).returncode:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def staged(place: Place = ONE_MACHINE, **settings: Any) -> Iterator[Harness]:
    """
    Raises:
        Skipped: this machine has no PostgreSQL.
    """
    if place.has_postgres and POSTGRES is None:
        raise Skipped("PostgreSQL's server is not installed")
    folder = Path("/tmp") / f"ao-faults-{os.getpid()}-{place.nodes}{place.has_postgres:d}"
    folder.mkdir()  # in /tmp because Ray's sockets need a short path
    try:
        with ExitStack() as ends:
            port = ends.enter_context(s3_server(folder / "s3"))
            url = ""
            if place.has_postgres:
                url = ends.enter_context(postgres_server(folder / "postgres"))
            yield Harness(folder, port, place, url, ends, **settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
