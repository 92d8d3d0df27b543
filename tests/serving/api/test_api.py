"""A real server's API: formats, errors, uploads, jobs, the native route."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.bootstrap.backends import open_backends
from serving.cli.output import ApiFailure
from serving.jobs.store import JobRow
from serving.miniature.catalogue import CATALOGUE
from tests.support.platforms import Running, running
from tests.support.samples import write_wild_lora

PROMPT = {"prompt": "a small red star", "seed": 3, "steps": 2, "image_encoding": "png"}


@pytest.fixture(scope="module")
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('acme')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def lora(platform: Running, sample_files: dict[str, Path]) -> dict[str, Any]:
    client = platform.client()
    asset = client.upload(sample_files["lora_all"], "lora", "style", "a style", ["stylish"])
    return client.await_ready(asset["id"])


def image(answer: dict[str, Any], index: int = 0) -> bytes:
    return base64.b64decode(answer["images"][index]["image_b64"])


def test_generation_response_has_octoais_format(http: httpx2.Client) -> None:
    response = http.post("/generate/sdxl", json={**PROMPT, "num_images": 2})
    assert response.status_code == 200
    body = response.json()
    assert [image["seed"] for image in body["images"]] == [3, 4]
    assert all(image["removed_for_safety"] is False for image in body["images"])
    assert isinstance(body["prediction_time_ms"], float)
    assert set(body["timings_ms"]) >= {"queue", "fetch", "swap", "denoise", "decode"}
    assert {a["asset"] for a in body["receipt"]["assets"]} == {"base"}
    assert response.headers["x-request-id"] == response.headers["x-user-request-id"]
    first = Image.open(io.BytesIO(image(body)))
    assert (first.format, first.size) == ("PNG", (128, 128))


def test_nulls_and_extra_fields_of_older_clients_are_accepted(http: httpx2.Client) -> None:
    request = {**PROMPT, "loras": None, "steps": 1, "width": None, "cfg_scale": None}
    request |= {"image_encoding": None, "enable_safety": True, "use_refiner": True}
    body = http.post("/generate/sdxl", json=request).json()
    assert Image.open(io.BytesIO(image(body))).format == "JPEG"


def test_api_sizes_are_scaled_and_reported(http: httpx2.Client) -> None:
    request = {**PROMPT, "width": 1344, "height": 768}
    body = http.post("/generate/sdxl", json=request).json()
    assert Image.open(io.BytesIO(image(body))).size == (168, 96)
    assert body["receipt"]["size"] == {"width": 168, "height": 96, "scaled_to_model": True}


def test_any_multiple_of_eight_and_webp_on_the_native_route(http: httpx2.Client) -> None:
    request = {**PROMPT, "width": 72, "height": 96, "image_encoding": "webp"}
    answer = http.post("/generate", json=request).raise_for_status().json()
    assert answer["receipt"]["size"] == {"width": 72, "height": 96, "scaled_to_model": False}
    file = httpx2.get(answer["public_url"]).raise_for_status()
    assert file.headers["content-type"] == "image/webp"
    opened = Image.open(io.BytesIO(file.content))
    assert (opened.format, opened.size) == ("WEBP", (72, 96))
    for width, height, told in ((60, 64, "multiple of 8"), (1024, 64, "pixels"), (16_384, 8, "64")):
        refused = http.post("/generate", json={**PROMPT, "width": width, "height": height})
        assert refused.status_code == 422
        assert told in refused.text


def test_a_malformed_header_is_refused(http: httpx2.Client) -> None:
    for name in ("Idempotency-Key", "X-OctoAI-Async"):
        answer = http.post("/generate/sdxl", json=PROMPT, headers={name: "x" * 256})
        assert answer.status_code == 422
        assert name in answer.text


def test_large_seeds_are_strings(http: httpx2.Client) -> None:
    largest = 2**64 - 1
    images = {}
    for seed in (largest, str(largest), 2**53, 7):
        body = http.post("/generate/sdxl", json={**PROMPT, "seed": seed}).json()
        images[seed] = image(body)
        assert body["images"][0]["seed"] == (seed if seed == 7 else str(seed))
    assert images[largest] == images[str(largest)]
    assert len(set(images.values())) == 3
    counted = http.post("/generate", json={**PROMPT, "seed": largest, "num_images": 2}).json()
    assert counted["seeds"] == [str(largest), 0]


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"steps": 0}, "steps"),
        ({"steps": 201}, "steps"),
        ({"cfg_scale": 51}, "cfg_scale"),
        ({"num_images": 17}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": "18446744073709551616"}, "seed"),
        ({"seed": "seven"}, "seed"),
        ({"seed": True}, "seed"),
        ({"sampler": "NOPE"}, "sampler"),
        ({"width": 512, "height": 512}, "width"),
        ({"width": 1024}, "height"),
        ({"nonsense": 1}, "nonsense"),
        ({"init_image": "aGk="}, "body"),
        ({"loras": {"style": 99.0}}, "loras"),
        ({"textual_inversions": {"style": "x"}}, "textual_inversions"),
    ],
)
def test_invalid_fields_get_422_with_details(
    http: httpx2.Client, lora: dict[str, Any], change: dict[str, Any], loc: str
) -> None:
    response = http.post("/generate/sdxl", json={**PROMPT, **change})
    assert response.status_code == 422
    body = response.json()
    assert body["code"]
    assert body["message"]
    assert all({"loc", "msg", "type"} <= set(item) for item in body["detail"])
    assert any(loc in map(str, item["loc"]) for item in body["detail"]), body


def test_missing_or_invalid_keys_get_401(platform: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
        response = httpx2.post(f"{platform.url}/generate/sdxl", json=PROMPT, headers=headers)
        assert response.status_code == 401
        assert set(response.json()) == {"code", "message", "request_id"}
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_reader_may_only_read(platform: Running, lora: dict[str, Any]) -> None:
    """403 for any write, also to missing assets."""
    key = platform.directory.keyring.add_key("acme", "screen", "reader").text
    with httpx2.Client(base_url=platform.url, headers={"Authorization": f"Bearer {key}"}) as http:
        assert http.get(f"/v1/assets/{lora['id']}").status_code == 200
        new = {"asset_type": "lora", "name": "x"}
        for answer in (
            http.post("/generate/sdxl", json=PROMPT),
            http.post("/generate/sdxl", json={**PROMPT, "loras": {"nothing": 1.0}}),
            http.post("/generate", json=PROMPT, headers={"Idempotency-Key": "reader"}),
            http.post("/v1/assets", json=new),
            http.patch(f"/v1/assets/{lora['id']}", json={"name": "y"}),
            http.delete(f"/v1/assets/{lora['id']}"),
            http.delete("/v1/assets/nothing"),
            http.post(f"/v1/assets/{lora['id']}/restore"),
        ):
            assert answer.status_code == 403, answer.request.url
            assert answer.json()["code"] == "forbidden"


def test_unknown_routes_and_methods_have_the_error_format(http: httpx2.Client) -> None:
    for response in (http.get("/nowhere"), http.delete("/generate/sdxl")):
        assert response.status_code in (404, 405)
        assert set(response.json()) == {"code", "message", "request_id"}


def test_lora_by_id_and_by_name_gives_the_same_image(
    http: httpx2.Client, lora: dict[str, Any]
) -> None:
    base = image(http.post("/generate/sdxl", json=PROMPT).json())
    answers = [
        http.post("/generate/sdxl", json={**PROMPT, "loras": {reference: 0.8}}).json()
        for reference in (lora["id"], "style", "acme:style")
    ]
    images = {image(answer) for answer in answers}
    assert len(images) == 1
    assert base not in images
    receipts = [
        next(a for a in answer["receipt"]["assets"] if a["asset"] != "base") for answer in answers
    ]
    assert [r["found_on"] for r in receipts[1:]] == ["gpu", "gpu"]
    assert receipts[0]["matched_parameters"] > 0
    assert image(http.post("/generate/sdxl", json=PROMPT).json()) == base


def test_asset_json_has_the_fields_that_clients_require(
    http: httpx2.Client, lora: dict[str, Any]
) -> None:
    body = http.get("/v1/assets/style").json()
    asset = body["asset"]
    required = (
        "id", "asset_type", "name", "description", "size_bytes", "status",
        "status_details", "created_at", "data", "tenant_uuid",
    )  # fmt: skip
    assert all(asset[name] is not None for name in required)
    assert asset["data"]["asset_type"] == "lora"
    assert asset["data"]["trigger_words"] == ["stylish"]
    assert asset["report"]["matched"] == asset["report"]["modules"]
    assert body["transfer_api"]["type"] == "presigned-url"
    downloaded = httpx2.get(body["transfer_api"]["get_url"])
    assert downloaded.status_code == 200
    assert len(downloaded.content) > 10_000


def test_the_public_library_is_preinstalled(http: httpx2.Client) -> None:
    """With trigger words, description and preview; "octoai" is an alias."""
    query: dict[str, str | bool] = {"is_public": True, "owner": "octoai"}
    public = {asset["name"]: asset for asset in http.get("/v1/assets", params=query).json()["data"]}
    assert public.keys() == {"base", *(entry.name for entry in CATALOGUE)}
    heart = public["heart"]
    assert (heart["owner"], heart["data"]["trigger_words"]) == ("commons", ["heart"])
    preview = httpx2.get(heart["preview_url"])
    assert preview.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(preview.content)).size == (128, 128)
    answers = [
        http.post("/generate/sdxl", json={**PROMPT, "loras": {name: 1.0}}).json()
        for name in ("octoai:outline", "commons:outline", "outline")
    ]
    assert len({image(answer) for answer in answers}) == 1
    assert http.delete("/v1/assets/commons:outline").status_code == 404


def test_an_owner_updates_searches_deletes_and_restores(
    http: httpx2.Client, platform: Running, lora: dict[str, Any], sample_files: dict[str, Path]
) -> None:
    client = platform.client()
    asset = client.upload(sample_files["lora_cross"], "lora", "plain")
    client.await_ready(asset["id"])
    change = {"name": "Glow_100", "description": "Neon light", "tags": ["Night", "city-2"]}
    changed = http.patch("/v1/assets/plain", json=change).json()["asset"]
    assert {field: changed[field] for field in change} == change
    assert changed["id"] == asset["id"]
    for query, expected in (
        ({"q": "neon glow"}, 1),
        ({"q": "100 LI"}, 1),
        ({"q": "00"}, 0),
        ({"q": "%"}, 0),
        ({"q": "neon darkness"}, 0),
        ({"q": "_"}, 0),
        ({"tag": "night"}, 1),
        ({"tag": ["night", "CITY-2"]}, 1),
        ({"tag": ["night", "city"]}, 0),
    ):
        assert http.get("/v1/assets", params=query).json()["total"] == expected, query
    outsider = {"Authorization": f"Bearer {platform.key('outsider')}"}
    for headers, status, body in (
        (outsider, 404, {"name": "mine"}),
        ({}, 422, {"name": "no/slash"}),
        ({}, 422, {"is_public": True}),
        ({}, 422, {"tags": ["two words"]}),
        ({}, 422, {"name": "style"}),
    ):
        url = f"/v1/assets/{asset['id']}"
        assert http.patch(url, json=body, headers=headers).status_code == status, body
    recipe = {**PROMPT, "loras": {asset["id"]: 1.0}}
    before = image(http.post("/generate/sdxl", json=recipe).json())

    client.call("DELETE", f"/v1/assets/{asset['id']}")
    assert http.post("/generate/sdxl", json=recipe).status_code == 404
    restore_url = f"/v1/assets/{asset['id']}/restore"
    assert http.post(restore_url, headers=outsider).status_code == 404
    assert http.post(restore_url).json()["asset"]["name"] == "Glow_100"
    assert http.post(restore_url).status_code == 404
    assert image(http.post("/generate/sdxl", json=recipe).json()) == before
    client.call("DELETE", f"/v1/assets/{asset['id']}")


def test_listing_filters(http: httpx2.Client, lora: dict[str, Any]) -> None:
    for query, expected in (
        ({}, 1),
        ({"name": "style"}, 1),
        ({"name": "other"}, 0),
        ({"asset_type": ["lora", "checkpoint"]}, 1),
        ({"asset_type": "vae"}, 0),
        ({"asset_ids": f"{lora['id']},x"}, 1),
        ({"engine": "image/flux-dev"}, 0),
        ({"is_public": "true", "owner": "octoai"}, 1 + len(CATALOGUE)),
    ):
        body = http.get("/v1/assets", params=query).json()
        assert body["total"] == len(body["data"]) == expected, query
        assert body["has_more"] is False
    assert http.get("/v1/assets", params={"limit": 0}).status_code == 422


def test_foreign_and_unknown_assets_get_the_same_404(
    platform: Running, lora: dict[str, Any]
) -> None:
    outsider = {"Authorization": f"Bearer {platform.key('outsider')}"}
    unknown = lora["id"][:-6] + "000000"
    calls: tuple[Callable[[str], httpx2.Response], ...] = (
        lambda r: httpx2.get(f"{platform.url}/v1/assets/{r}", headers=outsider),
        lambda r: httpx2.delete(f"{platform.url}/v1/assets/{r}", headers=outsider),
        lambda r: httpx2.post(
            f"{platform.url}/generate/sdxl",
            json={**PROMPT, "loras": {r: 1.0}},
            headers=outsider,
        ),
    )
    answers = []
    for reference in (lora["id"], unknown, "acme:style", "nobody:style"):
        for call in calls:
            response = call(reference)
            assert response.status_code == 404
            body = response.json()
            answers.append((body["code"], body["message"].replace(reference, "?")))
    assert len(set(answers)) == 1


def test_a_rejected_upload_states_the_reason(platform: Running, tmp_path: Path) -> None:
    client = platform.client()
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"\x80\x02 pickled")
    asset = client.upload(junk, "lora", "junk")
    deadline = time.monotonic() + 60
    while asset["status"] == "uploaded" and time.monotonic() < deadline:
        asset = client.asset(asset["id"])
    assert asset["status"] == "rejected"
    assert "pickle" in asset["status_details"]
    assert "safetensors" in asset["status_details"]


def test_a_non_finite_image_names_the_asset(
    platform: Running, http: httpx2.Client, schema: Any, tmp_path: Path
) -> None:
    """The error has the request's name of the asset; the next request is unaffected."""
    before = image(http.post("/generate/sdxl", json=PROMPT).json())
    client = platform.client()
    path = write_wild_lora(tmp_path / "wild.safetensors", schema)
    asset = client.await_ready(client.upload(path, "lora", "wild")["id"])
    answer = http.post("/generate/sdxl", json={**PROMPT, "loras": {"wild": 10.0}})
    assert answer.status_code == 422
    assert answer.json()["code"] == "not_finite"
    assert "the LoRA 'wild' at weight 10" in answer.json()["message"]
    assert image(http.post("/generate/sdxl", json=PROMPT).json()) == before
    client.call("DELETE", f"/v1/assets/{asset['id']}")


