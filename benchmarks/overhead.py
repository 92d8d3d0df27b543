"""The platform's overhead per image, compared with a bare echo on Ray; and with an earlier commit.

    python -m benchmarks overhead                     # about ten minutes
    python -m benchmarks overhead --before COMMIT     # about twenty

k6 sends requests with 1, 8 and 32 clients, in turn to the platform and to an echo of as many bytes
(gateway → handle → replica), for answers of about 10 kB and of 1.5 MB. The engine's time is
subtracted; a second column subtracts queueing too. The echo also runs at the platform's pace: at
ten requests a second caches are cold and CPUs asleep. Each commit serves from a worktree; for the
large answers its images are padded to what a full-size PNG takes.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx2

from benchmarks.document import Document
from benchmarks.http import tool_path
from benchmarks.same import checkout, key
from serving.settings import Settings
from tests.support.servers import clean_environment, end_serving, free_port, start_serving

HERE = Path(__file__).parent
RESULT = HERE / "results" / "overhead.json"
CLIENTS = (1, 8, 32)
GATEWAYS = 2
BODY = {"prompt": "a small red star", "steps": 1, "seed": 7}
#: Bytes added to each image: none, and to about 1.5 MB in base64.
PADDINGS = (0, 1_120_000)
_ENCODED = "EncodedImage(buffer.getvalue(),"


@dataclass(frozen=True, slots=True)
class Target:
    """An URL to measure."""

    url: str
    key: str = ""
    is_echo: bool = False
    #: Echoes wait between requests, so that as many arrive in a second as the platform serves.
    is_paced: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead")
    parser.add_argument("--before", help="a commit to measure, too")
    parser.add_argument("--seconds", type=int, default=6, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    commits = {"platform": "HEAD"} | ({"before": arguments.before} if arguments.before else {})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="overhead-")))
        trees = {
            name: stack.enter_context(checkout(commit, folder / name))
            for name, commit in commits.items()
        }
        small, large = (
            measure_size(folder / str(padding), trees, padding, arguments) for padding in PADDINGS
        )
    result = {
        "rounds": arguments.rounds, "seconds": arguments.seconds, **small, "large": large,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


def measure_size(
    folder: Path, trees: Mapping[str, Path], padding: int, arguments: argparse.Namespace
) -> Document:
    """Measure one commit after the other, each with an echo beside it: an idle platform's
    heartbeats would slow down another's requests."""
    rows: dict[int, Document] = {clients: {"clients": clients} for clients in CLIENTS}
    for name, tree in reversed(list(trees.items())):
        with ExitStack() as stack:
            target = stack.enter_context(platform(tree, folder / name, padding))
            for _ in range(20):
                size_bytes = _answer_bytes(target)
            address = stack.enter_context(own_ray())
            url = stack.enter_context(echo(address, size_bytes))
            paced = "paced" if name == "platform" else f"{name}_paced"
            targets = {name: target, paced: Target(url, is_echo=True, is_paced=True)}
            if name == "platform":
                targets["echo"] = Target(url, is_echo=True)
            for clients, row in rows.items():
                row |= measure(clients, targets, arguments.seconds, arguments.rounds)
    return {"answer_bytes": size_bytes, "rows": list(rows.values())}


@contextmanager
def platform(tree: Path, folder: Path, padding: int) -> Iterator[Target]:
    """Run a worktree's platform on its own Ray; each image is ``padding`` bytes larger."""
    folder.mkdir(parents=True)
    images = tree / "serving" / "engine" / "images.py"
    original = images.read_text()
    assert _ENCODED in original
    images.write_text(
        original.replace(_ENCODED, f"EncodedImage(buffer.getvalue() + bytes({padding}),")
    )
    settings = Settings(
        data_dir=folder / "data", host_dir=folder / "host", port=free_port(), replicas=1,
        gateways=GATEWAYS,
    )  # fmt: skip
    environment = {**clean_environment(), "PYTHONPATH": str(tree)}
    try:
        server = start_serving(
            settings, folder / "serve.log", environment=environment, checkout=tree
        )
        try:
            yield Target(settings.resolved_public_url, key(tree, settings))
        finally:
            end_serving(server)
    finally:
        images.write_text(original)


