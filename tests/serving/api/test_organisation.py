"""A tenant's plan, usage and administration on a real server."""

from __future__ import annotations

import csv
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from assets.plan import Plan
from serving.bootstrap.backends import open_backends
from serving.tenants.keyring import KEY_CACHE_S
from tests.support.platforms import Running, wait_until

PROMPT = {"prompt": "a small red star", "seed": 3, "steps": 2}


def client_of(platform: Running, tenant: str, **key: Any) -> httpx2.Client:
    text = platform.directory.keyring.add_key(tenant, **key).text if key else platform.key(tenant)
    headers = {"Authorization": f"Bearer {text}"}
    return httpx2.Client(base_url=platform.url, headers=headers, timeout=60)


def plan_of(http: httpx2.Client) -> str:
    """The plan that the gateway applies, which it caches with the key."""
    return str(http.get("/v1/organisation").json()["plan"]["name"])


def usage(http: httpx2.Client, images: int) -> dict[str, Any]:
    """Wait for the charges, shortly after the response."""
    deadline = time.monotonic() + 10
    while (body := http.get("/v1/usage").json())["totals"]["pictures"] < images:
        assert time.monotonic() < deadline, body
        time.sleep(0.01)
    return dict(body)


def test_images_are_charged_and_failures_are_not(platform: Running) -> None:
    with client_of(platform, "payer") as http:
        assert http.post("/generate/sdxl", json={**PROMPT, "num_images": 2}).status_code == 200
        for refused in (
            {**PROMPT, "steps": 0},
            {**PROMPT, "loras": {"nothing": 1.0}},
            {**PROMPT, "width": 5, "height": 5},
        ):
            assert http.post("/generate/sdxl", json=refused).is_client_error
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/generate/sdxl", json={**PROMPT, "steps": 200}, timeout=0.5)
        accepted = http.post("/generate/sdxl", json=PROMPT, headers={"X-OctoAI-Async": "1"}).json()
        deadline = time.monotonic() + 60
        while http.get(accepted["poll_url"]).json()["status"] != "completed":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        body = usage(http, 3)
        assert [row["kind"] for row in body["data"]] == ["picture"] * 3
        assert len({row["reference"] for row in body["data"]}) == 3
        assert body["data"][-1]["reference"].startswith(accepted["response_id"])
        assert all(row["unit"] == "gpu_s" and row["quantity"] > 0 for row in body["data"])
        assert body["data"][0]["details"]["steps"] == 2
        assert body["totals"]["pictures"] == 3
        pages = [http.get("/v1/usage", params={"limit": 2}).json()]
        pages.append(http.get("/v1/usage", params={"after": pages[0]["next"]}).json())
        assert [r["id"] for page in pages for r in page["data"]] == [r["id"] for r in body["data"]]
        exported = http.get("/v1/usage.csv")
        assert exported.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(exported.text)))
        assert [row["reference"] for row in rows] == [r["reference"] for r in body["data"]]
        assert float(rows[0]["quantity"]) == body["data"][0]["quantity"]
        future = {"since": "2100-01-01T00:00:00Z"}
        assert http.get("/v1/usage", params=future).json()["data"] == []
        used = http.get("/v1/organisation").json()["used"]
        assert used["gpu_s"] == pytest.approx(body["totals"]["gpu_s"])
        assert used["reserved_gpu_s"] == 0.0
    open_backends(platform.settings).meter.check_integrity()


def test_an_exhausted_budget_gets_402(platform: Running) -> None:
    with client_of(platform, "thrifty") as http:
        assert http.post("/generate/sdxl", json=PROMPT).status_code == 200
        used = usage(http, 1)["totals"]["gpu_s"]
        platform.directory.put_plan(Plan("thrifty", gpu_s_per_month=used * 1.01))
        platform.directory.set_plan("thrifty", "thrifty")
        wait_until(lambda: plan_of(http) == "thrifty", 2 * KEY_CACHE_S)
        for headers in ({}, {"X-OctoAI-Async": "1"}, {"Idempotency-Key": "k"}):
            answer = http.post("/generate/sdxl", json=PROMPT, headers=headers)
            assert answer.status_code == 402, answer.text
            assert answer.json()["code"] == "budget_exceeded"
        assert len(http.get("/v1/usage").json()["data"]) == 1
        # Refusals do not use up the key.
        platform.directory.set_plan("thrifty", "unlimited")
        wait_until(lambda: plan_of(http) == "unlimited", 2 * KEY_CACHE_S)
        again = http.post("/generate/sdxl", json=PROMPT, headers={"Idempotency-Key": "k"})
        assert again.status_code == 200


