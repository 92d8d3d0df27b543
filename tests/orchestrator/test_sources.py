"""Blob sources: an object store with faults, and peers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from assets.content import Blob
from assets.errors import StoreError, StoreUnavailable
from assets.rendezvous import ranked
from assets.storage.object_paths import blob_key
from assets.storage.object_store import FsspecStore, put_bytes
from assets.storage.signing import Signer
from orchestrator.breaker import Breaker
from orchestrator.download import StoreSource, TransferLimits
from orchestrator.errors import SourceDown, TierError
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner

DATA = hashlib.shake_256(b"blob").digest(100_000)
BLOB = Blob("pblob", hashlib.sha256(DATA).hexdigest(), len(DATA))
QUICK = TransferLimits(
    range_bytes=10_000, at_once=4, attempts=3, least_bytes_s=1e6, grace_s=1, pause_s=0
)


class MisbehavingStore(FsspecStore):
    """A directory store; ``faults(data, start, times)`` returns fewer or other bytes, or raises.

    ``times`` is the number of reads at this start.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(f"file://{root}")
        put_bytes(self, blob_key(BLOB), DATA)
        self.asked: Counter[int] = Counter()
        self.faults: Callable[[bytes, int, int], bytes] = lambda data, start, times: data
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def read_range(self, key: str, start: int, stop: int, timeout_s: float) -> bytes:
        with self._lock:
            self.asked[start] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            data = super().read_range(key, start, stop, timeout_s)
            return self.faults(data, start, self.asked[start])
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def store(tmp_path: Path) -> MisbehavingStore:
    return MisbehavingStore(tmp_path / "store")


def fetched(store: MisbehavingStore, breaker: Breaker | None = None) -> bytes:
    file = io.BytesIO()
    StoreSource(store, QUICK, breaker).fetch(BLOB, file)
    return file.getvalue()


def test_ranges_are_read_concurrently_and_written_in_order(store: MisbehavingStore) -> None:
    together = threading.Barrier(4, timeout=10)

    def wait(data: bytes, start: int, times: int) -> bytes:
        if start < 40_000:
            together.wait()
        return data

    store.faults = wait
    assert fetched(store) == DATA
    assert store.most_at_once == 4
    assert set(store.asked.values()) == {1}


def test_a_truncated_range_resumes_at_its_first_missing_byte(store: MisbehavingStore) -> None:
    store.faults = lambda data, start, times: data[:4_000] if start == 20_000 else data
    assert fetched(store) == DATA
    assert store.asked[20_000] == 1
    assert store.asked[24_000] == 1


def test_only_the_failed_range_is_retried(store: MisbehavingStore) -> None:
    def reset(data: bytes, start: int, times: int) -> bytes:
        if start == 50_000 and times < 3:
            raise StoreUnavailable("connection reset")
        return data

    store.faults = reset
    assert fetched(store) == DATA
    assert store.asked[50_000] == 3
    assert sum(store.asked.values()) == 12


def test_the_breaker_opens_after_repeated_failures_and_recovers(store: MisbehavingStore) -> None:
    now_s = 0.0
    breaker = Breaker("the store", failures=3, cool_s=10.0, clock=lambda: now_s)

    def broken(data: bytes, start: int, times: int) -> bytes:
        raise StoreUnavailable("503")

    store.faults = broken
    for _ in range(3):
        with pytest.raises(SourceDown, match="503"):
            fetched(store, breaker)
    asked = sum(store.asked.values())
    with pytest.raises(SourceDown, match="in a row") as down:
        fetched(store, breaker)
    assert 0 < down.value.retry_after_s <= 10
    assert sum(store.asked.values()) == asked
    now_s = 11.0
    store.faults = lambda data, start, times: data
    breaker.ask()  # the trial call
    with pytest.raises(SourceDown):
        breaker.ask()  # rejected until it ends
    breaker.answered()
    assert fetched(store, breaker) == DATA


def test_a_too_slow_store_is_given_up(store: MisbehavingStore) -> None:
    """One byte per read is below the minimum rate."""
    now_s = 0.0

    def drip(data: bytes, start: int, times: int) -> bytes:
        nonlocal now_s
        now_s += 0.3
        return data[:1]

    store.faults = drip
    source = StoreSource(store, QUICK, clock=lambda: now_s)
    with pytest.raises(SourceDown, match="MB/s"):
        source.fetch(BLOB, io.BytesIO())
    assert sum(store.asked.values()) < 100


