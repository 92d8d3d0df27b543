"""The supervisor of this machine's gateways; SIGHUP replaces them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from socket import socket
from tempfile import TemporaryDirectory
from threading import Event, Thread

import uvicorn
from uvicorn.supervisors import Multiprocess

from serving.api.server import allow_open_files, server_config
from serving.settings import Settings

log = logging.getLogger(__name__)


class Gateways(Multiprocess):
    """Supervises gateways on one socket; restarts dead ones.

    Another gateway accepts a dead one's pending connections.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket], renew: Callable[[Event], None]
    ) -> None:
        """``renew`` replaces the actors behind; it aborts when the event is set."""
        super().__init__(config, sockets)
        self._renew = renew
        self._rollout: Thread | None = None
        self._must_restart_gateways = False
        for number in (signal.SIGTERM, signal.SIGINT):  # also while waiting for a gateway
            # This thread may hold the event's lock.
            signal.signal(number, lambda *_: Thread(target=self.should_exit.set).start())

    def close(self) -> None:
        """Stop gateways and rollout; neither may outlive Ray."""
        self.should_exit.set()
        self.terminate_all()
        self.join_all()
        if self._rollout is not None:
            self._rollout.join(timeout=10)

    def handle_hup(self) -> None:
        """Replace actors, then gateways, each once its replacement serves.

        In a thread, because this one supervises.
        """
        if self._rollout is not None and self._rollout.is_alive():
            log.warning("a rollout is already in progress")
            return
        self._rollout = Thread(target=self._renew_pools, name="renewal", daemon=True)
        self._rollout.start()

    def _renew_pools(self) -> None:
        try:
            self._renew(self.should_exit)
            self._must_restart_gateways = True
        except Exception:
            log.exception("the rollout of the pools failed; the gateways are not restarted")

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        if self._must_restart_gateways:
            self._must_restart_gateways = False
            self.restart_all()


def run_gateways(
    settings: Settings, renew: Callable[[Event], None], progress: Callable[[str], None]
) -> None:
    """Run gateways until a signal; ``renew`` as in :class:`Gateways`."""
    with TemporaryDirectory() as counters:
        os.environ.update(settings.to_environment(), PROMETHEUS_MULTIPROC_DIR=counters)
        allow_open_files()
        config = server_config(
            settings,
            "serving.cluster.gateway:app",
            factory=True,
            workers=settings.gateways,
            timeout_worker_healthcheck=60,
        )
        gateways = Gateways(config, [config.bind_socket()], renew)
        progress(f"serving on {settings.resolved_public_url} with {settings.gateways} gateways")
        try:
            gateways.run()
        finally:
            gateways.close()
