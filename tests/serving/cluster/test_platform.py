"""The platform on Ray: two replicas, two gateways; processes are killed one by one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from benchmarks.faults.client import SEEDS, Endpoint, Load, ask, body, known
from serving.bootstrap.backends import open_backends
from serving.bootstrap.secret import platform_secret
from tests.support.platforms import Running, running
from tests.support.samples import write_kohya_lora
from tests.support.servers import clean_environment, free_port
from tests.support.store_proxy import StoreProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("platform"), replicas=2, gateways=2) as server:
        yield server


def endpoint(platform: Running) -> Endpoint:
    return Endpoint([platform.url], platform.key("acme"))


def up(platform: Running) -> list[dict[str, Any]]:
    return [r for r in platform.status()["replicas"] if r["state"] == "up"]


def golden_of(platform: Running) -> dict[int, str | None]:
    golden = {seed: ask(endpoint(platform), seed).image for seed in SEEDS}
    assert None not in golden.values()
    assert len(set(golden.values())) == len(SEEDS)
    return golden


def serving_processes(platform: Running) -> set[int]:
    """Process ids of the gateways, dispatcher, ingest and replicas."""
    ours = ("ray::DispatcherActor", "ray::IngestActor", "ray::ServeReplica", "spawn_main")
    found = set()
    for process in platform.descendants():
        with suppress(psutil.Error):
            if any(name in part for name in ours for part in process.cmdline()):
                found.add(process.pid)
    return found


def check(load: Load, golden: dict[int, str | None]) -> None:
    """No answer is an error or another image; connections may break."""
    assert not load.errors
    assert all(answer.image == golden[answer.seed] for answer in load.answers)
    messages = [message for answer in load.answers for message in answer.said.split("; ")]
    assert not [message for message in messages if message[:1].isdigit()]


def test_killing_a_replica_and_a_gateway_under_load(platform: Running) -> None:
    golden = golden_of(platform)
    with Load(known(endpoint(platform)), clients=4) as load:
        load.await_more(8)
        busy = max(up(platform), key=lambda r: r["running"])
        os.kill(busy["pid"], signal.SIGKILL)
        load.await_more(12)
        gateways = platform.gateways()
        assert len(gateways) == 2
        os.kill(gateways[0], signal.SIGKILL)
        load.await_more(12)
    check(load, golden)
    deadline = time.monotonic() + 120
    while len(up(platform)) < 2 or len(platform.gateways()) < 2:
        assert time.monotonic() < deadline, platform.status()
        time.sleep(0.2)
    pids = {replica["pid"] for replica in up(platform)}
    assert busy["pid"] not in pids
    while any(replica["running"] for replica in platform.status()["replicas"]):
        assert time.monotonic() < deadline


def test_nothing_is_open_to_the_network_or_to_other_users(platform: Running) -> None:
    golden_of(platform)
    family = [psutil.Process(platform.process.pid), *platform.descendants()]
    listening = {
        (process.name(), connection.laddr.ip)
        for process in family
        for connection in process.net_connections(kind="tcp")
        if connection.status == "LISTEN"
    }
    assert len(listening) > 5
    assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}
    ray_folder, data = platform.settings.resolved_ray_temp_dir, platform.settings.data_dir
    for folder in (data, ray_folder, platform.settings.resolved_host_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    written = [path for folder in (data, ray_folder) for path in folder.rglob("*")]
    files = [path for path in written if path.is_file() and not path.is_symlink()]
    assert not [
        path for path in files if path.is_relative_to(data) and is_accessible_to_others(path)
    ]
    secret = platform_secret(platform.settings)
    assert [path for path in files if secret in path.read_bytes()] == [data / "secret"]
    for process in family:  # `ps` shows command lines to everyone
        assert secret.decode() not in " ".join(process.cmdline())


def is_accessible_to_others(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o077)


def test_every_gateway_exports_the_metrics_of_all_gateways(platform: Running) -> None:
    """A scrape reaches a random gateway, so each exports all counters."""
    metric = "ao_http_requests_total{"
    route = 'route="/healthz"'

    def count() -> float:
        lines = httpx2.get(f"{platform.url}/metrics", timeout=30).text.splitlines()
        samples = [line for line in lines if line.startswith(metric) and route in line]
        return sum(float(line.rpartition(" ")[2]) for line in samples)

    before = count()
    for _ in range(40):  # one connection each, so both gateways get some
        httpx2.get(f"{platform.url}/healthz", timeout=30).raise_for_status()
    deadline = time.monotonic() + 30  # responses are counted after sending
    while {count() for _ in range(10)} != {before + 40}:
        assert time.monotonic() < deadline


def test_a_second_platform_does_not_start_on_the_same_data_folder(platform: Running) -> None:
    """Stopping, it would delete the first one's tiers."""
    second = platform.settings.model_copy(update={"port": free_port()})
    environment = {**clean_environment(), **second.to_environment()}
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli.main", "serve"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "another asset-orchestrator serve uses" in done.stderr
    assert "AO_DATA_DIR" in done.stderr
    assert ask(endpoint(platform), 0).image is not None


