"""Ray's autoscaler on fake nodes: local raylets, whose GPUs are only declared resources.

The node types are those of ray_cluster.yaml.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
START_S = 90.0


@dataclass(frozen=True)
class AutoscaledCluster:
    """A running cluster; ``environment`` is what a process needs to join."""

    address: str
    environment: Mapping[str, str]
    folder: Path


def cluster_config(address: str, idle_min: float) -> dict[str, Any]:
    """ray_cluster.yaml for nodes that are processes.

    The head only runs the control plane; other nodes start for requested GPUs.
    """
    document: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    for kind in document["available_node_types"].values():
        kind["node_config"] = {}
        kind["resources"]["object_store_memory"] = 80 << 20
    document["provider"] = {
        "type": "fake_multinode",
        "gcs_address": address,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "use_internal_ips": True,
        "use_node_id_as_ip": True,
    }
    document["auth"] = {}
    document["idle_timeout_minutes"] = idle_min
    lists = ["setup_commands", "initialization_commands", "head_setup_commands"]
    lists += ["worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"]
    lists += ["cluster_synced_files", "rsync_exclude", "rsync_filter"]
    document.update({name: [] for name in lists})
    document.update(file_mounts={}, docker={}, file_mounts_sync_continuously=False)
    return document


@contextmanager
def autoscaled(idle_s: float) -> Iterator[AutoscaledCluster]:
    """Start a head whose autoscaler removes nodes idle for ``idle_s`` seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path("/tmp") / f"ao-scaled-{os.getpid()}-{port}"  # Ray's sockets need a short path
    folder.mkdir()
    address = f"127.0.0.1:{port}"
    config = folder / "cluster.json"
    document = cluster_config(address, idle_s / 60)
    config.write_text(json.dumps(document))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AO_", "RAY_"))}
    environment = {
        **inherited,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "0",
    }
    head = document["available_node_types"]["head"]["resources"]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    command += ["--include-dashboard=false", f"--autoscaling-config={config}"]
    command += [f"--num-cpus={head['CPU']}", "--num-gpus=0", f"--object-store-memory={80 << 20}"]
    log = folder / "start.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield AutoscaledCluster(address, environment, folder)
    finally:
        _end(process, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the head and all processes with ``folder`` in their command line, even starting ones."""
    import psutil

    def descendants() -> list[Any]:
        return [
            other
            for other in psutil.process_iter(["cmdline"])
            if other.pid != process.pid
            and any(str(folder) in part for part in other.info["cmdline"] or ())
        ]

    children = descendants()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    psutil.wait_procs(children, timeout=10)
    while remaining := descendants():
        for other in remaining:
            with suppress(psutil.NoSuchProcess):
                other.kill()
        psutil.wait_procs(remaining, timeout=10)
