"""The file tier: leases, one fetch per node, eviction and crashes; also as a state machine."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from assets.content import Blob
from orchestrator.errors import Corrupt, TierFull, TooLargeForTier
from orchestrator.file_tier import FileLease, FileTier, Fill
from orchestrator.provision import Provisioner


def content(name: str, size: int) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def blob_of(name: str, size: int) -> Blob:
    return Blob(name, hashlib.sha256(content(name, size)).hexdigest(), size)


def write(data: bytes) -> Fill:
    def write_data(file: BinaryIO) -> None:
        file.write(data)

    return write_data


def fill(blob: Blob) -> Fill:
    return write(content(blob.key, blob.size_bytes))


@pytest.fixture
def tier(tmp_path: Path) -> FileTier:
    return FileTier("disk", tmp_path, 100)


def test_admit_then_lease(tier: FileTier) -> None:
    blob = blob_of("a", 40)
    assert tier.lease(blob) is None
    lease, moved = tier.admit(blob, fill(blob))
    assert moved
    assert lease.path.read_bytes() == content("a", 40)
    lease.release()
    lease.release()
    again, moved = tier.admit(blob, fill(blob))
    assert not moved
    again.release()
    tier.check_integrity()


def test_the_oldest_entry_is_evicted_and_leased_entries_stay(tier: FileTier) -> None:
    blobs = [blob_of(name, 40) for name in "abc"]
    held, _ = tier.admit(blobs[0], fill(blobs[0]))
    tier.admit(blobs[1], fill(blobs[1]))[0].release()
    tier.admit(blobs[2], fill(blobs[2]))[0].release()
    assert set(tier.resident()) == {"a", "c"}
    big = blob_of("d", 70)
    with pytest.raises(TierFull):
        tier.admit(big, fill(big))
    assert set(tier.resident()) == {"a", "c"}
    held.release()
    tier.check_integrity()


def test_pinned_entries_stay(tier: FileTier) -> None:
    for name in "ab":
        blob = blob_of(name, 40)
        tier.admit(blob, fill(blob))[0].release()
    tier.pins.add("a")
    blob = blob_of("c", 40)
    tier.admit(blob, fill(blob))[0].release()
    assert set(tier.resident()) == {"a", "c"}
    tier.pins.remove("a")


def test_quarantined_files_count_and_are_removed_first(tier: FileTier) -> None:
    for name in "ab":
        blob = blob_of(name, 40)
        tier.admit(blob, fill(blob))[0].release()
    tier.quarantine("a")
    assert tier.used_bytes() == 80
    assert set(tier.resident()) == {"b"}
    blob = blob_of("c", 40)
    tier.admit(blob, fill(blob))[0].release()
    assert set(tier.resident()) == {"b", "c"}
    tier.check_integrity()


def test_a_full_disk_causes_eviction_and_a_retry(
    tier: FileTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is not full: the first allocation fails with ENOSPC."""
    held, other = blob_of("a", 40), blob_of("b", 40)
    tier.admit(held, fill(held))[0].release()
    real, attempts = os.posix_fallocate, []

    def full_at_first(descriptor: int, offset: int, length: int) -> None:
        attempts.append(length)
        if len(attempts) == 1:
            raise OSError(errno.ENOSPC, "no space left on device")
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full_at_first)
    tier.admit(other, fill(other))[0].release()
    assert set(tier.resident()) == {"b"}
    assert len(attempts) == 2
    tier.check_integrity()


def test_at_most_half_of_a_tier_can_be_pinned(tier: FileTier) -> None:
    for name in "ab":
        blob = blob_of(name, 40)
        tier.admit(blob, fill(blob))[0].release()
        tier.pins.add(name)
    blob = blob_of("c", 40)
    tier.admit(blob, fill(blob))[0].release()
    assert set(tier.resident()) == {"a", "c"}  # pins exceed half of the budget
    tier.pins.set_exactly({"c": "popular"})
    assert tier.pins.all() == {"c": "popular"}


def test_wrong_bytes_are_not_kept(tier: FileTier) -> None:
    blob = blob_of("a", 40)
    for wrong in (b"x" * 40, content("a", 40)[:-1], content("a", 40) + b"x"):
        with pytest.raises(Corrupt):
            tier.admit(blob, write(wrong))
    assert tier.used_bytes() == 0
    tier.check_integrity()


def test_a_blob_larger_than_the_tier_is_refused_before_the_fetch(tier: FileTier) -> None:
    def never(_file: BinaryIO) -> None:
        raise AssertionError("fetched")

    with pytest.raises(TooLargeForTier):
        tier.admit(blob_of("a", 101), never)