def test_a_missing_blob_does_not_open_the_breaker(tmp_path: Path) -> None:
    breaker = Breaker("the store", failures=1)
    source = StoreSource(FsspecStore(f"file://{tmp_path}"), QUICK, breaker)
    for _ in range(3):
        with pytest.raises(StoreError, match="holds no"):
            source.fetch(BLOB, io.BytesIO())
    breaker.ask()


def provisioner(store: MisbehavingStore, root: Path, **budgets: int) -> Provisioner:
    disk = FileTier("disk", root / "disk", budgets.get("disk", 1_000_000))
    host = FileTier("host", root / "host", budgets.get("host", 1_000_000))
    return Provisioner(StoreSource(store, QUICK), disk, host)


def test_flipped_bytes_never_become_visible(store: MisbehavingStore, tmp_path: Path) -> None:
    flipped = bytes([DATA[0] ^ 1])
    store.faults = lambda data, start, times: data if start else flipped + data[1:]
    tiers = provisioner(store, tmp_path)
    with pytest.raises(TierError):
        tiers.acquire(BLOB)
    assert all(not tier.resident() for tier in tiers.tiers)
    store.faults = lambda data, start, times: data
    lease, fetch = tiers.acquire(BLOB)
    assert (fetch.tier, lease.path.read_bytes()) == ("store", DATA)
    lease.release()


def test_a_corrupted_disk_copy_is_quarantined_and_fetched_again(
    store: MisbehavingStore, tmp_path: Path
) -> None:
    tiers = provisioner(store, tmp_path)
    tiers.acquire(BLOB)[0].release()
    tiers.tiers[0].evict(BLOB.key)
    path = tmp_path / "disk" / "objects" / BLOB.key
    path.write_bytes(b"?" + DATA[1:])
    lease, fetch = tiers.acquire(BLOB)
    assert fetch.tier == "store"
    assert lease.path.read_bytes() == DATA
    lease.release()
    quarantined = tmp_path / "disk" / "quarantine" / BLOB.key
    assert quarantined.read_bytes() == b"?" + DATA[1:]
    for tier in tiers.tiers:
        tier.check_integrity()


# Peers


class Cluster:
    """Nodes with tiers and a common store."""

    def __init__(self, store: MisbehavingStore, root: Path, count: int) -> None:
        self.store = store
        signer = Signer(b"s" * 32)
        self.nodes = {f"n{i}": provisioner(store, root / f"n{i}") for i in range(count)}
        self.urls = {
            name: node.join(name, "127.0.0.1", signer) for name, node in self.nodes.items()
        }
        for node in self.nodes.values():
            node.set_peers(self.urls)
        self.order = ranked(BLOB.key, self.urls)

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