def test_a_killed_dispatcher_is_restarted(platform: Running) -> None:
    golden = golden_of(platform)
    dispatcher = next(
        p for p in platform.descendants() if any("DispatcherActor" in c for c in p.cmdline())
    )
    with Load(known(endpoint(platform)), clients=4) as load:
        load.await_more(4)
        dispatcher.kill()
        load.await_more(8)
    check(load, golden)


def test_a_killed_control_plane_restarts_with_its_tables(platform: Running) -> None:
    golden = golden_of(platform)
    (old,) = [p for p in platform.descendants() if p.name() == "gcs_server"]
    with Load(known(endpoint(platform)), clients=4) as load:
        load.await_more(4)
        old.kill()
        load.await_more(8)
        busy = max(up(platform), key=lambda r: r["running"])
        os.kill(busy["pid"], signal.SIGKILL)
        load.await_more(8)
    check(load, golden)
    (new,) = [p for p in platform.descendants() if p.name() == "gcs_server"]
    assert new.pid != old.pid
    deadline = time.monotonic() + 120
    while len(up(platform)) < 2 or busy["pid"] in {r["pid"] for r in up(platform)}:
        assert time.monotonic() < deadline, platform.status()
        time.sleep(0.2)


def test_sighup_replaces_every_process_while_serving(platform: Running) -> None:
    golden = golden_of(platform)
    old = serving_processes(platform)
    with Load(known(endpoint(platform)), clients=4) as load:
        load.await_more(4)
        platform.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 240
        while len(up(platform)) < 2 or old & serving_processes(platform):
            assert time.monotonic() < deadline, platform.status()
            time.sleep(0.2)
        load.await_more(8)
    check(load, golden)


