"""The gateway processes of this machine, watched over; renewed on SIGHUP."""

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
    """One socket, shared: what a dead gateway had not accepted, another accepts, and the
    supervisor starts a dead one anew."""

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket], renew: Callable[[Event], None]
    ) -> None:
        """``renew`` renews what is behind the gateways, and gives up when the event is set."""
        super().__init__(config, sockets)
        self._renew = renew
        self._renewing: Thread | None = None
        self._is_renewed = False
        for number in (signal.SIGTERM, signal.SIGINT):  # while it waits for a gateway, too
            # By a thread: this one may hold the event's lock when the signal comes.
            signal.signal(number, lambda *_: Thread(target=self.should_exit.set).start())

    def close(self) -> None:
        """Whatever it was that ended: nothing of this may outlive Ray."""
        self.should_exit.set()
        self.terminate_all()
        self.join_all()
        if self._renewing is not None:
            self._renewing.join(timeout=10)

    def handle_hup(self) -> None:
        """New code is on the disk: first those behind the gateways, then they themselves, each
        once the one that replaces it serves. Beside this thread, which watches over them."""
        if self._renewing is not None and self._renewing.is_alive():
            log.warning("a renewal is under way already")
            return
        self._renewing = Thread(target=self._renew_pools, name="renewal", daemon=True)
        self._renewing.start()

    def _renew_pools(self) -> None:
        try:
            self._renew(self.should_exit)
            self._is_renewed = True
        except Exception:
            log.exception("the pools are not renewed, and the gateways stay")

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        if self._is_renewed:
            self._is_renewed = False
            self.restart_all()


def run_gateways(
    settings: Settings, renew: Callable[[Event], None], progress: Callable[[str], None]
) -> None:
    """Until a signal ends them; ``renew`` as :class:`Gateways` takes it."""
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
