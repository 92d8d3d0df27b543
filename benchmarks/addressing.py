"""Two ways to address a replica: one-replica applications ("slots"), or one deployment with a
router that follows the request ("targeted").

Stub replicas, one Ray instance per case. Targeted cannot choose which replica is removed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from benchmarks.document import Document

RESULT = Path(__file__).parent / "results" / "addressing.json"
SIZES = (2, 32, 128)
IDLE_S = 15.0
ROUND_TRIPS = 300


class Stub:
    async def echo(self, target: str = "") -> str:
        return str(serve.get_replica_context().replica_id.unique_id)


class Targeted(RequestRouter):  # type: ignore[misc]  # Ray is untyped
    """Route to the replica that the ``target`` argument names."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        target = pending_request.kwargs.get("target") if pending_request else None
        chosen = [r for r in candidate_replicas if r.replica_id.unique_id == target]
        return [chosen or random.sample(candidate_replicas, len(candidate_replicas))]


def deployment(count: int, **options: object) -> Any:
    return serve.deployment(Stub).options(
        num_replicas=count,
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": 0},
        **options,
    )


def controller_process() -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        if any("ServeController" in part for part in process.info["cmdline"] or []):
            return process
    raise RuntimeError("no ServeController")


def controller_share() -> float:
    """Return the controller's share of one CPU over IDLE_S."""
    process = controller_process()
    before = sum(process.cpu_times()[:2])
    time.sleep(IDLE_S)
    return (sum(process.cpu_times()[:2]) - before) / IDLE_S


async def round_trips(calls: list[Any]) -> list[float]:
    """Return milliseconds of sequential calls, to the replicas in turn."""
    for call in calls:
        await call()
    spent = []
    for index in range(ROUND_TRIPS):
        started = time.perf_counter()
        await calls[index % len(calls)]()
        spent.append((time.perf_counter() - started) * 1000)
    return spent


def deploy_slots(count: int) -> list[Any]:
    names = [f"slot-{index}" for index in range(count)]
    serve.run_many(
        [serve.RunTarget(deployment(1).bind(), name=name, route_prefix=None) for name in names]
    )
    handles = [serve.get_app_handle(name) for name in names]
    return [lambda h=h: h.echo.remote() for h in handles]


def deploy_targeted(count: int) -> list[Any]:
    config = RequestRouterConfig(request_router_class=Targeted)
    app = deployment(count, request_router_config=config).bind()
    handle = serve.run(app, name="pool", route_prefix=None)

    async def all_ids() -> set[str]:
        ids: set[str] = set()
        while len(ids) < count:
            ids |= set(await asyncio.gather(*(handle.echo.remote() for _ in range(count))))
        return ids

    ids = sorted(asyncio.run(all_ids()))
    return [lambda i=i: handle.echo.remote(target=i) for i in ids]


def remove_one(way: str, count: int) -> float:
    started = time.perf_counter()
    if way == "slots":
        serve.delete(f"slot-{count - 1}")
    else:
        config = RequestRouterConfig(request_router_class=Targeted)
        app = deployment(count - 1, request_router_config=config).bind()
        serve.run(app, name="pool", route_prefix=None)
    return time.perf_counter() - started


def measure(way: str, count: int) -> Document:
    with TemporaryDirectory(prefix="ray-") as temporary:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=128 << 20,
            _temp_dir=temporary,
        )
        try:
            serve.start(proxy_location="Disabled")
            started = time.perf_counter()
            calls = deploy_slots(count) if way == "slots" else deploy_targeted(count)
            deploy_s = time.perf_counter() - started
            share = controller_share()
            spent = sorted(asyncio.run(round_trips(calls)))
            removed_s = remove_one(way, count)
            return {
                "way": way,
                "replicas": count,
                "deploy_s": deploy_s,
                "controller_idle_cpu": share,
                "round_trip_p50_ms": statistics.median(spent),
                "round_trip_p95_ms": spent[int(len(spent) * 0.95)],
                "remove_one_s": removed_s,
            }
        finally:
            serve.shutdown()
            ray.shutdown()


def table() -> str:
    heads = ["way", "replicas", "deploy s", "controller idle % of a CPU"]
    heads += ["round trip p50 ms", "p95 ms", "remove one s"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in json.loads(RESULT.read_text())["rows"]:
        cells = (
            row["way"],
            str(row["replicas"]),
            f"{row['deploy_s']:.1f}",
            f"{row['controller_idle_cpu'] * 100:.1f}",
            f"{row['round_trip_p50_ms']:.1f}",
            f"{row['round_trip_p95_ms']:.1f}",
            f"{row['remove_one_s']:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the results as Markdown")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--ways", nargs="+", default=["slots", "targeted"])
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for count in arguments.sizes:
        for way in arguments.ways:
            row = measure(way, count)
            print(json.dumps(row), flush=True)
            rows = [r for r in rows if (r["way"], r["replicas"]) != (way, count)] + [row]
            rows.sort(key=lambda r: (r["replicas"], r["way"]))
            RESULT.parent.mkdir(exist_ok=True)
            document = {"cpus": psutil.cpu_count(), "rows": rows}
            RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
