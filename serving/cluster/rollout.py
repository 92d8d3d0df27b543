"""Rollout of new code: replaces the actors behind serving gateways."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError, RayTaskError

from serving.cluster.addressing import INGEST_NAME, dispatcher_name
from serving.errors import ServingError
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.actor import ActorHandle


#: Time for one actor's restart.
PATIENCE_S = 120.0
#: Modules of the new processes; a rollout first tries to import them.
IMPORTED = (
    "serving.cluster.dispatcher_actor",
    "serving.cluster.gateway",
    "serving.cluster.ingest_actor",
    "serving.bootstrap.engine",
    "serving.bootstrap.base_model",
)


class NotRenewed(ServingError):
    """A rollout was aborted; names the part and reason."""


def renew(settings: Settings, progress: Callable[[str], None], is_ending: Event) -> None:
    """Restart dispatchers and ingest, whose callers retry; dispatchers then replace replicas.

    Raises:
        NotRenewed: the code cannot be imported (nothing restarts), a restart is late, or
            ``is_ending`` is set.
    """
    imported = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(IMPORTED)}"], capture_output=True, text=True
    )
    if imported.returncode:
        raise NotRenewed(f"the code on disk cannot be imported: {imported.stderr[-2000:]}")
    for name in (*(dispatcher_name(pool.name) for pool in settings.resolved_pools), INGEST_NAME):
        progress(f"restarting {name}")
        actor = ray.get_actor(name, settings.ray_namespace)
        old = _process(actor)
        ray.kill(actor, no_restart=False)
        deadline = time.monotonic() + PATIENCE_S
        while _process(actor) in (None, old):  # the old process may still answer
            if is_ending.is_set() or time.monotonic() > deadline:
                raise NotRenewed(f"{name} did not restart")
            time.sleep(0.1)
        if name != INGEST_NAME:
            ray.get(actor.renew.remote(), timeout=PATIENCE_S)


def _process(actor: ActorHandle) -> tuple[str, int] | None:
    """Node id and process id; None during a restart."""
    try:
        process: tuple[str, int] = ray.get(actor.process.remote(), timeout=PATIENCE_S)
    except (RayActorError, RayTaskError):
        return None
    return process
