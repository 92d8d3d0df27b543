"""The platform under test: on Ray, in one private folder, with a real S3 server behind a
fault-injecting proxy."""

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

import httpx2
import psutil

from assets.families.sdxl import schema_of
from assets.storage.object_paths import stored_blob_key
from benchmarks.document import Document
from benchmarks.faults.client import Endpoint
from benchmarks.faults.nodes import GPU, RayNodes
from orchestrator.file_tier import FileTier
from serving.bootstrap.backends import Backends, open_backends
from serving.cli.client import Client
from serving.miniature.model import MINIATURE_CONFIGS
from serving.settings import PoolSettings, Settings
from tests.support.samples import write_kohya_lora
from tests.support.servers import (
    POSTGRES,
    clean_environment,
    end_serving,
    free_port,
    postgres_server,
    s3_options,
    s3_server,
    start_serving,
)
from tests.support.store_proxy import StoreProxy

TENANT = "faults"
#: Size of the disk tier's file system, if mountable.
DISK_BYTES = 96 << 20


@dataclass(frozen=True, slots=True, order=True)
class Deployment:
    """Where the platform runs.

    With ``nodes`` 0 it starts Ray here; otherwise it joins a cluster of that many GPU nodes with
    own tiers. ``has_postgres`` replaces SQLite, which machines with different clocks cannot share.
    """

    nodes: int = 0
    has_postgres: bool = False


ONE_MACHINE = Deployment()


class Skipped(Exception):
    """This machine lacks what the fault needs."""


class Harness:
    """One running platform; ``proxy`` is in front of its object store."""

    def __init__(
        self,
        folder: Path,
        store_port: int,
        place: Deployment,
        database_url: str,
        ends: ExitStack,
        **settings: Any,
    ) -> None:
        node_count = place.nodes
        self.folder = folder
        self.proxy = StoreProxy(store_port)
        ends.callback(self.proxy.close)
        self.node_count = node_count
        self.nodes: RayNodes | None = None
        ray: Document = {"ray_temp_dir": folder / "ray"}
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
        self.endpoint = self.endpoint_of(TENANT)
        self.tenant_id = self.tenant_id_of(TENANT)

    def endpoint_of(self, tenant: str) -> Endpoint:
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
        """Return the processes of the platform and of this machine's nodes."""
        assert self.process is not None
        processes = psutil.Process(self.process.pid).children(recursive=True)
        if self.nodes is not None:
            processes += self.nodes.processes()
        return processes

    def pids(self, part: str) -> list[int]:
        pids = []
        for child in self.children():
            with suppress(psutil.Error):
                if any(part in word for word in child.cmdline()):
                    pids.append(child.pid)
        return pids

    def gateway_environment(self) -> Mapping[str, str]:
        """Return the environment of a process that is a gateway or joins Ray."""
        return psutil.Process(self.pids("spawn_main")[0]).environ()

    def kill_everything(self) -> None:
        """Kill all processes and delete the tiers, like a power cut."""
        assert self.process is not None
        family = [*self.children(), psutil.Process(self.process.pid)]
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=30)
        self.process.wait()
        for tier in ("disk", "host"):
            for path in (self.folder / tier).glob("*"):
                shutil.rmtree(path, ignore_errors=True)

    def status(self) -> Document:
        return dict(httpx2.get(f"{self.url}/v1/status", timeout=30).json())

    def up(self) -> list[Document]:
        return [replica for replica in self.status()["replicas"] if replica["state"] == "up"]

    def busiest(self) -> int:
        """Return the process id of the replica with most running requests."""
        return int(max(self.up(), key=lambda replica: replica["running"])["pid"])

    def new_lora(self, name: str, endpoint: Endpoint | None = None) -> str:
        """Upload a LoRA that is in no tier."""
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
        """Return the tier files that differ from the store's object."""
        stored = self.folder / "s3" / "bucket" / "faults"
        wrong = []
        for path in self.folder.glob("*/objects/*"):
            with suppress(FileNotFoundError):  # evicted
                digest, original = _digest(path), stored / stored_blob_key(path.name)
                if not original.exists() or digest != _digest(original):
                    tier = path.parent.parent.name
                    wrong.append(f"{tier} tier: {path.name} differs from the store's object")
        return wrong

    def leased(self) -> list[str]:
        leased = []
        for path in self.folder.glob("*/locks/*"):
            with suppress(FileNotFoundError), open(path, "rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    leased.append(f"{path.parent.parent.name} tier: {path.name} is leased")
        return leased

    def weights(self) -> dict[str, str]:
        """Return the digest of each replica's working weights."""
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
    """Mount a small tmpfs; return whether it worked (only root can)."""
    folder.mkdir(mode=0o700)
    options = f"size={DISK_BYTES},mode=700"  # default: world-writable
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _unmount(folder: Path) -> None:
    if subprocess.run(["umount", str(folder)], capture_output=True).returncode:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def staged(place: Deployment = ONE_MACHINE, **settings: Any) -> Iterator[Harness]:
    """Run a platform at ``place``.

    Raises:
        Skipped: no PostgreSQL.
    """
    if place.has_postgres and POSTGRES is None:
        raise Skipped("PostgreSQL's server is not installed")
    folder = Path("/tmp") / f"ao-faults-{os.getpid()}-{place.nodes}{place.has_postgres:d}"
    folder.mkdir()  # in /tmp: Ray's socket paths have to be short
    try:
        with ExitStack() as ends:
            port = ends.enter_context(s3_server(folder / "s3"))
            url = ""
            if place.has_postgres:
                url = ends.enter_context(postgres_server(folder / "postgres"))
            yield Harness(folder, port, place, url, ends, **settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