def test_upload_rules(http: httpx2.Client, platform: Running) -> None:
    body = {"asset_type": "lora", "name": "rules", "data": {"asset_type": "lora"}}
    created = http.post("/v1/assets", json=body).json()
    asset_id, put_url = created["asset"]["id"], created["transfer_api"]["put_url"]
    assert created["asset"]["status"] == "ready_to_upload"
    early = http.post(f"/v1/assets/{asset_id}/complete-upload", json={})
    assert early.status_code == 422
    assert http.post("/v1/assets", json=body).status_code == 422
    for name in ("../x", "a/b", "", "x" * 200, "a\0b"):
        bad = http.post("/v1/assets", json={**body, "name": name})
        assert bad.status_code == 422
    another = http.post("/v1/assets", json={**body, "name": "rules-2"}).json()
    other = another["transfer_api"]["put_url"].split("token=")[1]
    forged = httpx2.put(put_url.split("token=")[0] + "token=" + other, content=b"x")
    assert forged.status_code == 403
    assert httpx2.put(put_url, content=b"not a model").status_code == 200
    assert http.post(f"/v1/assets/{asset_id}/complete-upload", json={}).json() == {"error": None}
    assert httpx2.put(put_url, content=b"changed later").status_code == 404
    for gone in (asset_id, another["asset"]["id"]):
        assert http.delete(f"/v1/assets/{gone}").json()["id"] == gone
    assert http.get(f"/v1/assets/{asset_id}").status_code == 404
    for kind in ("latent", "file", "controlnet"):
        assert http.post("/v1/assets", json={**body, "asset_type": kind}).status_code == 422