def _inspected(client: Any, asset: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 300
    while asset["status"] == "uploaded":
        assert time.monotonic() < deadline
        asset = client.asset(asset["id"])
        time.sleep(0.05)
    return asset


def test_a_trace_is_replayed_against_the_platform(platform: Running, tmp_path: Path) -> None:
    import csv
    import json

    trace = tmp_path / "trace.csv"
    loras: tuple[list[dict[str, Any]], ...] = (
        [{"id": "night", "scale": 1.0}], [{"id": "somebody's own", "scale": 0.5}], [],
    )  # fmt: skip
    columns = "arrival_s tenant checkpoint loras steps images width height"
    with open(trace, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(columns.split())
        for index, used in enumerate(loras):
            lines.writerow([index / 2, "a", "any", json.dumps(used), 2, 1, 128, 128])
    command = [sys.executable, "-m", "benchmarks", "replay", "--trace", str(trace), "--json"]
    command += ["--live", platform.url, "--key", platform.key("acme"), "--speed", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["requests"] == found["status 200"] == 3
    assert 0 < found["p50_s"] <= found["p99_s"]


def test_a_gibibyte_of_upload_costs_no_memory(platform: Running, tmp_path: Path) -> None:
    """Samples all processes' resident memory while 1 GiB is uploaded and inspected.

    The file is well-formed safetensors of unknown kind, hence rejected.
    """
    import torch

    from assets.formats.tensors import PlannedTensor, write_tensors

    big = tmp_path / "big.safetensors"
    block = PlannedTensor("F16", (1 << 26,), lambda: torch.zeros(1 << 26, dtype=torch.float16))
    planned = {f"block.{i}": block for i in range(8)}
    assert write_tensors(big, planned, {}).size_bytes > 1 << 30
    ask(endpoint(platform), 0)
    junk = tmp_path / "junk.safetensors"  # starts the sandbox first
    junk.write_bytes(b"junk")
    _inspected(platform.client(), platform.client().upload(junk, "lora", "junk"))
    before = {p.pid: p.memory_info().rss for p in platform.descendants()}
    peak = dict(before)
    done = threading.Event()

    samples = 0

    def watch() -> None:
        nonlocal samples
        while not done.is_set():
            for process in platform.descendants():
                try:
                    rss = process.memory_info().rss
                except psutil.Error:
                    continue
                peak[process.pid] = max(peak.get(process.pid, rss), rss)
                before.setdefault(process.pid, rss)
            samples += 1
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        client = platform.client()
        asset = _inspected(client, client.upload(big, "lora", "big"))
    finally:
        done.set()
        watcher.join()
    assert asset["status"] == "rejected"
    assert asset["size_bytes"] > 1 << 30
    grown = {pid: (peak[pid] - before[pid]) >> 10 for pid in peak}
    print(f"{samples} samples; growth in KiB by process: {sorted(grown.values(), reverse=True)}")
    assert samples > 10
    assert max(grown.values()) < 64 << 10, grown


def test_a_deletion_reaches_the_tiers_of_the_cluster(
    platform: Running, schema: Any, tmp_path: Path
) -> None:
    """Through gateways, dispatcher and Serve's replicas."""
    client = platform.client()
    file = write_kohya_lora(tmp_path / "own.safetensors", schema, seed=78, only="attn2")
    asset = client.await_ready(client.upload(file, "lora", "own")["id"])
    found_on = client.call("POST", f"/v1/assets/{asset['id']}/warm")["found_on"]
    assert set(found_on) == {replica["id"] for replica in up(platform)}
    assert len(found_on) == 2
    record = open_backends(platform.settings).records.get(asset["id"])
    assert record is not None
    (key,) = (blob.key for blob in record.parts.values())
    folders = (platform.settings.resolved_disk_dir, platform.settings.resolved_host_dir)

    def is_cached() -> bool:
        return any((folder / "objects" / key).exists() for folder in folders)

    assert is_cached()
    client.generate(body(0, {"loras": {asset["id"]: 1.0}}))
    client.call("DELETE", f"/v1/assets/{asset['id']}")
    deadline = time.monotonic() + 30
    while is_cached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_any_gateway_follows_any_job(platform: Running) -> None:
    """Each of 12 connections reaches one of two gateways; one of them runs the job."""
    url, headers = platform.url, {**endpoint(platform).headers, "X-OctoAI-Async": "1"}
    slow = {**body(0), "steps": 60}
    job = httpx2.post(f"{url}/generate/sdxl", json=slow, headers=headers, timeout=60).json()

    def follow(_index: int) -> tuple[set[str], int]:
        kinds: list[str] = []
        with (
            httpx2.Client(timeout=120) as http,
            http.stream("GET", f"{url}/v1/jobs/{job['response_id']}/events") as answer,
        ):
            address = answer.extensions["network_stream"].get_extra_info("client_addr")
            gateway = _accepted_by(platform, address[1])
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kinds.append(value)
        assert kinds[-1] == "done"
        return set(kinds), gateway

    with ThreadPoolExecutor(12) as pool:
        followed = list(pool.map(follow, range(12)))
    assert all("step" in kinds for kinds, _ in followed)
    assert {gateway for _, gateway in followed} == set(platform.gateways())


def _accepted_by(platform: Running, port: int) -> int:
    """The gateway with the other end of a client's connection."""
    for pid in platform.gateways():
        for connection in psutil.Process(pid).net_connections(kind="tcp"):
            if connection.raddr and connection.raddr.port == port:
                return pid
    raise AssertionError(f"no gateway is connected to port {port}")


def test_sigterm_finishes_running_requests(platform: Running) -> None:
    """Last: it stops the module's platform."""
    slow = {**body(0), "steps": 60}
    with ThreadPoolExecutor(4) as pool:
        requests = [
            pool.submit(
                httpx2.post, f"{platform.url}/generate/sdxl", json=slow,
                headers=endpoint(platform).headers, timeout=120,
            )
            for _ in range(4)
        ]  # fmt: skip
        while sum(replica["running"] for replica in platform.status()["replicas"]) < 4:
            assert not any(request.done() for request in requests)
        platform.process.send_signal(signal.SIGTERM)
        assert [request.result().status_code for request in requests] == [200] * 4
    assert platform.process.wait(timeout=120) in (0, -signal.SIGTERM)


def test_the_platform_on_two_nodes(tmp_path: Path, s3_server: dict[str, Any]) -> None:
    """Each node has its own tiers.

    A shared asset is fetched from the store once; the other node gets it from its peer.
    """
    import json
    import shutil

    temporary = Path("/tmp") / f"ao-two-{os.getpid()}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AO_", "RAY_"))}
    server = s3_server["options"]["endpoint_url"]
    proxy = StoreProxy(int(server.rpartition(":")[2]))
    options = {**s3_server["options"], "endpoint_url": f"http://127.0.0.1:{proxy.port}"}
    arguments = [str(tmp_path), str(temporary), f"{s3_server['url']}/two", json.dumps(options)]
    # Ray's Cluster writes its address there.
    environment["RAY_TMPDIR"] = str(tmp_path)
    (tmp_path / "ray").mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.serving.cluster.two_nodes_script", *arguments],
            capture_output=True,
            text=True,
            timeout=400,
            env=environment,
        )
    finally:
        proxy.close()
        shutil.rmtree(temporary, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    lora = answer.pop("lora")
    gets = sum(count for path, count in proxy.gets.items() if path.endswith(lora))
    print(f"{lora}: {gets} request to the store; {answer}")
    assert gets == 1
    assert "peer" in answer["warmed from"]  # the other node owns the key
    assert answer["nodes that hold it"] == [["disk", "host"]] * 2
    assert answer["distinct images"] == 1
    assert answer["second gateway"] == 200
