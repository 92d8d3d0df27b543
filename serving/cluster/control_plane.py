"""Ray's control plane (GCS) on this machine: its tables lie on disk; when it dies it comes back.

With its tables in memory alone a control plane that comes back knows nothing: what runs goes on,
but whatever dies from then on is never replaced.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_LONGEST_PAUSE_S = 30.0
#: One that lived for as long is started again at once.
_HEALTHY_S = 60.0


class ControlPlane:
    """That of the Ray that this process starts: ``settings`` are for ``ray.init``; between
    :meth:`watch` and :meth:`close` it is started anew when it dies.

    Of a cluster that was started with ``ray start`` nobody does that: see docs/runbook.md.
    """

    def __init__(self, data_dir: Path) -> None:
        """Its tables are in a folder of ``data_dir``, which must be this process's alone. What an
        earlier Ray has left there is forgotten: nothing of it runs any more.

        Raises:
            OSError: it cannot be forgotten, or the folder not be made.
        """
        self._tables = data_dir / "control-plane"
        if self._tables.exists():
            shutil.rmtree(self._tables)
        self._tables.mkdir(parents=True)
        self._ended = Event()
        # The thread must outlive Ray: the control plane dies with the thread that started it.
        self._thread = Thread(target=self._watch, name="control-plane", daemon=True)

    @property
    def settings(self) -> dict[str, str]:
        return {"gcs_storage": "rocksdb", "gcs_storage_path": str(self._tables)}

    def watch(self) -> None:
        """Call after ``ray.init``."""
        self._thread.start()

    def close(self) -> None:
        """Call after Ray was shut down, or did not start."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        shutil.rmtree(self._tables, ignore_errors=True)

    def _watch(self) -> None:
        is_missing, started_s, pause_s = False, time.monotonic(), _LOOK_S
        while not self._ended.wait(pause_s if is_missing else _LOOK_S):
            node = _node()
            if node is None:
                continue
            if not is_missing and any(kind == "gcs_server" for kind, _ in node.dead_processes()):
                is_missing = True
                lived_s = time.monotonic() - started_s
                pause_s = _LOOK_S if lived_s > _HEALTHY_S else _longer(pause_s)
                log.error("Ray's control plane died; it is started anew on its tables")
            elif is_missing:
                started_s = time.monotonic()
                try:
                    node.kill_gcs_server(check_alive=False)  # so that Ray forgets the dead one
                    node.start_gcs_server()
                    is_missing = False
                except Exception:
                    pause_s = _longer(pause_s)
                    log.exception("Ray's control plane does not start; again in %.1f s", pause_s)


def _longer(pause_s: float) -> float:
    return min(_LONGEST_PAUSE_S, 2 * pause_s)


def _node() -> Any:
    """Of the Ray that this process has started: Ray has no public name for it."""
    return ray._private.worker.global_worker.node
