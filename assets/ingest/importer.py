"""Downloads imports into the object store."""

from __future__ import annotations

import json
import logging
import threading
import time

from assets.asset import Asset, AssetChanges, ImportSource
from assets.errors import FetchFailed, FetchRefused, StoreError, TooLarge
from assets.library.records import AssetRecords
from assets.library.uploads import MAX_UPLOAD_BYTES
from assets.remote.guarded_http import Fetcher
from assets.remote.huggingface import HUB, find_file
from assets.storage.object_paths import upload_key
from assets.storage.object_store import HashingWriter, ObjectStore
from assets.text import is_storable

log = logging.getLogger(__name__)

_MAX_CONFIG_CHARS = 1 << 16
_PROGRESS_INTERVAL_S = 1.0


class _Cancelled(Exception):
    """The asset was deleted or the service stops."""


class Importer:
    def __init__(
        self,
        records: AssetRecords,
        store: ObjectStore,
        fetcher: Fetcher | None = None,
        hub: str = HUB,
    ) -> None:
        self._records = records
        self._store = store
        self._fetcher = fetcher or Fetcher()
        self._hub = hub
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Cancel transfers at their next progress report; the next start repeats them."""
        self._stopped.set()

    def fetch(self, asset_id: str, attempts: int = 3) -> bool:
        """Download an import into the object store; return whether its bytes are there.

        Safe to repeat.
        """
        asset = self._records.get(asset_id)
        if asset is None or asset.status != "uploaded":
            return False
        if self._store.size(upload_key(asset_id)) is not None:
            return True
        try:
            received = self._transfer(asset)
        except _Cancelled:
            return False
        except (FetchFailed, TooLarge) as error:
            if attempts > 1 and not isinstance(error, FetchRefused | TooLarge):
                return self.fetch(asset_id, attempts - 1)
            reason = f"the import failed: {error}"
            rejected = AssetChanges(
                status="rejected", status_details=reason, report={"reasons": [reason]}
            )
            self._records.update(asset_id, rejected, expect=("uploaded",))
            return False
        except (StoreError, OSError):
            log.exception("object store failed during the import of %s; will retry", asset_id)
            return False
        except Exception:
            log.exception("the import of %s failed", asset_id)
            failed = AssetChanges(status="error", status_details="the import failed on the server")
            self._records.update(asset_id, failed, expect=("uploaded",))
            return False
        changes = AssetChanges(size_bytes=received, status_details="inspecting")
        return self._records.update(asset_id, changes, expect=("uploaded",)) is not None

    def _transfer(self, asset: Asset) -> int:
        source = asset.source or ImportSource()
        url, sha256 = source.url, asset.expected_sha256
        if not url:
            hub_file = find_file(source.hf_repo or "", self._fetcher.fetch_json, self._hub)
            url, sha256 = hub_file.url, hub_file.sha256 or sha256
            if hub_file.adapter_config_url and not asset.adapter_config:
                config = self._fetcher.fetch_json(hub_file.adapter_config_url)
                text = json.dumps(config, ensure_ascii=False)
                is_acceptable = len(text) <= _MAX_CONFIG_CHARS and is_storable(text)
                if not isinstance(config, dict) or not is_acceptable:
                    raise FetchFailed(
                        "its adapter_config.json is not an object, has unstorable text or is "
                        f"longer than {_MAX_CONFIG_CHARS} characters"
                    )
                self._records.update(asset.id, {"adapter_config": config}, expect=("uploaded",))
        max_bytes = asset.max_bytes or MAX_UPLOAD_BYTES
        last_update_s = 0.0

        def progress(received: int, total: int | None) -> None:
            nonlocal last_update_s
            if self._stopped.is_set():
                raise _Cancelled
            if time.monotonic() - last_update_s >= _PROGRESS_INTERVAL_S:
                last_update_s = time.monotonic()
                of = f" of {total / 1e6:.1f} MB ({received * 100 // total} %)" if total else ""
                details = AssetChanges(status_details=f"importing: {received / 1e6:.1f} MB{of}")
                if self._records.update(asset.id, details, expect=("uploaded",)) is None:
                    raise _Cancelled  # deleted

        with self._store.write(upload_key(asset.id)) as target:
            digest = HashingWriter(target)
            received = self._fetcher.fetch(url, digest, max_bytes, progress)
            if sha256 and digest.hexdigest() != sha256:
                raise FetchFailed(f"the downloaded file does not have the expected sha256 {sha256}")
        return received