def test_only_the_owner_may_put_bytes(platform: Running, sample_files: dict[str, Path]) -> None:
    owner, outsider = platform.client("acme"), platform.client("outsider")
    body = {"asset_type": "lora", "name": "shown", "is_public": True}
    created = owner.call("POST", "/v1/assets", json=body)
    asset_id = created["asset"]["id"]
    listed = outsider.call("GET", "/v1/assets", params={"is_public": "true"})["data"]
    assert asset_id not in {asset["id"] for asset in listed}
    with pytest.raises(ApiFailure, match="404"):
        outsider.asset(asset_id)
    data = sample_files["lora_cross"].read_bytes()
    httpx2.put(created["transfer_api"]["put_url"], content=data)
    owner.call("POST", f"/v1/assets/{asset_id}/complete-upload", json={})
    owner.await_ready(asset_id)
    seen = outsider.call("GET", "/v1/assets/acme:shown")
    assert seen["transfer_api"]["put_url"] == ""
    assert outsider.generate({**PROMPT, "loras": {"acme:shown": 1.0}})["images"]
    with pytest.raises(ApiFailure, match="404"):
        outsider.call("DELETE", f"/v1/assets/{asset_id}")


@pytest.mark.parametrize("data", [{"trigger_words": 5}, {"trigger_words": ["\ud800"]}, []])
def test_invalid_data_gets_422(platform: Running, data: Any) -> None:
    import json

    content = json.dumps({"asset_type": "lora", "name": "odd", "data": data})
    headers = {"Authorization": f"Bearer {platform.key('acme')}"}
    response = httpx2.post(f"{platform.url}/v1/assets", content=content, headers=headers)
    assert response.status_code == 422


