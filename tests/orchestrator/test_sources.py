"""Where blobs come from: a store that misbehaves, and neighbours."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from assets.content import Blob
from assets.errors import StoreBroke, StoreError
from assets.storage.object_paths import blob_key
from assets.storage.object_store import FsspecStore, put_bytes
from assets.storage.signing import Signer
from orchestrator.breaker import Breaker
from orchestrator.download import StoreSource, TransferLimits
from orchestrator.errors import SourceDown, TierError
from orchestrator.file_tier import FileTier
from orchestrator.peers import owners
from orchestrator.provision import Provisioner

DATA = hashlib.shake_256(b"blob").digest(100_000)
BLOB = Blob("pblob", hashlib.sha256(DATA).hexdigest(), len(DATA))
QUICK = TransferLimits(
    range_bytes=10_000, at_once=4, attempts=3, least_bytes_s=1e6, grace_s=1, pause_s=0
)


class MisbehavingStore(FsspecStore):
    """A real directory, with a fault in front of it. ``faults`` may return fewer bytes, others,
    or raise; it is given the range and how often that has been asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(f"file://{root}")
        put_bytes(self, blob_key(BLOB), DATA)
        self.asked: Counter[int] = Counter()
        self.faults = lambda data, start, times: data
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


def test_ranges_come_side_by_side_and_in_order(store: MisbehavingStore) -> None:
    together = threading.Barrier(4, timeout=10)

    def wait(data: bytes, start: int, times: int) -> bytes:
        if start < 40_000:
            together.wait()
        return data

    store.faults = wait
    assert fetched(store) == DATA
    assert store.most_at_once == 4
    assert set(store.asked.values()) == {1}


def test_a_range_that_was_cut_goes_on_where_it_was(store: MisbehavingStore) -> None:
    store.faults = lambda data, start, times: data[:4_000] if start == 20_000 else data
    assert fetched(store) == DATA
    assert store.asked[20_000] == 1
    assert store.asked[24_000] == 1


def test_what_fails_is_asked_again_and_the_rest_is_not(store: MisbehavingStore) -> None:
    def reset(data: bytes, start: int, times: int) -> bytes:
        if start == 50_000 and times < 3:
            raise StoreBroke("connection reset")
        return data

    store.faults = reset
    assert fetched(store) == DATA
    assert store.asked[50_000] == 3
    assert sum(store.asked.values()) == 12


def test_a_store_that_keeps_failing_is_left_alone_for_a_while(store: MisbehavingStore) -> None:
    now_s = 0.0
    breaker = Breaker("the store", failures=3, cool_s=10.0, clock=lambda: now_s)

    def broken(data: bytes, start: int, times: int) -> bytes:
        raise StoreBroke("503")

    store.faults = broken
    for _ in range(3):
        with pytest.raises(SourceDown, match="503"):
            fetched(store, breaker)
    asked = sum(store.asked.values())
    with pytest.raises(SourceDown, match="in a row") as down:
        fetched(store, breaker)
    assert 0 < down.value.retry_after_s <= 10
    assert sum(store.asked.values()) == asked  # it was not even asked
    now_s = 11.0
    store.faults = lambda data, start, times: data
    breaker.ask()  # one may try
    with pytest.raises(SourceDown):
        breaker.ask()  # and no other, until that one knows
    breaker.answered()
    assert fetched(store, breaker) == DATA


def test_a_dripping_store_is_given_up(store: MisbehavingStore) -> None:
    """A byte at a time, for ever, is slower than the least that is accepted."""
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


def test_no_such_blob_is_no_fault_of_the_store(tmp_path: Path) -> None:
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
    lease, found = tiers.acquire(BLOB)
    assert (found.tier, lease.path.read_bytes()) == ("store", DATA)
    lease.release()


def test_what_rots_on_disk_is_put_aside_and_fetched_anew(
    store: MisbehavingStore, tmp_path: Path
) -> None:
    tiers = provisioner(store, tmp_path)
    tiers.acquire(BLOB)[0].release()
    tiers.tiers[0].evict(BLOB.key)
    path = tmp_path / "disk" / "objects" / BLOB.key
    path.write_bytes(b"?" + DATA[1:])
    lease, found = tiers.acquire(BLOB)
    assert found.tier == "store"
    assert lease.path.read_bytes() == DATA
    lease.release()
    aside = tmp_path / "disk" / "quarantine" / BLOB.key
    assert aside.read_bytes() == b"?" + DATA[1:]
    for tier in tiers.tiers:
        tier.check_integrity()


# Neighbours


class Cluster:
    """Nodes with tiers of their own over one store."""

    def __init__(self, store: MisbehavingStore, root: Path, count: int) -> None:
        self.store = store
        signer = Signer(b"s" * 32)
        self.nodes = {f"n{i}": provisioner(store, root / f"n{i}") for i in range(count)}
        self.urls = {
            name: node.join(name, "127.0.0.1", signer) for name, node in self.nodes.items()
        }
        for node in self.nodes.values():
            node.apply_directives(self.urls)
        self.order = owners(BLOB.key, self.urls)

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


