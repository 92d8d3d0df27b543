"""All faults, in the order of injection."""

from __future__ import annotations

from benchmarks.faults.fault import Fault
from benchmarks.faults.harness import Deployment
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
    Fault("replica-killed", "generated again elsewhere", replica_killed),
    Fault("replica-hung", "detected within seconds, generated again elsewhere", replica_hung),
    Fault("dispatcher-killed", "restarted, requests submitted again",
          killed("ray::DispatcherActor")),
    Fault("dispatcher-hung", "detected within a minute, restarted, requests submitted again",
          hung("ray::DispatcherActor")),
    Fault("gateway-killed", "another gateway takes over its clients and jobs",
          killed("spawn_main")),
    Fault("controller-killed", "no client affected", killed("ray::ServeController")),
    Fault("control-plane-killed", "recovers from its tables; a replica that dies then is replaced",
          control_plane_killed),
    Fault("node-lost", "generated again on other nodes, complete again with its node", node_lost,
          Deployment(nodes=2)),
    Fault("renewed", "every process replaced, no client affected", renewed),
    Fault("store-slow", "cached assets served; the cold asset at the store's speed",
          store_sends(SLOW_BYTES_S)),
    Fault("store-drips", "times out, read again", store_sends(DRIP_BYTES_S)),
    Fault("store-cut", "resumed or read again, never a partial file", store("cut")),
    Fault("store-reset", "resumed or read again, never a partial file", store("reset")),
    Fault("store-503", "cached assets served; the cold asset once the store is back", store("503")),
    Fault("store-flipped", "detected by the digest, read again", store("flipped")),
    Fault("store-black-hole", "times out, read again", store("black hole")),
    Fault("disk-full", "evicts and generates", disk_full),
    Fault("database-locked", "requests wait, or get a retryable error", database_locked),
    Fault("clock-skew", "every job ends once", clock_skewed, Deployment(has_postgres=True)),
    Fault("poison", "refused after two deaths, other requests answered", poison),
    Fault("stampede", "one read of the store", stampede),
    Fault("overload", "refused early with Retry-After, accepted requests answered", overload),
    Fault("total-restart", "up again with cold caches, jobs continue", restarted),
)  # fmt: skip
