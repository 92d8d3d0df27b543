"""Kills the platform at every failpoint, restarts it and checks consistency."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from assets.failpoint import FAILPOINTS
from assets.library.removal import RESTORABLE_S
from assets.storage.object_paths import BLOBS
from serving.bootstrap.backends import open_backends
from serving.settings import Settings
from serving.tenants.meter import Meter
from tests.support.platforms import Running, running

DOCUMENT = Path(__file__).parents[2] / "docs" / "crashes.md"
PROMPT = {"prompt": "a small red star", "seed": 3, "steps": 1}
NAME = "word"
#: A failpoint of each kind; the full tests have the others.
SAMPLE = (
    "upload.completed", "ingest.stored", "delete.recorded", "collect.removed", "generate.drawn",
    "job.stored",
)  # fmt: skip
pytestmark = pytest.mark.timeout(240)


def documented() -> dict[str, int]:
    """Charged images by failpoint, from docs/crashes.md."""
    rows = re.findall(r"^\| `([a-z.]+)` \|.*\| (\d+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {label: int(charged) for label, charged in rows}


def test_every_failpoint_is_documented() -> None:
    assert list(documented()) == list(FAILPOINTS)


def client_of(server: Running) -> httpx2.Client:
    if not server.directory.tenants():
        server.directory.add_tenant("acme")
    key = server.directory.keyring.add_key("acme").text
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=server.url, headers=headers, timeout=60)


def upload(http: httpx2.Client, file: Path) -> str:
    assets = http.get("/v1/assets", params={"name": NAME}).json()["data"]
    if not assets:
        data = {"asset_type": "textual_inversion", "trigger_words": [NAME]}
        new = {"asset_type": "textual_inversion", "name": NAME, "data": data}
        assets = [http.post("/v1/assets", json=new).json()["asset"]]
    asset_id = str(assets[0]["id"])
    described = http.get(f"/v1/assets/{asset_id}").json()
    if described["asset"]["status"] == "ready_to_upload":
        httpx2.put(described["transfer_api"]["put_url"], content=file.read_bytes())
        http.post(f"/v1/assets/{asset_id}/complete-upload", json={}).raise_for_status()
    deadline = time.monotonic() + 60
    while (asset := http.get(f"/v1/assets/{asset_id}").json()["asset"])["status"] != "ready":
        assert asset["status"] == "uploaded", asset
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return asset_id


def delete(http: httpx2.Client, _: Path) -> None:
    http.delete(f"/v1/assets/{NAME}")
    assert http.get(f"/v1/assets/{NAME}").status_code == 404


def collect(settings: Settings, label: str | None) -> int:
    script = (
        "import time; from serving.bootstrap.backends import open_backends; "
        "from serving.settings import Settings; "
        f"open_backends(Settings(), lambda: time.time() + {2 * RESTORABLE_S}).reconciler.run()"
    )
    chosen = settings.model_copy(update={"failpoint": label})
    return subprocess.run([sys.executable, "-c", script], env=chosen.to_environment()).returncode


def generate(http: httpx2.Client, _: Path) -> None:
    http.post("/generate/sdxl", json=PROMPT).raise_for_status()


def generate_once(http: httpx2.Client, _: Path) -> None:
    answer = http.post("/generate/sdxl", json=PROMPT, headers={"Idempotency-Key": "k"})
    answer.raise_for_status()


WORK: dict[str, Callable[[httpx2.Client, Path], Any]] = {
    "upload": upload, "ingest": upload, "delete": delete,
    "generate": generate, "job": generate_once,
}  # fmt: skip


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(label, marks=[pytest.mark.full, *([pytest.mark.slow] * (label in SAMPLE))])
        for label in FAILPOINTS
    ],
)
def test_recovery_after_a_kill_at(
    label: str, tmp_path: Path, sample_files: dict[str, Path]
) -> None:
    file, kind = sample_files["inversion"], label.split(".")[0]

    def started(**settings: Any) -> Any:
        return running(tmp_path, "--in-process", replicas=1, request_timeout_s=60.0, **settings)

    answered = False
    if kind in ("ingest", "delete", "collect"):  # the first start ingests the public library
        with started() as server, client_of(server) as http:
            if kind != "ingest":
                upload(http, file)
            if kind == "collect":
                delete(http, file)
    if kind == "collect":
        assert collect(server.settings, label) == -signal.SIGKILL
        assert collect(server.settings, None) == 0
    else:
        with started(failpoint=label) as server, client_of(server) as http:
            try:
                WORK[kind](http, file)
                answered = True
            except httpx2.HTTPError:
                pass
            assert server.process.wait(60) == -signal.SIGKILL
        assert answered == (label in ("generate.answered", "generate.settled"))
        with started() as server, client_of(server) as http:
            if not answered:
                WORK[kind](http, file)
            if kind in ("upload", "ingest"):
                use = {**PROMPT, "prompt": NAME, "textual_inversions": {NAME: ""}}
                assert http.post("/generate/sdxl", json=use).is_success
                assert http.get("/v1/assets").json()["total"] == 1
    _check(server.settings, documented()[label] + (kind in ("upload", "ingest")))


def _check(settings: Settings, charged: int) -> None:
    """Check consistency after all expiries."""
    later = open_backends(settings, lambda: time.time() + 2 * 3600.0)
    later.reconciler.run()
    engine = later.database
    Meter(engine, lambda: time.time() + 2 * 3600.0).release_expired()
    assert not any(later.reconciler.run().values()), "the second run still found work"
    later.meter.check_integrity()
    (tenant_id,) = (t.id for t in later.directory.tenants() if t.name == "acme")
    budget = later.meter.ledger.budget(tenant_id)
    assert budget.reserved_gpu_s == 0.0
    assert later.meter.ledger.totals(tenant_id)["pictures"] == charged
    referred = set(later.records.referred())
    stored = {s.key.rpartition("/")[2] for s in later.store.list(BLOBS)}
    assert referred <= stored
    folder = settings.data_dir
    assert not list(folder.glob("scratch/ingest-*"))
    assert not list(folder.glob("store/**/*.part"))
    assert not [path for path in folder.glob("store/uploads/*") if path.is_file()]
