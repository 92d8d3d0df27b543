"""Whole requests to a running platform, measured by k6 and locust in four scenarios.

Prints min, mean, p50, p95, p99 and max in milliseconds for each tool and scenario:

    base              only the base model
    warm LoRA         the same LoRA in every request
    changing LoRA     a different LoRA in every request, all in the GPU tier
    cold LoRA         a LoRA that no replica has used
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from assets.families.sdxl import schema_of
from benchmarks.document import Document
from serving.bootstrap.backends import open_backends
from serving.cli.client import Client
from serving.miniature.model import MINIATURE_CONFIGS
from serving.settings import Settings
from tests.support.samples import write_kohya_lora
from tests.support.servers import end_serving, free_port, start_serving

HERE = Path(__file__).parent
RESULT = HERE / "results" / "http.json"
USERS = 2
STEPS = 4
CHANGING = 8
TOOLS = ("k6", "locust")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario: ``iterations`` requests with each LoRA once, or a fixed time."""

    name: str
    loras: Sequence[str]
    iterations: int | None = None


@dataclass(frozen=True, slots=True)
class ScenarioFigures:
    """Milliseconds of whole requests as the tool measured them."""

    tool: str
    scenario: str
    requests: int
    failed: int
    min: float
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@contextmanager
def platform_for(
    folder: Path, model: Path | None, replicas: int = 2
) -> Iterator[tuple[Settings, Client, str]]:
    data = folder / "data"
    settings = Settings(data_dir=data, port=free_port(), model=model, replicas=replicas)
    server = start_serving(settings, folder / "serve.log", environment=os.environ)
    try:
        directory = open_backends(settings).directory
        directory.add_tenant("bench")
        key = directory.keyring.add_key("bench").text
        with Client(settings.resolved_public_url, key) as client:
            yield settings, client, key
    finally:
        end_serving(server)


def upload_loras(client: Client, folder: Path, count: int, prefix: str) -> list[str]:
    schema = schema_of(MINIATURE_CONFIGS)
    ids = []
    for index in range(count):
        path = write_kohya_lora(folder / f"{prefix}{index}.safetensors", schema, seed=index)
        asset = client.upload(path, "lora", path.stem)
        ids.append(client.await_ready(asset["id"])["id"])
        path.unlink()
    return ids


def environment_of(scenario: Scenario, url: str, key: str, seconds: int) -> dict[str, str]:
    values = {
        "AO_URL": url,
        "AO_KEY": key,
        "LORAS": json.dumps(list(scenario.loras)),
        "STEPS": str(STEPS),
        "USERS": str(USERS),
        "SECONDS": str(seconds),
    }
    if scenario.iterations is not None:
        values["ITERATIONS"] = str(scenario.iterations)
    return {**os.environ, **values}


def tool_path(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def run_k6(scenario: Scenario, environment: Mapping[str, str]) -> ScenarioFigures:
    command = [tool_path("k6"), "run", "--quiet", "--no-usage-report"]
    command += [str(HERE / "generate.k6.js")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    metrics = json.loads(done.stdout)["metrics"]
    spent = metrics["http_req_duration"]["values"]
    checks = metrics["checks"]["values"]
    return ScenarioFigures(
        "k6",
        scenario.name,
        int(checks["passes"] + checks["fails"]),
        int(checks["fails"]),
        spent["min"],
        spent["avg"],
        spent["p(50)"],
        spent["p(95)"],
        spent["p(99)"],
        spent["max"],
    )


def run_locust(scenario: Scenario, environment: Mapping[str, str], seconds: int) -> ScenarioFigures:
    limit = "300s" if scenario.iterations else f"{seconds}s"
    command = [tool_path("locust"), "-f", str(HERE / "locustfile.py"), "--headless", "--json"]
    command += ["-u", str(USERS), "-r", str(USERS), "-t", limit, "--stop-timeout", "60"]
    command += ["--exit-code-on-error", "0", "--loglevel", "ERROR"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    stats = json.loads(done.stdout)[0]
    histogram = {float(k): int(v) for k, v in stats["response_times"].items()}
    count = stats["num_requests"]
    return ScenarioFigures(
        "locust",
        scenario.name,
        count,
        stats["num_failures"],
        stats["min_response_time"],
        stats["total_response_time"] / count,
        percentile(histogram, 0.50),
        percentile(histogram, 0.95),
        percentile(histogram, 0.99),
        stats["max_response_time"],
    )


def percentile(histogram: Mapping[float, int], share: float) -> float:
    """Return a quantile of a histogram value → count (locust rounds values to two digits)."""
    target = share * sum(histogram.values())
    seen = 0
    for value, count in sorted(histogram.items()):
        seen += count
        if seen >= target:
            return value
    raise ValueError("the histogram is empty")


def table(rows: Sequence[ScenarioFigures]) -> Table:
    result = Table(title=f"whole requests in ms; {USERS} users, {STEPS} steps")
    for column in ("tool", "scenario"):
        result.add_column(column)
    for column in ("requests", "failed", "min", "mean", "p50", "p95", "p99", "max"):
        result.add_column(column, justify="right")
    for row in rows:
        figures = (row.min, row.mean, row.p50, row.p95, row.p99, row.max)
        cells = [row.tool, row.scenario, str(row.requests), str(row.failed)]
        result.add_row(*cells, *(f"{figure:.0f}" for figure in figures))
    return result


def markdown(result: Document) -> str:
    """Return docs/benchmarks.md's table."""
    figures = ("p50", "p95", "p99", "max")
    heads = ["asked by", "scenario", "requests", "failed", *(f"{name}, ms" for name in figures)]
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("|---|---|---:|---:|" + "---:|" * len(figures))
    for row in result["rows"]:
        cells = [row["tool"], row["scenario"], str(row["requests"]), str(row["failed"])]
        lines.append("| " + " | ".join(cells + [f"{row[name]:.0f}" for name in figures]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="for each scenario and tool")
    parser.add_argument("--cold", type=int, default=16, help="cold LoRAs for each tool")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the platform
    rows: list[ScenarioFigures] = []
    with TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        with platform_for(folder, None) as (settings, client, key):
            print("uploading LoRAs …", file=sys.stderr)
            warm = upload_loras(client, folder, CHANGING, "warm")
            for lora in warm * 4:  # on every replica
                client.generate({"prompt": "x", "steps": 1, "loras": {lora: 1.0}})
            for tool in TOOLS:
                cold = upload_loras(client, folder, arguments.cold, f"cold-{tool}-")
                scenarios = (
                    Scenario("base", ()),
                    Scenario("warm LoRA", warm[:1]),
                    Scenario("changing LoRA", warm),
                    Scenario("cold LoRA", cold, arguments.cold),
                )
                for scenario in scenarios:
                    print(f"{tool}: {scenario.name} …", file=sys.stderr)
                    environment = environment_of(
                        scenario, settings.resolved_public_url, key, arguments.seconds
                    )
                    if tool == "k6":
                        rows.append(run_k6(scenario, environment))
                    else:
                        rows.append(run_locust(scenario, environment, arguments.seconds))
    Console(width=120).print(table(rows))
    document: Document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "model": "miniature",
        "users": USERS,
        "steps": STEPS,
        "rows": [asdict(row) for row in rows],
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {arguments.out}", file=sys.stderr)
    failed = sum(row.failed for row in rows)
    if failed:
        raise SystemExit(f"{failed} requests failed")


if __name__ == "__main__":
    main()
