"""Bringing a blob up: peer or object store → disk → host, once per node, with a receipt."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from assets.content import Blob
from assets.storage.signing import Signer
from orchestrator.download import BlobSource
from orchestrator.errors import Corrupt, SourceDown, TierError
from orchestrator.file_tier import FileLease, FileTier
from orchestrator.peers import PeerServer, PeerSource

TierName = Literal["gpu", "host", "disk", "peer", "store"]

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class AssetFetch:
    """A receipt's line: where a blob was when it was wanted, and what that cost."""

    key: str
    tier: TierName
    bytes_moved: int
    fetch_s: float


class Provisioner:
    """Leases a blob on the highest file tier that takes it."""

    def __init__(
        self,
        source: BlobSource,
        disk: FileTier,
        host: FileTier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._disk = disk
        self._host = host
        self._clock = clock
        self._peers: PeerSource | None = None
        self._server: PeerServer | None = None

    @property
    def tiers(self) -> Sequence[FileTier]:
        return (self._host, self._disk)

    # Neighbours

    def join(self, node: str, host: str, signer: Signer) -> str:
        """Serve this node's blobs to its neighbours at an address of ``host``, and ask them
        before the store; the endpoint's URL."""
        self._peers = PeerSource(node, self._source, signer)
        self._server = PeerServer(self._for_a_peer, signer, host)
        return self._server.url

    def set_peers(self, nodes: Mapping[str, str]) -> None:
        """Every node there is, with its endpoint."""
        if self._peers is not None and self._server is not None:
            # This one is always among them: else two nodes might each wait for the other.
            self._peers.nodes = {**nodes, self._peers.node: self._server.url}

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _for_a_peer(self, blob: Blob) -> FileLease:
        lease = self._host.lease(blob)
        if lease is None:
            lease, _ = self._disk.admit(blob, lambda file: self._source.fetch(blob, file))
        return lease

    # Blobs

    def acquire(self, blob: Blob, tenant_id: str = "") -> tuple[FileLease, AssetFetch]:
        """A lease on the blob's file, in host RAM if it fits there, else on disk. ``tenant_id`` is
        the tenant that wants it.

        Raises:
            TierError: neither tier has room, or the bytes cannot be had. A rotten copy on disk
            is put aside and fetched anew. StoreError: there is no such blob.
        """
        started = self._clock()
        lease = self._host.lease(blob, tenant_id)
        if lease is not None:
            return lease, AssetFetch(blob.key, "host", 0, self._clock() - started)
        try:
            lease, tier, moved = self._climb(blob, tenant_id)
        except _Rotten:
            self._disk.quarantine(blob.key)
            lease, tier, moved = self._climb(blob, tenant_id)
        return lease, AssetFetch(blob.key, tier, moved, self._clock() - started)

    def _climb(self, blob: Blob, tenant_id: str) -> tuple[FileLease, TierName, int]:
        on_disk, tier = self._on_disk(blob, tenant_id)
        moved = 0 if tier == "disk" else blob.size_bytes
        try:
            lease, copied = self._host.admit(blob, lambda file: _copy(on_disk, file), tenant_id)
        except Corrupt as error:
            on_disk.release()
            raise _Rotten(str(error)) from None
        except TierError:  # no room in memory: the file on disk serves as well, only slower
            return on_disk, tier, moved
        except BaseException:
            on_disk.release()
            raise
        on_disk.release()
        return lease, tier, moved + (blob.size_bytes if copied else 0)

    def _on_disk(self, blob: Blob, tenant_id: str) -> tuple[FileLease, TierName]:
        """A lease on the disk tier, and where the bytes came from."""
        peers = self._peers
        if peers is not None and peers.nodes:
            came_from: list[TierName] = ["disk"]
            try:
                lease, _ = self._disk.admit(
                    blob, lambda file: came_from.append(peers.fetch(blob, file)), tenant_id
                )
            except (SourceDown, Corrupt):
                pass  # half of it came, or something else: the store has the last word
            else:
                return lease, came_from[-1]
        lease, fetched = self._disk.admit(blob, lambda f: self._source.fetch(blob, f), tenant_id)
        return lease, "store" if fetched else "disk"

    def forget(self, key: str) -> bool:
        """Remove a blob that nobody may ask for any more; whether it is gone from both tiers."""
        gone = True
        for tier in self.tiers:
            tier.unpin(key)
            gone &= key not in tier.resident() or tier.evict(key)
        return gone


class _Rotten(Corrupt):
    """The copy on disk is not what it was when it came."""


def _copy(lease: FileLease, target: BinaryIO) -> None:
    with open(lease.path, "rb", buffering=0) as source:
        shutil.copyfileobj(source, target, CHUNK_BYTES)