@pytest.fixture
def cluster(store: MisbehavingStore, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(store, tmp_path, 4)
    yield cluster
    cluster.close()


def test_concurrent_fetches_by_all_nodes_read_the_store_once(cluster: Cluster) -> None:
    results = {}
    together = threading.Barrier(len(cluster.nodes), timeout=10)

    def acquire(name: str) -> None:
        together.wait()
        lease, fetch = cluster.nodes[name].acquire(BLOB)
        results[name] = (fetch.tier, lease.path.read_bytes() == DATA)
        lease.release()

    threads = [threading.Thread(target=acquire, args=[name]) for name in cluster.nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(cluster.store.asked.values()) == {1}
    assert all(is_intact for _, is_intact in results.values())
    owner = cluster.order[0]
    other_tiers = [tier for name, (tier, _) in results.items() if name != owner]
    assert other_tiers == ["peer"] * 3


def test_the_next_peer_serves_when_the_owner_is_down(cluster: Cluster) -> None:
    first, second, third, _ = cluster.order
    cluster.nodes[first].close()
    started = time.monotonic()
    lease, fetch = cluster.nodes[third].acquire(BLOB)
    lease.release()
    assert fetch.tier == "peer"
    assert time.monotonic() - started < 10
    assert BLOB.key in cluster.nodes[second].tiers[1].resident()
    cluster.nodes[first] = cluster.nodes[second]  # not closed twice


def test_wrong_bytes_from_a_peer_are_fetched_from_the_store(
    cluster: Cluster, tmp_path: Path
) -> None:
    owner, other, *_ = cluster.order
    cluster.nodes[owner].acquire(BLOB)[0].release()
    for tier in ("host", "disk"):
        (tmp_path / owner / tier / "objects" / BLOB.key).write_bytes(b"?" + DATA[1:])
    lease, fetch = cluster.nodes[other].acquire(BLOB)
    assert fetch.tier == "store"
    assert lease.path.read_bytes() == DATA
    lease.release()


def test_the_endpoint_serves_peers_only(cluster: Cluster) -> None:
    owner = cluster.order[0]
    cluster.nodes[owner].acquire(BLOB)[0].release()
    url = f"{cluster.urls[owner]}/blobs/{BLOB.key}"
    query = {"size": str(BLOB.size_bytes), "sha256": BLOB.sha256}
    soon = int(time.time()) + 60
    scope = f"{BLOB.key}/{BLOB.size_bytes}/{BLOB.sha256}"
    valid = Signer(b"s" * 32).sign("PEER", scope, soon)
    tokens = {
        "x": 403,
        Signer(b"x" * 32).sign("PEER", scope, soon): 403,
        Signer(b"s" * 32).sign("GET", scope, soon): 403,
        Signer(b"s" * 32).sign("PEER", f"another{scope}", soon): 403,
        Signer(b"s" * 32).sign("PEER", BLOB.key, soon): 403,
        Signer(b"s" * 32).sign("PEER", scope, soon - 120): 403,
        valid: 200,
    }
    with httpx2.Client() as client:
        for token, status in tokens.items():
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.get(url, params=query, headers=headers)
            assert answer.status_code == status
        assert answer.content == DATA
        headers = {"Authorization": f"Bearer {valid}"}
        assert client.get(url, headers=headers).status_code == 400
        for field, wrong in (("size", str(1 << 40)), ("sha256", "0" * 64)):
            answer = client.get(url, params={**query, field: wrong}, headers=headers)
            assert answer.status_code == 403
        bad = url.replace("/blobs/", "/../etc/")
        assert client.get(bad, params=query, headers=headers).status_code == 400


def test_unauthenticated_connections_take_no_thread_and_are_limited(cluster: Cluster) -> None:
    owner = cluster.order[0]
    host, _, port = cluster.urls[owner].removeprefix("http://").rpartition(":")
    before = threading.active_count()
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(100)
        ]
        for connection in silent[:64]:
            connection.sendall(b"GET /blobs/x HTTP/1.1\r\n")
        assert silent[-1].recv(1) == b""  # refused at once
        assert threading.active_count() <= before
    lease, _ = cluster.nodes[cluster.order[1]].acquire(BLOB)
    lease.release()


async def test_an_endpoint_starts_within_a_running_event_loop(tmp_path: Path) -> None:
    """As in a Ray actor's constructor."""
    disk, host = (FileTier(name, tmp_path / name, 1 << 20) for name in ("disk", "host"))
    node = Provisioner(StoreSource(FsspecStore(f"file://{tmp_path}/store")), disk, host)
    assert node.join("n", "127.0.0.1", Signer(b"s" * 32)).startswith("http://127.0.0.1:")
    node.close()


def test_an_endpoint_serves_when_uvloop_is_the_default_loop(
    store: MisbehavingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a Ray Serve replica."""
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)
    cluster = Cluster(store, tmp_path, 2)
    try:
        cluster.nodes[cluster.order[0]].acquire(BLOB)[0].release()
        lease, fetch = cluster.nodes[cluster.order[1]].acquire(BLOB)
        lease.release()
        assert fetch.tier == "peer"
    finally:
        cluster.close()


def test_owners_are_the_same_on_every_node_and_spread_evenly(cluster: Cluster) -> None:
    backwards = dict(reversed(cluster.urls.items()))
    firsts: Counter[str] = Counter()
    for index in range(400):
        assert ranked(f"k{index}", cluster.urls) == ranked(f"k{index}", backwards)
        firsts[ranked(f"k{index}", cluster.urls)[0]] += 1
    assert min(firsts.values()) > 60
