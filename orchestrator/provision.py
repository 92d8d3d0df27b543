"""Fetch a blob into the file tiers, once per node: peer or object store → disk → host RAM."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from assets.content import Blob
from assets.storage.signing import Signer
from orchestrator.asset_fetch import AssetFetch, TierName
from orchestrator.download import BlobSource
from orchestrator.errors import Corrupt, SourceDown, TierError
from orchestrator.file_tier import FileLease, FileTier
from orchestrator.peers import PeerServer, PeerSource

CHUNK_BYTES = 4 << 20


class Provisioner:
    """Leases blobs on the highest file tier that has room."""

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

    def join(self, node: str, host: str, signer: Signer) -> str:
        """Serve blobs on ``host`` and try peers before the store; return the endpoint's URL."""
        self._peers = PeerSource(node, self._source, signer)
        self._server = PeerServer(self._acquire_for_peer, signer, host)
        return self._server.url

    def set_peers(self, nodes: Mapping[str, str]) -> None:
        """Set the reachable nodes' endpoint URLs; no effect before ``join``."""
        if self._peers is not None and self._server is not None:
            # Without this node, two nodes could wait for each other.
            self._peers.nodes = {**nodes, self._peers.node: self._server.url}

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _acquire_for_peer(self, blob: Blob) -> FileLease:
        lease = self._host.lease(blob)
        if lease is None:
            lease, _ = self._disk.admit(blob, lambda file: self._source.fetch(blob, file))
        return lease

    def acquire(self, blob: Blob, tenant_id: str = "") -> tuple[FileLease, AssetFetch]:
        """Lease the blob's file in host RAM, else on disk; refetch a corrupted disk copy.

        Raises:
            TierError: neither tier has room, or the blob cannot be fetched now.
            StoreError: the blob does not exist.
        """
        started = self._clock()
        lease = self._host.lease(blob, tenant_id)
        if lease is not None:
            return lease, AssetFetch(blob.key, "host", 0, self._clock() - started)
        try:
            lease, tier, moved = self._copy_to_host(blob, tenant_id)
        except _DiskCopyCorrupt:
            self._disk.quarantine(blob.key)
            lease, tier, moved = self._copy_to_host(blob, tenant_id)
        return lease, AssetFetch(blob.key, tier, moved, self._clock() - started)

    def _copy_to_host(self, blob: Blob, tenant_id: str) -> tuple[FileLease, TierName, int]:
        disk_lease, tier = self._acquire_on_disk(blob, tenant_id)
        moved = 0 if tier == "disk" else blob.size_bytes
        try:
            lease, copied = self._host.admit(blob, lambda file: _copy(disk_lease, file), tenant_id)
        except Corrupt as error:
            disk_lease.release()
            raise _DiskCopyCorrupt(str(error)) from None
        except TierError:  # no room in host RAM: serve from disk
            return disk_lease, tier, moved
        except BaseException:
            disk_lease.release()
            raise
        disk_lease.release()
        return lease, tier, moved + (blob.size_bytes if copied else 0)

    def _acquire_on_disk(self, blob: Blob, tenant_id: str) -> tuple[FileLease, TierName]:
        peers = self._peers
        if peers is not None and peers.nodes:
            sources: list[TierName] = ["disk"]
            try:
                lease, _ = self._disk.admit(
                    blob, lambda file: sources.append(peers.fetch(blob, file)), tenant_id
                )
            except (SourceDown, Corrupt):
                pass  # fall back to the store
            else:
                return lease, sources[-1]
        lease, fetched = self._disk.admit(blob, lambda f: self._source.fetch(blob, f), tenant_id)
        return lease, "store" if fetched else "disk"

    def forget(self, key: str) -> bool:
        """Unpin and remove a blob; return whether no tier holds it."""
        is_removed = True
        for tier in self.tiers:
            tier.pins.remove(key)
            is_removed &= key not in tier.resident() or tier.evict(key)
        return is_removed


class _DiskCopyCorrupt(Corrupt):
    pass


def _copy(lease: FileLease, target: BinaryIO) -> None:
    with open(lease.path, "rb", buffering=0) as source:
        shutil.copyfileobj(source, target, CHUNK_BYTES)
