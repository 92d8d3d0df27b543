"""Every fault that there is, in the order in which they are injected."""

from __future__ import annotations

from benchmarks.faults.fault import Fault
from benchmarks.faults.harness import Place
from benchmarks.faults.machine import clock_skewed, database_locked, disk_full
from benchmarks.faults.processes import (
    control_plane_killed,
    hung,
    killed,
    node_lost,
    renewed,
    replica_hung,
    replica_killed,
    restarted,
)
from benchmarks.faults.store import DRIP_BYTES_S, SLOW_BYTES_S, store, store_sends
from benchmarks.faults.workload import overload, poison, stampede

FAULTS = (
    Fault("replica-killed", "drawn again elsewhere", replica_killed),
    Fault("replica-hung", "noticed within seconds, drawn again elsewhere", replica_hung),
    Fault("dispatcher-killed", "started anew, requests submitted again",
          killed("ray::DispatcherActor")),
    Fault("dispatcher-hung", "noticed within a minute, started anew, requests submitted again",
          hung("ray::DispatcherActor")),
    Fault("gateway-killed", "another takes its clients and its jobs", killed("spawn_main")),
    Fault("controller-killed", "nobody notices", killed("ray::ServeController")),
    Fault("control-plane-killed", "back on its tables; a replica that dies then is replaced",
          control_plane_killed),
    Fault("node-lost", "drawn again on the others, whole again with its node", node_lost,
          Place(nodes=2)),
    Fault("renewed", "every process replaced by a new one, nobody notices", renewed),
    Fault("store-slow", "what is near is drawn; the cold asset as fast as it comes",
          store_sends(SLOW_BYTES_S)),
    Fault("store-drips", "given up in time, read again", store_sends(DRIP_BYTES_S)),
    Fault("store-cut", "resumed or read again, never half a file", store("cut")),
    Fault("store-reset", "resumed or read again, never half a file", store("reset")),
    Fault("store-503", "what is near is drawn; the cold asset once it is back", store("503")),
    Fault("store-flipped", "noticed by its digest, read again", store("flipped")),
    Fault("store-black-hole", "given up in time, read again", store("black hole")),
    Fault("disk-full", "makes room, draws", disk_full),
    Fault("database-locked", "waits for it, or is told to come again", database_locked),
    Fault("clock-skew", "every job ends once", clock_skewed, Place(has_postgres=True)),
    Fault("poison", "refused after two deaths, the others drawn", poison),
    Fault("stampede", "one read of the store", stampede),
    Fault("overload", "refused early with Retry-After, the accepted drawn", overload),
    Fault("total-restart", "up again with cold caches, jobs go on", restarted),
)  # fmt: skip
