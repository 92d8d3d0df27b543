"""Ray's control plane (GCS) on this machine: its tables lie on disk; when it dies it comes back.

With its tables in memory alone a control plane that comes back knows nothing: what runs goes on,
but whatever dies from then on is never replaced.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray

log = logging.getLogger(__name__)

_LOOK_S = 0.2


def tables_in(folder: Path) -> dict[str, str]:
    """Ray's settings for a control plane that survives its process. What an earlier Ray has left
    in ``folder`` is forgotten: nothing of it runs any more."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return {"gcs_storage": "rocksdb", "gcs_storage_path": str(folder)}


class ControlPlane:
    """Watches over the one of the Ray that this process has started, until :meth:`close`.

    Whoever starts a cluster's head with ``ray start`` watches over it in another way: see
    docs/runbook.md.
    """

    def __init__(self) -> None:
        self._ended = Event()
        # The thread must outlive Ray: the control plane dies with the thread that started it.
        self._thread = Thread(target=self._watch, name="control-plane", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            node = _node()
            if node is None or not any(kind == "gcs_server" for kind, _ in node.dead_processes()):
                continue
            log.error("Ray's control plane died; it is started anew on its tables")
            try:
                node.kill_gcs_server(check_alive=False)  # so that Ray forgets the dead one
                node.start_gcs_server()
            except Exception:
                log.exception("Ray's control plane does not start; trying again")

    def close(self) -> None:
        """Call after Ray was shut down."""
        self._ended.set()
        self._thread.join()


def _node() -> Any:
    """Of the Ray that this process has started: Ray has no public name for it."""
    return ray._private.worker.global_worker.node