@pytest.fixture
def cluster(store: MisbehavingStore, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(store, tmp_path, 4)
    yield made
    made.close()


def test_a_stampede_of_nodes_asks_the_store_once(cluster: Cluster) -> None:
    found = {}
    together = threading.Barrier(len(cluster.nodes), timeout=10)

    def want(name: str) -> None:
        together.wait()
        lease, line = cluster.nodes[name].acquire(BLOB)
        found[name] = (line.tier, lease.path.read_bytes() == DATA)
        lease.release()

    threads = [threading.Thread(target=want, args=[name]) for name in cluster.nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(cluster.store.asked.values()) == {1}
    assert all(right for _, right in found.values())
    owner = cluster.order[0]
    others = [tier for name, (tier, _) in found.items() if name != owner]
    assert others == ["peer"] * 3


def test_an_owner_that_is_gone_does_no_harm(cluster: Cluster) -> None:
    first, second, third, _ = cluster.order
    cluster.nodes[first].close()
    started = time.monotonic()
    lease, line = cluster.nodes[third].acquire(BLOB)
    lease.release()
    assert line.tier == "peer"
    assert time.monotonic() - started < 10
    assert BLOB.key in cluster.nodes[second].tiers[1].resident()
    cluster.nodes[first] = cluster.nodes[second]  # closed once


def test_a_neighbour_that_sends_other_bytes_is_not_believed(
    cluster: Cluster, tmp_path: Path
) -> None:
    owner, other, *_ = cluster.order
    cluster.nodes[owner].acquire(BLOB)[0].release()
    for tier in ("host", "disk"):
        (tmp_path / owner / tier / "objects" / BLOB.key).write_bytes(b"?" + DATA[1:])
    lease, line = cluster.nodes[other].acquire(BLOB)
    assert line.tier == "store"
    assert lease.path.read_bytes() == DATA
    lease.release()


def test_the_endpoint_is_for_neighbours_only(cluster: Cluster) -> None:
    owner = cluster.order[0]
    cluster.nodes[owner].acquire(BLOB)[0].release()
    url = f"{cluster.urls[owner]}/blobs/{BLOB.key}"
    query = {"size": str(BLOB.size_bytes), "sha256": BLOB.sha256}
    soon = int(time.time()) + 60
    what = f"{BLOB.key}/{BLOB.size_bytes}/{BLOB.sha256}"
    right = Signer(b"s" * 32).sign("PEER", what, soon)
    tokens = {
        "x": 403,
        Signer(b"x" * 32).sign("PEER", what, soon): 403,
        Signer(b"s" * 32).sign("GET", what, soon): 403,
        Signer(b"s" * 32).sign("PEER", f"another{what}", soon): 403,
        Signer(b"s" * 32).sign("PEER", BLOB.key, soon): 403,
        Signer(b"s" * 32).sign("PEER", what, soon - 120): 403,
        right: 200,
    }
    with httpx.Client() as client:
        for token, status in tokens.items():
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.get(url, params=query, headers=headers)
            assert answer.status_code == status
        assert answer.content == DATA
        headers = {"Authorization": f"Bearer {right}"}
        assert client.get(url, headers=headers).status_code == 400
        for field, other in (("size", str(1 << 40)), ("sha256", "0" * 64)):
            answer = client.get(url, params={**query, field: other}, headers=headers)
            assert answer.status_code == 403
        bad = url.replace("/blobs/", "/../etc/")
        assert client.get(bad, params=query, headers=headers).status_code == 400


def test_callers_that_show_nothing_take_no_thread_and_few_connections(cluster: Cluster) -> None:
    owner = cluster.order[0]
    host, _, port = cluster.urls[owner].removeprefix("http://").rpartition(":")
    before = threading.active_count()
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(100)
        ]
        for one in silent[:64]:
            one.sendall(b"GET /blobs/x HTTP/1.1\r\n")
        assert silent[-1].recv(1) == b""  # refused at once
        assert threading.active_count() <= before
    lease, _ = cluster.nodes[cluster.order[1]].acquire(BLOB)
    lease.release()


async def test_an_endpoint_starts_where_another_loop_runs(tmp_path: Path) -> None:
    """As in an actor of Ray, whose constructor runs on its loop."""
    tiers = [FileTier(name, tmp_path / name, 1 << 20) for name in ("disk", "host")]
    node = Provisioner(StoreSource(FsspecStore(f"file://{tmp_path}/store")), *tiers)
    assert node.join("n", "127.0.0.1", Signer(b"s" * 32)).startswith("http://127.0.0.1:")
    node.close()


def test_an_endpoint_serves_where_uvloop_makes_the_loops(
    store: MisbehavingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a replica of Ray Serve."""
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)
    made = Cluster(store, tmp_path, 2)
    try:
        made.nodes[made.order[0]].acquire(BLOB)[0].release()
        lease, line = made.nodes[made.order[1]].acquire(BLOB)
        lease.release()
        assert line.tier == "peer"
    finally:
        made.close()


def test_owners_are_the_same_everywhere_and_spread(cluster: Cluster) -> None:
    backwards = dict(reversed(cluster.urls.items()))
    firsts = Counter()
    for index in range(400):
        assert owners(f"k{index}", cluster.urls) == owners(f"k{index}", backwards)
        firsts[owners(f"k{index}", cluster.urls)[0]] += 1
    assert min(firsts.values()) > 60
