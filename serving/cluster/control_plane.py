"""Keeps the tables of Ray's control plane (GCS) on disk and restarts it when it dies.

Without its tables it would replace no actor that dies.
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

_CHECK_S = 0.2
_LONGEST_PAUSE_S = 30.0
#: After this uptime it is restarted without a pause.
_HEALTHY_S = 60.0


class ControlPlane:
    """The control plane of the Ray that this process starts with ``settings``.

    Supervised between :meth:`watch` and :meth:`close`; one of ``ray start`` is not
    (docs/runbook.md).
    """

    def __init__(self, data_dir: Path) -> None:
        """Create the tables' folder in ``data_dir``, for this process alone; delete old tables.

        Raises:
            OSError: cannot delete the old tables, or create the folder.
        """
        self._tables = data_dir / "control-plane"
        if self._tables.exists():
            shutil.rmtree(self._tables)
        self._tables.mkdir(parents=True)
        self._closing = Event()
        # The control plane dies with the thread that started it.
        self._thread = Thread(target=self._watch, name="control-plane", daemon=True)

    @property
    def settings(self) -> dict[str, str]:
        return {"gcs_storage": "rocksdb", "gcs_storage_path": str(self._tables)}

    def watch(self) -> None:
        """Supervise; call after ``ray.init``."""
        self._thread.start()

    def close(self) -> None:
        """Stop and delete the tables; call after Ray's shutdown or failed start."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        shutil.rmtree(self._tables, ignore_errors=True)

    def _watch(self) -> None:
        is_missing, started_s, pause_s = False, time.monotonic(), _CHECK_S
        while not self._closing.wait(pause_s if is_missing else _CHECK_S):
            node = _node()
            if node is None:
                continue
            if not is_missing and any(kind == "gcs_server" for kind, _ in node.dead_processes()):
                is_missing = True
                uptime_s = time.monotonic() - started_s
                pause_s = _CHECK_S if uptime_s > _HEALTHY_S else _longer(pause_s)
                log.error("Ray's control plane died; restarting it on its tables")
            elif is_missing:
                started_s = time.monotonic()
                try:
                    node.kill_gcs_server(check_alive=False)  # unregister the dead process
                    node.start_gcs_server()
                    is_missing = False
                except Exception:
                    pause_s = _longer(pause_s)
                    log.exception("Ray's control plane does not start; retrying in %.1f s", pause_s)


def _longer(pause_s: float) -> float:
    return min(_LONGEST_PAUSE_S, 2 * pause_s)


def _node() -> Any:
    """Ray has no public access to it."""
    return ray._private.worker.global_worker.node
