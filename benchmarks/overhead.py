"""The platform's overhead per image, compared with a bare echo on the same Ray.

    python -m benchmarks overhead        # about five minutes

k6 sends requests with 1, 8 and 32 clients, in turn to the platform and to an echo of as many bytes
(gateway → handle → replica). The engine's time is subtracted; a second column subtracts queueing
too. The echo also runs at the platform's pace: at ten requests a second caches are cold and CPUs
asleep.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from benchmarks.http import platform_for, tool_path

HERE = Path(__file__).parent
RESULT = HERE / "results" / "overhead.json"
CLIENTS = (1, 8, 32)
GATEWAYS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead")
    parser.add_argument("--seconds", type=int, default=6, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TemporaryDirectory(prefix="overhead-") as temporary, own_ray() as address:
        os.environ["AO_RAY_ADDRESS"] = address
        with platform_for(Path(temporary), None, 1) as (settings, client, key):
            body = {"prompt": "a small red star", "steps": 1, "seed": 7}
            for _ in range(20):
                answer = client.generate(body)
            size_bytes = len(json.dumps(answer).encode())
            with echo(address, size_bytes) as url:
                result = measure(
                    settings.resolved_public_url, key, url, arguments.seconds, arguments.rounds
                )
    result["answer_bytes"] = size_bytes
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


@contextmanager
def own_ray() -> Iterator[str]:
    """Run a Ray on this machine; yield its address."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        address="local", num_cpus=8, object_store_memory=256 << 20, include_dashboard=False,
        log_to_driver=False, namespace="echo",
    )  # fmt: skip
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@contextmanager
def echo(address: str, size_bytes: int) -> Iterator[str]:
    from benchmarks.echo import deploy

    deploy()
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "ECHO_RAY_ADDRESS": address, "ECHO_BYTES": str(size_bytes)}
    command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.echo:app"]
    command += ["--port", str(port), "--workers", str(GATEWAYS), "--log-level", "warning"]
    server = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(httpx2.HTTPError):
                if httpx2.post(f"{url}/generate/sdxl", json={}, timeout=30).is_success:
                    break
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the echo did not start; its errors are above")
            time.sleep(0.2)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def measure(url: str, key: str, echo_url: str, seconds: int, rounds: int) -> dict[str, Any]:
    """Return medians of each round's p50 and p95, in ms."""
    rows = []
    for clients in CLIENTS:
        runs: dict[str, list[dict[str, Any]]] = {"platform": [], "echo": [], "paced": []}
        pause_ms = 0.0
        for index in range(rounds + 1):
            for name in runs:
                print(f"{clients} clients: {name} …", file=sys.stderr)
                values = {"AO_URL": url, "AO_KEY": key, "USERS": str(clients)}
                values["SECONDS"] = str(seconds)
                if name != "platform":
                    values.update(AO_URL=echo_url, ECHO="1")
                    values["PAUSE_MS"] = str(pause_ms if name == "paced" else 0.0)
                metrics = _k6(values)
                if name == "platform":
                    count = metrics["engine"]["values"]["count"]
                    pause_ms = 1000 * seconds * clients / count
                if index:  # warm-up
                    runs[name].append(metrics)

        def median_of(name: str, trend: str, part: str) -> float:
            return float(median(m[trend]["values"][part] for m in runs[name]))  # noqa: B023

        row: dict[str, Any] = {"clients": clients}
        for name in runs:
            row[f"{name}_requests"] = sum(m["beside_engine"]["values"]["count"] for m in runs[name])
        for part, title in (("p(50)", "p50"), ("p(95)", "p95")):
            row[f"platform_{title}_ms"] = median_of("platform", "beside_engine", part)
            row[f"platform_unqueued_{title}_ms"] = median_of(
                "platform", "beside_engine_and_queue", part
            )
            row[f"echo_{title}_ms"] = median_of("echo", "beside_engine", part)
            row[f"paced_{title}_ms"] = median_of("paced", "beside_engine", part)
        row["engine_p50_ms"] = median_of("platform", "engine", "p(50)")
        rows.append(row)
    return {"rounds": rounds, "seconds": seconds, "rows": rows}


def _k6(values: Mapping[str, str]) -> dict[str, Any]:
    command = [tool_path("k6"), "run", "--quiet", "--no-usage-report"]
    command.append(str(HERE / "overhead.k6.js"))
    environment = {**os.environ, **values}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"k6 failed: {done.stderr[-2000:]}")
    metrics: dict[str, Any] = json.loads(done.stdout)
    return metrics


def table(result: Mapping[str, Any]) -> str:
    lines = [
        "| clients | engine, p50 ms | whole − engine, p50 ms | and − queue, p50 ms "
        "| echo at that pace, p50 ms | ratio | echo without a pause, p50 ms | ratio |",
        "|" + "---|" * 8,
    ]
    for row in result["rows"]:
        ours, paced, echo = (
            row[f"{name}_p50_ms"] for name in ("platform_unqueued", "paced", "echo")
        )
        lines.append(
            f"| {row['clients']} | {row['engine_p50_ms']:.0f} | {row['platform_p50_ms']:.1f} "
            f"| {ours:.1f} | {paced:.1f} | {ours / paced:.2f} | {echo:.1f} | {ours / echo:.2f} |"
        )
    return "\n".join(lines)
