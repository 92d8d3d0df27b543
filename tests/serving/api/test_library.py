"""A library on a real server: versions, sharing, expiry, deletion."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from serving.bootstrap.backends import open_backends
from serving.cli import main
from tests.support.platforms import Running, put_asset
from tests.support.samples import write_kohya_lora

PROMPT = {
    "prompt": "a small red star",
    "seed": 3,
    "steps": 2,
    "image_encoding": "png",
    "metadata": False,
}


def client_of(platform: Running, tenant: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {platform.key(tenant)}"}
    return httpx2.Client(base_url=platform.url, headers=headers, timeout=60)


@pytest.fixture
def http(platform: Running) -> Iterator[httpx2.Client]:
    with client_of(platform, "atlas") as client:
        yield client


def put(http: httpx2.Client, file: Path, name: str, **fields: Any) -> dict[str, Any]:
    return put_asset(http, file, "lora", name, **fields)


def generate(http: httpx2.Client, reference: str) -> httpx2.Response:
    return http.post("/generate/sdxl", json={**PROMPT, "loras": {reference: 0.8}})


def image(answer: httpx2.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0]["image_b64"])


def keys_of(platform: Running, asset_id: str) -> set[str]:
    asset = open_backends(platform.settings).records.get(asset_id)
    assert asset is not None
    return {blob.key for blob in asset.parts.values()}


def on_disk(platform: Running) -> set[str]:
    folders = (platform.settings.resolved_disk_dir, platform.settings.resolved_host_dir)
    return {path.name for folder in folders for path in (folder / "objects").iterdir()}


def test_versions_of_a_name(http: httpx2.Client, sample_files: dict[str, Path]) -> None:
    first = put(http, sample_files["lora_all"], "look")
    taken = http.post("/v1/assets", json={"asset_type": "lora", "name": "look"})
    assert taken.status_code == 422
    image_1 = image(generate(http, "look"))
    second = put(http, sample_files["lora_cross"], "look", new_version=True)
    assert [asset["version"] for asset in (first, second)] == [1, 2]
    image_2 = image(generate(http, "look"))
    assert image_1 != image_2
    assert image(generate(http, "look@1")) == image(generate(http, "atlas:look@1")) == image_1
    assert image(generate(http, "look@2")) == image(generate(http, second["id"])) == image_2
    for unknown in ("look@3", "look@0", "look@x", "look@"):
        assert generate(http, unknown).status_code == 404
    listed = http.get("/v1/assets", params={"name": "look"}).json()["data"]
    assert [asset["version"] for asset in listed] == [1, 2]
    renamed = http.patch("/v1/assets/look", json={"name": "gaze"}).json()["asset"]
    assert (renamed["id"], renamed["version"]) == (second["id"], 2)
    assert image(generate(http, "gaze@1")) == image_1
    assert generate(http, "look").status_code == 404
    http.delete("/v1/assets/gaze")
    assert image(generate(http, "gaze")) == image_1  # the newest existing version
    third = put(http, sample_files["lora_cross"], "gaze", new_version=True)
    assert third["version"] == 3  # version numbers are never reused
    assert http.get("/v1/assets/gaze@3").json()["asset"]["uses"] == 0
    image(generate(http, "gaze"))
    assert http.get("/v1/assets/gaze@3").json()["asset"]["uses"] == 1


def test_a_shared_asset_can_be_used_but_not_downloaded(
    http: httpx2.Client, platform: Running, sample_files: dict[str, Path]
) -> None:
    asset = put(http, sample_files["lora_all"], "team", shared_with=["partner"], license="CC0")
    mine = image(generate(http, "team"))
    with client_of(platform, "partner") as partner, client_of(platform, "visitor") as outsider:
        assert (
            image(generate(partner, "atlas:team")) == image(generate(partner, asset["id"])) == mine
        )
        seen = partner.get("/v1/assets/atlas:team").json()
        assert seen["transfer_api"]["get_url"] == ""
        assert seen["asset"]["license"] == seen["asset"]["licence"] == "CC0"
        assert "report" not in seen["asset"]
        assert "shared_with" not in seen["asset"]
        assert partner.get("/v1/assets", params={"shared": True}).json()["total"] == 1
        assert partner.get("/v1/assets").json()["total"] == 0
        for ref in ("atlas:team", asset["id"], "team"):
            assert generate(outsider, ref).status_code == 404
        change = {"visibility": "organisation"}
        assert http.patch("/v1/assets/team", json=change).status_code == 200
        assert generate(partner, "atlas:team").status_code == 404
        assert partner.get("/v1/assets", params={"shared": True}).json()["total"] == 0
    acts = [act["act"] for act in http.get("/v1/audit").json()["data"]]
    assert "asset.share" in acts


def test_content_keys_follow_the_visibility(
    http: httpx2.Client, platform: Running, sample_files: dict[str, Path]
) -> None:
    asset = put(http, sample_files["lora_alpha"], "open")
    (private,) = keys_of(platform, asset["id"])
    before = image(generate(http, "open"))
    for visibility, prefix in (("public", "p"), ("private", "t")):
        assert http.patch("/v1/assets/open", json={"visibility": visibility}).is_success
        deadline = time.monotonic() + 30
        while not min(keys_of(platform, asset["id"])).startswith(prefix):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert image(generate(http, "open")) == before
    assert keys_of(platform, asset["id"]) == {private}


def test_an_asset_expires(http: httpx2.Client, sample_files: dict[str, Path]) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=3)
    put(http, sample_files["lora_cross"], "brief", expires_at=soon.isoformat())
    deadline = time.monotonic() + 30
    while http.get("/v1/assets/brief").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert datetime.now(UTC) >= soon
    assert generate(http, "brief").status_code == 404
    past = {"asset_type": "lora", "name": "late", "expires_at": "2020-01-01T00:00:00Z"}
    assert http.post("/v1/assets", json=past).status_code == 422
    asset = put(http, sample_files["lora_cross"], "kept", expires_at="2100-01-01T00:00:00Z")
    assert asset["expires_at"].startswith("2100")
    never = http.patch("/v1/assets/kept", json={"expires_at": "never"}).json()["asset"]
    assert never["expires_at"] is None


def test_a_deletion_evicts_from_every_tier(
    http: httpx2.Client, platform: Running, schema: Any, tmp_path: Path
) -> None:
    file = write_kohya_lora(tmp_path / "own.safetensors", schema, seed=77, only="attn2")
    asset = put(http, file, "gone")
    twin = put(http, file, "twin")
    (key,) = keys_of(platform, asset["id"])
    assert keys_of(platform, twin["id"]) == {key}
    url = http.get("/v1/assets/gone").json()["transfer_api"]["get_url"]
    image(generate(http, "gone"))
    assert key in on_disk(platform)
    http.delete("/v1/assets/gone")
    image(generate(http, "twin"))
    assert key in on_disk(platform)  # the twin refers to it
    assert httpx2.get(url).status_code == 200
    http.delete("/v1/assets/twin")
    deadline = time.monotonic() + 10
    while key in on_disk(platform):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert httpx2.get(url).status_code == 404
    status = httpx2.get(f"{platform.url}/v1/status").json()
    assert status["waiting"] == 0
    # Restored assets are fetched again from the store.
    assert http.post(f"/v1/assets/{asset['id']}/restore").is_success
    answer = generate(http, "gone")
    (entry,) = (a for a in answer.json()["receipt"]["assets"] if a["asset"] == "gone")
    assert entry["found_on"] == "store"


def test_invalid_values_and_foreign_previews_are_refused(
    http: httpx2.Client, platform: Running, sample_files: dict[str, Path]
) -> None:
    new = {"asset_type": "lora", "name": "odd"}
    for fields in (
        {"expires_at": "9999-12-31T23:59:59-12:00"},
        {"description": "a\u0000b"},
        {"data": {"trigger_words": ["a\u0000b"]}},
    ):
        assert http.post("/v1/assets", json={**new, **fields}).status_code == 422, fields
    asset = put(http, sample_files["lora_cross"], "used-by-others", visibility="public")
    with client_of(platform, "visitor") as outsider:
        answer = outsider.post(f"/v1/assets/{asset['id']}/preview", json={"steps": 1})
        assert answer.status_code == 404
        assert outsider.get("/v1/usage").json()["totals"]["pictures"] == 0


def test_members_and_names_of_assets(
    http: httpx2.Client, platform: Running, sample_files: dict[str, Path]
) -> None:
    platform.directory.add_member("atlas", "bob", "member")
    key = platform.directory.keyring.add_key("atlas", member="bob").text
    put(http, sample_files["lora_cross"], "ours", visibility="organisation")
    with httpx2.Client(
        base_url=platform.url, headers={"Authorization": f"Bearer {key}"}, timeout=60
    ) as bob:
        theirs = put(bob, sample_files["inversion"], "bobs", asset_type="textual_inversion")
        assert bob.get("/v1/assets/bobs").json()["asset"]["id"] == theirs["id"]
        put(bob, sample_files["lora_alpha"], "ours", new_version=True)
        assert bob.get("/v1/assets/ours").json()["asset"]["version"] == 2
        put(http, sample_files["lora_all"], "owners")
        taken = {"asset_type": "lora", "name": "owners", "new_version": True}
        assert bob.post("/v1/assets", json=taken).status_code == 422
        # Members cannot rename others' versions.
        put(http, sample_files["lora_all"], "ours", new_version=True)
        assert bob.patch("/v1/assets/ours", json={"name": "mine"}).status_code == 422
    reader = platform.directory.keyring.add_key("atlas", "", "member").text
    with httpx2.Client(
        base_url=platform.url, headers={"Authorization": f"Bearer {reader}"}, timeout=60
    ) as app:
        assert app.get("/v1/assets/bobs").status_code == 404


def test_paging_survives_a_deletion(http: httpx2.Client) -> None:
    names = [f"page-{index}" for index in range(5)]
    for name in names:
        body = {"asset_type": "lora", "name": name, "data": {"tags": ["paged"]}}
        http.post("/v1/assets", json=body).raise_for_status()
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        query: dict[str, str | int] = {"tag": "paged", "limit": 2, "after": after}
        page = http.get("/v1/assets", params=query).json()
        seen += [asset["name"] for asset in page["data"]]
        assert page["total"] in (5, 4)
        if len(seen) == 2:
            http.delete(f"/v1/assets/{seen[0]}")
        after = page["next"]
    assert seen == names


def test_residency_and_pins(
    platform: Running, http: httpx2.Client, schema: Any, tmp_path: Path
) -> None:
    file = write_kohya_lora(tmp_path / "own.safetensors", schema, seed=91, only="attn2")
    asset = put(http, file, "near")
    residency_url = f"/v1/assets/{asset['id']}/residency"
    (part,) = http.get(residency_url).json()["parts"]
    assert (part["replicas"], part["nodes"]) == ([], {})
    http.post(f"/v1/assets/{asset['id']}/warm").raise_for_status()
    deadline = time.monotonic() + 30
    while (part := http.get(residency_url).json()["parts"][0])["nodes"] != {
        "local": ["host", "disk"]
    }:
        assert time.monotonic() < deadline, part
        time.sleep(0.05)
    assert part["component"] == "lora"
    generate(http, asset["id"]).raise_for_status()
    assert http.get(residency_url).json()["parts"][0]["replicas"]
    with client_of(platform, "visitor") as outsider:
        assert outsider.get(residency_url).status_code == 404
    shown = CliRunner().invoke(
        main.app, ["assets", "where", "near", "--url", platform.url, "--key", platform.key("atlas")]
    )
    assert "device of default-" in shown.output, shown.output

    def pins(*arguments: str) -> str:
        folder = ["--data-dir", str(platform.settings.data_dir)]
        done = CliRunner().invoke(main.app, ["pins", *arguments, *folder])
        assert done.exit_code == 0, done.output
        return done.output

    assert "atlas:near@1 is pinned" in pins("add", "atlas:near")
    assert "near@1" in pins("list")
    backends = open_backends(platform.settings)
    assert backends.pins.keys() == {part["content_key"]}
    assert "not pinned any more" in pins("remove", asset["id"])
    assert backends.pins.keys() == frozenset()
    done = CliRunner().invoke(
        main.app, ["pins", "add", "x", "--data-dir", str(platform.settings.data_dir)]
    )
    assert done.exit_code == 1
