"""What runs behind the gateways, replaced by new processes: after an upgrade, while it serves."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from serving.cluster.ingest_actor import NAME as INGEST
from serving.cluster.replicas import dispatcher_name
from serving.errors import ServingError
from serving.settings import Settings

#: For one actor to come back.
PATIENCE_S = 120.0
#: What the processes import that a renewal starts.
IMPORTED = (
    "serving.cluster.dispatcher_actor",
    "serving.cluster.gateway",
    "serving.cluster.ingest_actor",
    "serving.bootstrap.engine",
    "serving.bootstrap.base_model",
)


class NotRenewed(ServingError):
    """Says why, and what of it."""


def renew(settings: Settings, progress: Callable[[str], None], is_ending: Event) -> None:
    """The dispatchers and the ingest at once (what was asked of them is asked again of the new
    ones); then, by and by, every replica. Nothing, when the new code cannot be imported.

    Raises:
        NotRenewed: that, or one did not come back in time, or ``is_ending`` was set.
    """
    tried = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(IMPORTED)}"], capture_output=True, text=True
    )
    if tried.returncode:
        raise NotRenewed(f"the code on the disk cannot be imported: {tried.stderr[-2000:]}")
    for name in (*(dispatcher_name(pool.name) for pool in settings.resolved_pools), INGEST):
        progress(f"renewing {name}")
        actor = ray.get_actor(name, settings.ray_namespace)
        old = _process(actor)
        ray.kill(actor, no_restart=False)
        deadline = time.monotonic() + PATIENCE_S
        while _process(actor) in (None, old):  # it may still answer, and then is away
            if is_ending.is_set() or time.monotonic() > deadline:
                raise NotRenewed(f"{name} did not come back")
            time.sleep(0.1)
        if name != INGEST:
            ray.get(actor.renew.remote(), timeout=PATIENCE_S)


def _process(actor: Any) -> tuple[str, int] | None:
    """None while there is none, or none that can say so."""
    try:
        found: tuple[str, int] = ray.get(actor.process.remote(), timeout=PATIENCE_S)
    except (RayActorError, RayTaskError):
        return None
    return found
