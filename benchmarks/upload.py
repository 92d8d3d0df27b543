"""The memory of every process while a large file is uploaded and ingested.

Uploads a checkpoint with a single PUT, as OctoAI's clients do, and in concurrent parts. Reports
each process's maximum increase.
"""

from __future__ import annotations

import argparse
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil

from assets.content import MODEL_COMPONENTS
from assets.families.sdxl import schema_of
from benchmarks.document import Document
from benchmarks.http import platform_for
from serving.cli.client import Client
from serving.cli.transfer import send, sha256_of
from serving.miniature.model import MINIATURE_CONFIGS, weights
from serving.miniature.single_file import write_single_file
from tests.support.samples import write_padded

RESULT = Path(__file__).parent / "results" / "upload.json"
_EVERY_S = 0.05
#: Allowed increase of a process.
FLAT_BYTES = 192 << 20


class Watch:
    """Samples the maximum increase of private memory by role (not shared memory or mapped
    files)."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._before: dict[int, int] = {}
        self.more: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _sample(self) -> Iterator[tuple[psutil.Process, int]]:
        family = psutil.Process(self._parent)
        for process in [family, *family.children(recursive=True)]:
            try:
                used = process.memory_info()
                yield process, int(used.rss - used.shared)
            except psutil.Error:
                continue

    def _run(self) -> None:
        while not self._stop.is_set():
            for process, used in self._sample():
                before = self._before.get(process.pid)
                if before is None:  # a child's inherited pages are no growth
                    self._before[process.pid] = before = used
                try:
                    name = _role(process)
                except psutil.Error:
                    continue
                self.more[name] = max(self.more.get(name, 0), used - before)
            self._stop.wait(_EVERY_S)

    def __enter__(self) -> Watch:
        self._before = {process.pid: used for process, used in self._sample()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _role(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for mark, role in (
        ("assets.ingest.sandbox_worker", "inspection"),
        ("spawn_main", "gateway"),
        ("IngestActor", "ingest"),
        ("DispatcherActor", "dispatcher"),
        ("ServeReplica", "replica"),
        ("ServeController", "Serve's controller"),
        ("serving.cli.main", "serve"),
    ):
        if mark in command:
            return role
    return "the rest of Ray"


def single_put(client: Client, path: Path, name: str) -> Document:
    new = {"asset_type": "checkpoint", "name": name}
    created = client.call("POST", "/v1/assets", json=new)
    with open(path, "rb") as file:
        length = {"Content-Length": str(path.stat().st_size)}
        put = created["transfer_api"]["put_url"]
        httpx2.put(put, content=file, headers=length, timeout=600).raise_for_status()
    client.call("POST", f"/v1/assets/{created['asset']['id']}/complete-upload", json={})
    return dict(created["asset"])


def in_parts(client: Client, path: Path, name: str) -> Document:
    new = {"asset_type": "checkpoint", "name": name}
    return send(client, path, new, digest=sha256_of(path))


WAYS: Mapping[str, Callable[[Client, Path, str], Document]] = {
    "a single PUT": single_put,
    "in parts": in_parts,
}


@contextmanager
def large_file(folder: Path, size_bytes: int) -> Iterator[Path]:
    values = {component: weights(component) for component in MODEL_COMPONENTS}
    schema = schema_of(MINIATURE_CONFIGS)
    small = write_single_file(folder / "small.safetensors", schema, lambda c, n, _: values[c][n])
    yield write_padded(small, folder / "large.safetensors", size_bytes)


def measure(size_bytes: int) -> Document:
    runs = {}
    with TemporaryDirectory(prefix="upload-") as temporary:
        folder = Path(temporary)
        with large_file(folder, size_bytes) as path, platform_for(folder, None) as (_, client, key):
            del key
            server = client.call("GET", "/v1/status")["replicas"][0]["pid"]
            parent = _ancestor(server)
            warm = single_put(
                client, folder / "small.safetensors", "warm"
            )  # starts the sandbox process
            client.await_ready(warm["id"])
            for way, upload in WAYS.items():
                started = time.perf_counter()
                with Watch(parent) as watch:
                    asset = upload(client, path, way.replace(" ", "-"))
                    sent = time.perf_counter() - started
                    client.await_ready(asset["id"])
                runs[way] = {
                    "upload_s": sent,
                    "ingest_s": time.perf_counter() - started - sent,
                    "more_bytes": dict(sorted(watch.more.items())),
                }
                client.call("DELETE", f"/v1/assets/{asset['id']}")
            size = path.stat().st_size
    machine = {"cpu": platform.processor() or platform.machine()}
    return {"size_bytes": size, "runs": runs, "machine": machine}


def _ancestor(pid: int) -> int:
    """Return the ancestor of ``pid`` that this process started."""
    mine = psutil.Process().children(recursive=False)
    family = {child.pid for child in mine}
    process: psutil.Process | None = psutil.Process(pid)
    while process is not None:
        if process.pid in family:
            return int(process.pid)
        process = process.parent()
    return max(family)


def table(result: Document) -> str:
    ways = list(result["runs"])
    roles = sorted({role for run in result["runs"].values() for role in run["more_bytes"]})
    lines = [f"| process | {' | '.join(f'{way}, MiB more' for way in ways)} |", "|---|---|---|"]
    for role in roles:
        cells = (f"{run['more_bytes'].get(role, 0) / 2**20:.0f}" for run in result["runs"].values())
        lines.append(f"| {role} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(int(options.gigabytes * 1e9))
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else table(result))
    worst = max(more for run in result["runs"].values() for more in run["more_bytes"].values())
    if worst > FLAT_BYTES:
        raise SystemExit(
            f"a process grew by {worst / 2**20:.0f} MiB; at most {FLAT_BYTES >> 20} MiB are allowed"
        )


if __name__ == "__main__":
    main()
