"""The phases of a replica's start on a running machine.

    python -m benchmarks coldstart       # about two minutes

In new processes; the model comes from a real S3 server after or during the imports, or from disk. A
proxy fixes the rate: the miniature's 22 MB at 4 MB/s take as long as SDXL's 7 GB at 1.3 GB/s. Ray's
part is in ``GET /v1/pools`` of a running cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.document import Document
from tests.support.servers import s3_options, s3_server

RESULT = Path(__file__).parent / "results" / "coldstart.json"
RATE_BYTES_S = 4e6
WAYS = {
    "after": "from the store, after the imports",
    "beside": "from the store, beside the imports",
    "disk": "from the node's disk",
}
PARTS = ("imports", "model", "warm-up")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks coldstart")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(start(arguments.start)))
        return
    with TemporaryDirectory(prefix="coldstart-") as temporary:
        result = measure(Path(temporary), arguments.rounds)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


def start(way: str) -> dict[str, float]:
    """Start a replica as serving/cluster/replicas.py does; return seconds by part."""
    laps = [time.perf_counter()]
    import ray.serve  # noqa: F401  (part of a replica's imports)

    from serving.bootstrap.tiers import open_provisioner
    from serving.cluster.replicas import fetch_base
    from serving.settings import Settings

    settings = Settings()
    provisioner = open_provisioner(settings)
    fetching = fetch_base(settings, provisioner) if way == "beside" else None
    from serving.bootstrap.engine import open_replica

    laps.append(time.perf_counter())
    open_replica(settings, "cold", provisioner, loaded=lambda: laps.append(time.perf_counter()))
    laps.append(time.perf_counter())
    if fetching is not None:
        fetching.join()
    return {part: laps[i + 1] - laps[i] for i, part in enumerate(PARTS)}


def measure(folder: Path, rounds: int) -> Document:
    from tests.support.store_proxy import StoreProxy

    starts: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with s3_server(folder / "s3") as port:
        environment = _environment(folder, port)
        _install(environment)
        proxy = StoreProxy(port, RATE_BYTES_S)
        environment |= _environment(folder, proxy.port)
        for index in range(rounds):
            for way in WAYS:
                tiers = folder / "tiers"
                if way != "disk":
                    shutil.rmtree(tiers, ignore_errors=True)
                else:
                    shutil.rmtree(tiers / "host", ignore_errors=True)
                print(f"round {index + 1}: {WAYS[way]} …", file=sys.stderr)
                command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "coldstart"]
                done = subprocess.run(
                    [*command, "--start", way], env=environment, capture_output=True, text=True
                )
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                starts[way].append(json.loads(done.stdout.splitlines()[-1]))
        proxy.close()
    return {
        "rounds": rounds,
        "bytes_per_s": RATE_BYTES_S,
        "ways": {
            way: {
                **{part: median(run[part] for run in runs) for part in PARTS},
                "whole": median(sum(run.values()) for run in runs),
            }
            for way, runs in starts.items()
        },
        "runs": starts,
    }


def _environment(folder: Path, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "AO_DATA_DIR": str(folder / "data"),
        "AO_STORE_URL": "s3://bucket/cold",
        "AO_STORE_OPTIONS": json.dumps(s3_options(port)),
        "AO_DISK_DIR": str(folder / "tiers" / "disk"),
        "AO_HOST_DIR": str(folder / "tiers" / "host"),
    }


def _install(environment: Mapping[str, str]) -> None:
    code = (
        "from serving.bootstrap.backends import open_backends;"
        "from serving.bootstrap.base_model import install_model, open_ingest_service;"
        "from serving.settings import Settings;"
        "s = Settings(); install_model(s, open_ingest_service(s, open_backends(s)))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True)


def table(result: Document) -> str:
    lines = [
        "| the model comes | imports, s | model, s | first image, s | whole, s |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {WAYS[way]} | " + " | ".join(f"{times[part]:.1f}" for part in (*PARTS, "whole")) + " |"
        for way, times in result["ways"].items()
    ]
    return "\n".join(lines)
