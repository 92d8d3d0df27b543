"""Write ``data_folder.tar.xz``: the data folder of a platform killed during requests.

Run it once per release, with its code, and commit the archive: later versions must open it
(test_upgrade.py). Without the base model and the public library's blobs, which every version
generates byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import httpx2

from assets.families.sdxl import schema_of
from assets.plan import Plan
from serving.bootstrap.backends import open_backends
from serving.miniature.model import MINIATURE_CONFIGS
from tests.support.platforms import Running, put_asset, running, wait_until
from tests.support.samples import write_inversion, write_kohya_lora

ARCHIVE = Path(__file__).parent / "data_folder.tar.xz"
#: Sent before and after the upgrade.
REQUEST: dict[str, Any] = {
    "prompt": "myword, small and red",
    "seed": 7,
    "steps": 3,
    "loras": {"стиль": 0.8},
}
REQUEST |= {"textual_inversions": {"word": "myword"}, "image_encoding": "png"}
LONG = {"prompt": "a long one", "steps": 50, "num_images": 4}


def image_of(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["images"][0]["image_b64"])


def job_status(http: httpx2.Client, job_id: str) -> str:
    return str(http.get(f"/v1/jobs/{job_id}").json()["status"])


def usage(http: httpx2.Client) -> dict[str, Any]:
    return dict(http.get("/v1/organisation").json())


def _fill(server: Running, http: httpx2.Client, folder: Path) -> dict[str, Any]:
    schema = schema_of(MINIATURE_CONFIGS)
    files = {
        "lora": write_kohya_lora(folder / "lora.safetensors", schema, rank=1, only="mid_block"),
        "textual_inversion": write_inversion(folder / "word.safetensors", schema),
    }
    names = {"lora": "стиль", "textual_inversion": "word"}
    assets = {
        kind: put_asset(http, path, kind, names[kind], data={}) for kind, path in files.items()
    }
    half = http.post("/v1/assets", json={"asset_type": "lora", "name": "half"}).json()
    httpx2.put(half["transfer_api"]["put_url"], content=files["lora"].read_bytes())
    generated = http.post("/generate/sdxl", json=REQUEST, headers={"Idempotency-Key": "finished"})
    assert generated.status_code == 200, generated.text
    queued = http.post("/generate/sdxl", json=REQUEST, headers={"X-OctoAI-Async": "1"}).json()
    wait_until(lambda: job_status(http, queued["response_id"]) == "completed")
    backends = open_backends(server.settings)
    backends.pins.add(assets["lora"]["id"])
    backends.close()
    waiting = [
        http.post("/generate/sdxl", json={**LONG, "seed": seed}, headers={"X-OctoAI-Async": "1"})
        for seed in range(3)
    ]
    jobs = [answer.json()["response_id"] for answer in waiting]
    wait_until(lambda: job_status(http, jobs[0]) != "pending")
    return {
        "key": server.key("acme"),
        "assets": {
            asset["id"]: {
                "name": asset["name"],
                "sha256": hashlib.sha256(files[kind].read_bytes()).hexdigest(),
            }
            for kind, asset in assets.items()
        },
        "half": half["asset"]["id"],
        "finished": queued["response_id"],
        "image_b64": base64.b64encode(image_of(generated.json())).decode(),
        "unfinished": jobs,
        "organisation": usage(http),
        "pins": [assets["lora"]["id"]],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with running(folder, "--in-process", replicas=1, effect_probe=False) as server:
            server.directory.put_plan(Plan("gold", gpu_s_per_month=10_000.0, storage_bytes=1 << 30))
            key = server.key("acme")
            server.directory.set_plan("acme", "gold")
            http = httpx2.Client(
                base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=120
            )
            expected = _fill(server, http, folder)
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
        data = folder / "data"
        with sqlite3.connect(data / "platform.db") as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            rows = database.execute("SELECT id, owner, parts, original FROM assets").fetchall()
            expected["content_keys"] = {id_: json.loads(parts) for id_, _, parts, _ in rows}
        own = " ".join(
            parts + (original or "") for _, owner, parts, original in rows if owner == "acme"
        )
        kept = folder / "kept"
        (kept / "store").mkdir(parents=True)
        for name in ("platform.db", "secret"):
            shutil.copy(data / name, kept / name)
        for path in sorted((data / "store").rglob("*")):
            inside = path.relative_to(data / "store")
            is_own = inside.name in own if inside.parts[0] == "blobs" else True
            if path.is_file() and is_own and inside.parts[0] not in ("models", "previews"):
                (kept / "store" / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / "store" / inside)
        (kept / "expected.json").write_text(json.dumps(expected, indent=1))
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(kept, ".")
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