def test_a_body_that_is_too_large_gets_413(http: httpx2.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(17):
            yield b"x" * (1 << 20)

    headers = {"Content-Type": "application/json"}
    for content in (b"x" * (17 << 20), endless()):
        response = http.post("/generate/sdxl", content=content, headers=headers)
        assert response.status_code == 413
        assert response.json()["code"] == "too_large"


def test_asynchronous_generation(http: httpx2.Client, platform: Running) -> None:
    now = http.post("/generate/sdxl", json=PROMPT).json()
    accepted = http.post("/generate/sdxl", json=PROMPT, headers={"X-OctoAI-Async": "1"}).json()
    assert set(accepted) == {"response_id", "poll_url"}
    deadline = time.monotonic() + 60
    while (poll := httpx2.get(accepted["poll_url"]).json())["status"] != "completed":
        assert poll["status"] in ("pending", "running")
        assert time.monotonic() < deadline
    result = httpx2.get(poll["response_url"]).json()
    assert image(result) == image(now)
    missing = {**PROMPT, "loras": {"nothing": 1.0}}
    assert (
        http.post("/generate/sdxl", json=missing, headers={"X-OctoAI-Async": "1"}).status_code
        == 404
    )
    assert httpx2.get(f"{platform.url}/v1/jobs/job_unknown").status_code == 404


def test_a_hundred_requests_with_one_idempotency_key_generate_one_image(
    http: httpx2.Client, platform: Running
) -> None:
    """Seeds are random: a second generation would differ."""
    headers = {"Idempotency-Key": "the only one"}
    body = {"prompt": PROMPT["prompt"], "steps": 2}

    def ask(_: int) -> httpx2.Response:
        return http.post("/generate/sdxl", json=body, headers=headers, timeout=120)

    before = http.get("/v1/usage").json()["totals"]
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(ask, range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    first = answers[0].json()
    assert ask(0).json() == first
    later = http.post("/generate/sdxl", json=body, headers={**headers, "X-OctoAI-Async": "1"})
    poll = httpx2.get(later.json()["poll_url"]).json()
    assert httpx2.get(poll["response_url"]).json() == first
    jobs = open_backends(platform.settings).jobs
    with Session(jobs._engine) as session:
        digest = session.get_one(JobRow, later.json()["response_id"]).body_digest
        generated = session.scalars(select(JobRow).where(JobRow.body_digest == digest)).all()
    assert [row.status for row in generated] == ["completed"]
    assert http.get("/v1/usage").json()["totals"]["pictures"] == before["pictures"] + 1

    other = http.post("/generate/sdxl", json={**body, "steps": 3}, headers=headers)
    assert other.status_code == 422
    assert "another request" in other.json()["message"]
    for bad in ("", "x" * 256):
        answer = http.post("/generate/sdxl", json=body, headers={"Idempotency-Key": bad})
        assert answer.status_code == 422
    outsider = {"Authorization": f"Bearer {platform.key('outsider')}", **headers}
    own = httpx2.post(f"{platform.url}/generate/sdxl", json=body, headers=outsider, timeout=60)
    assert own.json()["request_id"] != first["request_id"]


def test_an_idempotent_request_to_the_native_route(http: httpx2.Client, platform: Running) -> None:
    """A refusal does not use up the key."""
    headers = {"Idempotency-Key": "simple"}
    missing = {**PROMPT, "loras": {"nothing": 1.0}}
    assert http.post("/generate", json=missing, headers=headers).status_code == 404
    answers = [http.post("/generate", json=PROMPT, headers=headers).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert httpx2.get(answers[0]["public_url"]).status_code == 200


def test_the_native_route(http: httpx2.Client, platform: Running) -> None:
    response = httpx2.post(f"{platform.url}/generate", json=PROMPT, timeout=60)
    assert response.status_code == 200
    body = response.json()
    assert {"file_key", "public_url"} <= set(body)
    fetched = httpx2.get(body["public_url"])
    assert fetched.headers["content-type"] == "image/png"
    assert fetched.content == image(http.post("/generate/sdxl", json=PROMPT).json())
    assert http.post("/generate", json={"prompt": "x", "steps": 1}).status_code == 200
    wrong = {"Authorization": "Bearer wrong"}
    assert httpx2.post(f"{platform.url}/generate", json=PROMPT, headers=wrong).status_code == 401
    assert httpx2.get(f"{platform.url}/files/{'a' * 32}.png").status_code == 404


def test_a_disconnected_client_frees_the_slot(http: httpx2.Client, platform: Running) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/generate/sdxl", json={**PROMPT, "steps": 200}, timeout=0.5)
    deadline = time.monotonic() + 60
    while any(replica["running"] for replica in platform.status()["replicas"]):
        assert time.monotonic() < deadline
    assert http.post("/generate/sdxl", json=PROMPT).status_code == 200


def test_command_line(platform: Running, tmp_path: Path, lora: dict[str, Any]) -> None:
    import json

    from typer.testing import CliRunner

    from serving.cli.main import app

    environment = {"AO_URL": platform.url, "AO_API_KEY": platform.key("acme")}
    runner = CliRunner()

    def call(*arguments: str) -> Any:
        result = runner.invoke(app, list(arguments), env=environment)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert "style" in {asset["name"] for asset in call("assets", "list", "--json")}
    out = tmp_path / "p.png"
    options = ["--lora", "style=0.5", "--steps", "1", "--seed", "1", "--out", str(out), "--json"]
    assert call("generate", "a star", *options)["file"] == str(out)
    with Image.open(out) as generated:
        assert generated.size == (128, 128)
    data = ["--data-dir", str(platform.settings.data_dir), "--json"]
    assert call("tenants", "create", "cli-made", *data)["name"] == "cli-made"
    key = call("keys", "create", "cli-made", *data)
    assert key["key"].startswith(f"ao_{key['id']}_")
    assert call("keys", "list", "cli-made", *data)[0]["id"] == key["id"]
    assert call("keys", "revoke", key["id"], *data)["revoked"] is True
    failed = runner.invoke(app, ["assets", "get", "nothing"], env=environment)
    assert failed.exit_code == 1


def test_on_s3_clients_transfer_with_the_store(
    s3_server: dict[str, Any],
    sample_files: dict[str, Path],
    tmp_path: Path,
) -> None:
    """On real S3: presigned uploads, tiers, results, images."""
    store = {"store_url": f"{s3_server['url']}/platform", "store_options": s3_server["options"]}
    with running(tmp_path, "--in-process", replicas=1, **store) as platform:
        client = platform.client()
        body = {"asset_type": "lora", "name": "probe", "data": {"asset_type": "lora"}}
        put_url = client.call("POST", "/v1/assets", json=body)["transfer_api"]["put_url"]
        assert put_url.startswith(s3_server["options"]["endpoint_url"])
        asset = client.upload(sample_files["lora_all"], "lora", "style")
        asset = client.await_ready(asset["id"])
        cold = client.generate({**PROMPT, "loras": {"style": 1.0}})
        found_on = {a["asset"]: a["found_on"] for a in cold["receipt"]["assets"]}
        assert found_on["style"] == "store"
        simple = client.call("POST", "/generate", json={**PROMPT, "loras": {"style": 1.0}})
        assert simple["public_url"].startswith(s3_server["options"]["endpoint_url"])
        assert httpx2.get(simple["public_url"]).content == image(cold)


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/healthz"), ("TRACE", "/v1/usage")])
def test_405_lists_the_allowed_methods(http: httpx2.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    assert answer.json()["code"] == "method_not_allowed"


def test_unparseable_json_has_its_own_error_code(http: httpx2.Client) -> None:
    headers = {"Content-Type": "application/json"}
    answer = http.post("/generate/sdxl", content="[" * 100_000, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("bad_request", "invalid")


@pytest.mark.parametrize("overlap_s", ["Infinity", "NaN", "-1", "1e300"])
def test_a_rotation_overlap_must_be_finite(http: httpx2.Client, overlap_s: str) -> None:
    made = http.post("/v1/keys", json={"label": "short"}).json()
    headers = {"Content-Type": "application/json"}
    url, body = f"/v1/keys/{made['id']}/rotate", f'{{"overlap_s": {overlap_s}}}'
    assert http.post(url, content=body, headers=headers).status_code == 422
