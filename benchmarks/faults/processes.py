"""Faults of processes: they die, hang, or are replaced."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import httpx2

from benchmarks.faults.fault import Harm, Inject

_RENEWED_S = 300.0
_NODE_AWAY_S = 15.0
_CONTROL_PLANE_AWAY_S = 2.0
#: Replaced on SIGHUP: gateways, replicas, dispatcher, ingest.
_RENEWED = ("spawn_main", "ray::ServeReplica", "ray::DispatcherActor", "ray::IngestActor")


def replica_killed(harm: Harm) -> None:
    os.kill(harm.harness.busiest(), signal.SIGKILL)


def replica_hung(harm: Harm) -> None:
    os.kill(harm.harness.busiest(), signal.SIGSTOP)


def signalled(part: str, number: signal.Signals) -> Inject:
    def inject(harm: Harm) -> None:
        pids = harm.harness.pids(part)
        if not pids:
            raise SystemExit(f"no process has {part!r} in its command line")
        os.kill(pids[0], number)

    return inject


def killed(part: str) -> Inject:
    return signalled(part, signal.SIGKILL)


def hung(part: str) -> Inject:
    return signalled(part, signal.SIGSTOP)


def control_plane_killed(harm: Harm) -> None:
    """Kill the control plane, then a replica, which only a recovered one replaces."""
    killed("gcs_server")(harm)
    time.sleep(_CONTROL_PLANE_AWAY_S)
    os.kill(harm.harness.busiest(), signal.SIGKILL)


def node_lost(harm: Harm) -> None:
    """Kill a node; add it again after _NODE_AWAY_S."""
    nodes = harm.harness.nodes
    assert nodes is not None
    busiest = harm.harness.busiest()
    index = next(i for i in range(harm.harness.node_count) if busiest in nodes.of(i))
    nodes.lose(index)
    time.sleep(_NODE_AWAY_S)
    nodes.add(index)


def renewed(harm: Harm) -> None:
    """Send SIGHUP; wait until all processes are new."""
    harness = harm.harness
    assert harness.process is not None
    old = {pid for part in _RENEWED for pid in harness.pids(part)}
    started = time.monotonic()
    harness.process.send_signal(signal.SIGHUP)
    while time.monotonic() < started + _RENEWED_S:
        with suppress(httpx2.HTTPError, KeyError, ValueError):
            current = {pid for part in _RENEWED for pid in harness.pids(part)}
            if len(harness.up()) == harness.replicas and not old & current:
                harm.seen = f"{len(old)} processes replaced in {time.monotonic() - started:.0f} s"
                return
        time.sleep(0.2)
    harm.lost.append(f"processes not replaced after {_RENEWED_S:.0f} s")


def restarted(harm: Harm) -> None:
    harm.harness.kill_everything()
    harm.harness.start()