def test_rate_limits(platform: Running) -> None:
    platform.directory.put_plan(Plan("few", requests_per_min=3, concurrent_pictures=2))
    platform.directory.add_tenant("hasty", plan="few")
    with client_of(platform, "hasty", label="x") as http:
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(http.post, "/generate/sdxl", json=PROMPT) for _ in range(8)]
        answers = [future.result() for future in futures]
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
        for answer in answers:
            assert answer.headers["ratelimit-policy"] == '"requests";q=3;w=60'
            assert answer.headers["ratelimit"].startswith('"requests";r=')
            if answer.status_code == 429:
                assert answer.json()["code"] == "rate_limited"
                assert 0 < int(answer.headers["retry-after"]) <= 20
        reads = [http.get("/v1/assets") for _ in range(8)]
        assert reads[0].status_code == 200
        assert reads[-1].status_code == 429
        assert 0 < int(reads[-1].headers["retry-after"]) <= 2
        platform.directory.set_plan("hasty", "unlimited")
        deadline = time.monotonic() + 30
        while "ratelimit" in http.get("/v1/assets").headers:  # keys are cached for seconds
            assert time.monotonic() < deadline
        assert usage(http, 3)["totals"]["pictures"] == 3
    platform.directory.put_plan(Plan("few", concurrent_pictures=2))
    platform.directory.set_plan("hasty", "few")
    with client_of(platform, "hasty", label="y") as http:
        many = http.post("/generate/sdxl", json={**PROMPT, "num_images": 3})
        assert many.status_code == 422
        assert "2 images at a time" in many.json()["message"]


def test_storage_and_asset_limits(platform: Running, sample_files: dict[str, Path]) -> None:
    size = sample_files["inversion"].stat().st_size
    platform.directory.put_plan(Plan("small", storage_bytes=3 * size, assets=3))
    platform.directory.add_tenant("small", plan="small")
    platform.keys["small"] = platform.directory.keyring.add_key("small").text
    client = platform.client("small")
    one = client.upload(sample_files["inversion"], "textual_inversion", "one")
    client.await_ready(one["id"])
    with client_of(platform, "small") as http:
        new = {"asset_type": "lora", "name": "two"}
        created = http.post("/v1/assets", json=new).json()
        too_much = httpx2.put(
            created["transfer_api"]["put_url"], content=sample_files["lora_all"].read_bytes()
        )
        assert too_much.status_code == 413
        assert http.post("/v1/assets", json={**new, "name": "three"}).status_code == 200
        fourth = http.post("/v1/assets", json={**new, "name": "four"})
        assert fourth.status_code == 403
        assert fourth.json()["code"] == "quota_exceeded"
        used = http.get("/v1/organisation").json()["used"]
        assert used["assets"] == 3
        assert 0 < used["storage_bytes"] <= 3 * size


def test_an_organisation_administers_itself(platform: Running) -> None:
    with client_of(platform, "guild") as http, client_of(platform, "other") as outsider:
        ann = http.post("/v1/members", json={"name": "ann", "role": "member"}).json()
        key = http.post("/v1/keys", json={"label": "laptop", "member": "ann"}).json()
        with httpx2.Client(
            base_url=platform.url, headers={"Authorization": f"Bearer {key['key']}"}
        ) as hers:
            me = hers.get("/v1/organisation").json()
            assert (me["name"], me["role"], me["member"]) == ("guild", "member", ann["id"])
            for path in ("/v1/members", "/v1/keys", "/v1/audit"):
                assert hers.get(path).status_code == 403
            assert hers.post("/v1/keys", json={}).status_code == 403
            for call in (outsider.delete, http.delete):
                assert call("/v1/keys/nothing").status_code == 404
            assert outsider.delete(f"/v1/keys/{key['id']}").status_code == 404
            assert hers.get("/v1/usage").status_code == 200
            rotated = http.post(f"/v1/keys/{key['id']}/rotate", json={"overlap_s": 0}).json()
            assert rotated["replaces"] == key["id"]
            listed = {k["id"]: k for k in http.get("/v1/keys").json()["data"]}
            assert listed[rotated["id"]]["member"] == "ann"
            assert key["key"] not in str(listed)
            assert http.delete("/v1/members/ann").json() == {"name": "ann", "removed": True}
            deadline = time.monotonic() + 10
            while hers.get("/v1/organisation").status_code != 401:
                assert time.monotonic() < deadline, "revoked within seconds"
                time.sleep(0.1)
        acts = [act["act"] for act in http.get("/v1/audit").json()["data"]]
        assert acts[:4] == ["member.remove", "key.rotate", "key.create", "member.add"]
        assert http.get("/v1/members").json()["data"] == []