def _answer_bytes(target: Target) -> int:
    headers = {"Authorization": f"Bearer {target.key}"}
    answer = httpx2.post(f"{target.url}/generate/sdxl", json=BODY, headers=headers, timeout=120)
    answer.raise_for_status()
    return len(answer.content)


@contextmanager
def own_ray() -> Iterator[str]:
    """Run a Ray on this machine; yield its address."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once
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


def measure(
    clients: int, targets: Mapping[str, Target], seconds: int, rounds: int
) -> dict[str, float]:
    """Return medians of the rounds' p50 and p95, in ms."""
    runs: dict[str, list[Document]] = {name: [] for name in targets}
    pause_ms = 0.0
    for index in range(rounds + 1):
        for name, target in targets.items():
            print(f"{clients} clients: {name} …", file=sys.stderr)
            values = {"AO_URL": target.url, "AO_KEY": target.key, "USERS": str(clients)}
            values["SECONDS"] = str(seconds)
            if target.is_echo:
                values["ECHO"] = "1"
                values["PAUSE_MS"] = str(pause_ms if target.is_paced else 0.0)
            metrics = _k6(values)
            if not target.is_echo:
                pause_ms = 1000 * seconds * clients / metrics["engine"]["values"]["count"]
            if index:  # warm-up
                runs[name].append(metrics)
    row: dict[str, float] = {}
    for name, target in targets.items():
        row |= _medians(name, runs[name], is_echo=target.is_echo)
    return row


def _medians(name: str, runs: list[Document], *, is_echo: bool) -> dict[str, float]:
    def median_of(trend: str, part: str) -> float:
        return float(median(metrics[trend]["values"][part] for metrics in runs))

    figures: dict[str, float] = {
        f"{name}_requests": sum(metrics["beside_engine"]["values"]["count"] for metrics in runs)
    }
    for part, title in (("p(50)", "p50"), ("p(95)", "p95")):
        figures[f"{name}_{title}_ms"] = median_of("beside_engine", part)
        if not is_echo:
            figures[f"{name}_unqueued_{title}_ms"] = median_of("beside_engine_and_queue", part)
    if name == "platform":
        figures["engine_p50_ms"] = median_of("engine", "p(50)")
    return figures


def _k6(values: Mapping[str, str]) -> Document:
    command = [tool_path("k6"), "run", "--quiet", "--no-usage-report"]
    command.append(str(HERE / "overhead.k6.js"))
    environment = {**os.environ, **values}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"k6 failed: {done.stderr[-2000:]}")
    metrics: Document = json.loads(done.stdout)
    return metrics


def table(result: Document) -> str:
    has_before = "before_p50_ms" in result["rows"][0]
    before_heads = "| before, p50 ms | ratio " if has_before else ""
    lines = [
        "| answer | clients | engine, p50 ms | whole − engine, p50 ms | and − queue, p50 ms "
        "| echo at that pace, p50 ms | ratio | echo without a pause, p50 ms | ratio "
        f"{before_heads}|",
        "|---|" + "---:|" * (10 if has_before else 8),
    ]
    for size in (result, result["large"]):
        for row in size["rows"]:
            ours, paced, echo = (
                row[f"{name}_p50_ms"] for name in ("platform_unqueued", "paced", "echo")
            )
            before = ""
            if has_before:
                spent, pace = row["before_unqueued_p50_ms"], row["before_paced_p50_ms"]
                before = f"| {spent:.1f} | {spent / pace:.2f} "
            lines.append(
                f"| {size['answer_bytes'] / 1000:,.0f} kB | {row['clients']} "
                f"| {row['engine_p50_ms']:.0f} | {row['platform_p50_ms']:.1f} | {ours:.1f} "
                f"| {paced:.1f} | {ours / paced:.2f} | {echo:.1f} | {ours / echo:.2f} {before}|"
            )
    return "\n".join(lines)