def test_concurrent_admits_fetch_once(tier: FileTier) -> None:
    blob, calls = blob_of("a", 40), []
    barrier = threading.Barrier(8)

    def fetch(file: BinaryIO) -> None:
        calls.append(1)
        fill(blob)(file)

    def admit() -> None:
        barrier.wait()
        tier.admit(blob, fetch)[0].release()

    threads = [threading.Thread(target=admit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


HOLD_THEN_HANG = """
import hashlib, signal, sys
from pathlib import Path
from assets.content import Blob
from orchestrator.file_tier import FileTier

tier = FileTier("disk", Path(sys.argv[1]), 100)
a, b = (Blob(k, h, 40) for k, h in zip("ab", sys.argv[2:4]))
held = tier.admit(a, lambda file: file.write(bytes.fromhex(sys.argv[4])))

def stuck(file):
    file.write(b"half")
    print("started", flush=True)
    signal.pause()

tier.admit(b, stuck)
"""


def test_a_killed_process_leaves_no_lease_and_no_partial_file(
    tier: FileTier, tmp_path: Path
) -> None:
    digests = [blob_of(name, 40).sha256 for name in "ab"]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_THEN_HANG, str(tmp_path), *digests, content("a", 40).hex()],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    big = blob_of("c", 90)
    with pytest.raises(TierFull):  # one leased, one being fetched
        tier.admit(big, fill(big))
    process.kill()
    process.communicate()
    half = blob_of("b", 40)
    lease, moved = tier.admit(half, fill(half))  # from the dead process
    assert moved
    lease.release()
    tier.admit(big, fill(big))[0].release()
    assert set(tier.resident()) == {"c"}
    tier.check_integrity()


class _Source:
    def __init__(self) -> None:
        self.fetched: list[str] = []

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        self.fetched.append(blob.key)
        file.write(content(blob.key, blob.size_bytes))


def test_provisioner_reports_the_tier_it_found_the_blob_on(tmp_path: Path) -> None:
    source = _Source()
    disk, host = FileTier("disk", tmp_path / "d", 200), FileTier("host", tmp_path / "h", 50)
    provisioner = Provisioner(source, disk, host)
    small, other, wide = blob_of("s", 40), blob_of("o", 40), blob_of("w", 90)
    expected = [
        (small, "store", 80),
        (small, "host", 0),
        (other, "store", 80),  # evicts small from host
        (small, "disk", 40),
        (wide, "store", 90),  # too big for host: from disk
        (wide, "disk", 0),
    ]
    for blob, tier, moved in expected:
        lease, fetch = provisioner.acquire(blob)
        assert (fetch.tier, fetch.bytes_moved) == (tier, moved)
        assert lease.path.read_bytes() == content(blob.key, blob.size_bytes)
        lease.release()
    assert source.fetched == ["s", "o", "w"]


NAMES = st.sampled_from("abcdef")


class FileTierMachine(RuleBasedStateMachine):
    """The accounting is consistent for any order of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tier-"))
        self.tier = FileTier("disk", self.folder, 100)
        self.leases: list[tuple[str, FileLease]] = []
        self.pins: set[str] = set()

    def size(self, name: str) -> int:
        return 15 + 12 * "abcdef".index(name)

    @rule(name=NAMES)
    def admit(self, name: str) -> None:
        blob = blob_of(name, self.size(name))
        try:
            lease, _ = self.tier.admit(blob, fill(blob))
            self.leases.append((name, lease))
        except TierFull:
            held = {n for n, _ in self.leases} | (self.pins & set(self.tier.resident()))
            assert sum(map(self.size, held)) + blob.size_bytes > 100

    @rule(name=NAMES)
    def fail(self, name: str) -> None:
        blob = blob_of(name, self.size(name))
        if name not in self.tier.resident():
            with pytest.raises((Corrupt, TierFull)):
                self.tier.admit(blob, write(b"?"))

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 100))
    def release(self, index: int) -> None:
        self.leases.pop(index % len(self.leases))[1].release()

    @rule(name=NAMES, on=st.booleans())
    def pin(self, name: str, on: bool) -> None:
        (self.tier.pins.add if on else self.tier.pins.remove)(name)
        (self.pins.add if on else self.pins.discard)(name)

    @invariant()
    def accounting_is_consistent(self) -> None:
        self.tier.check_integrity()
        assert {name for name, _ in self.leases} <= set(self.tier.resident())

    def teardown(self) -> None:
        for _, lease in self.leases:
            lease.release()
        shutil.rmtree(self.folder)


TestFileTierMachine = FileTierMachine.TestCase
TestFileTierMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
