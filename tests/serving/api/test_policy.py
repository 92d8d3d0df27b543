"""A platform with a content policy: refusals, withheld images, what is charged."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from serving.generation.image_metadata import text_of
from tests.support.certificates import verified, write_credentials
from tests.support.platforms import Running, running, wait_until

PROMPT = {"prompt": "a red star", "seed": 3, "steps": 2, "image_encoding": "png"}


class Endpoint(BaseHTTPRequestHandler):
    """Refuses images of seed 3, as their metadata tells, and all of a prompt with "all"."""

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: dict[str, Any] = {"allowed": True, "score": 0.1}
        if question["kind"] == "image":
            first = b"Seed: 3" in base64.b64decode(question["image_b64"])
            if first or "all" in question["prompts"][0]:
                answer = {"allowed": False, "score": 0.8, "reason": "first"}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "words").write_text("forbidden\n")
    certificates, signing_key = write_credentials(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with running(
            folder, "--in-process", replicas=1, policy_words=folder / "words",
            policy_url=f"http://127.0.0.1:{server.server_port}/", policy_images="requested",
            c2pa_certificates=certificates, c2pa_key=signing_key,
        ) as made:  # fmt: skip
            yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('policed')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


def charged(http: httpx2.Client) -> int:
    """Return how many images were charged."""
    rows = http.get("/v1/usage", params={"limit": 1000}).json()["data"]
    return sum(row["kind"] == "picture" for row in rows)


def charges(http: httpx2.Client, before: int, more: int) -> None:
    """Wait for the charge, which follows the answer."""
    wait_until(lambda: charged(http) >= before + more)
    assert charged(http) == before + more


def acts(http: httpx2.Client) -> list[dict[str, Any]]:
    entries = http.get("/v1/audit").json()["data"]
    return [entry for entry in entries if entry["act"].startswith("policy.")]


def test_a_refused_prompt(http: httpx2.Client) -> None:
    body = {**PROMPT, "prompt": "a Forbidden star"}
    asynchronous = {"X-OctoAI-Async": "1"}
    for path, headers in (
        ("/generate/sdxl", {}),
        ("/generate/sdxl", asynchronous),
        ("/generate", {}),
    ):
        answer = http.post(path, json=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["code"] == "policy_violation"
        assert answer.json()["message"] == "This request violates our Acceptable Use Policy."
        assert "Forbidden" not in answer.text
    assert charged(http) == 0
    assert [act["act"] for act in acts(http)] == ["policy.prompt"] * 3
    assert acts(http)[0]["details"] == {"score": None}


def test_a_withheld_image_is_neither_delivered_nor_charged(http: httpx2.Client) -> None:
    before = charged(http)
    body = {**PROMPT, "num_images": 3}
    unjudged = http.post("/generate/sdxl", json=body).raise_for_status().json()
    assert all(not each["removed_for_safety"] and each["image_b64"] for each in unjudged["images"])
    charges(http, before, 3)

    body["enable_safety"] = True
    before = charged(http)
    images = http.post("/generate/sdxl", json=body).raise_for_status().json()["images"]
    assert [each["removed_for_safety"] for each in images] == [True, False, False]
    assert [each["safety_score"] for each in images] == [0.8, 0.1, 0.1]
    assert images[0]["image_b64"] is None
    assert all(each["image_b64"] for each in images[1:])
    charges(http, before, 2)

    native = http.post("/generate", json=body).raise_for_status().json()
    assert [file["removed_for_safety"] for file in native["files"]] == [True, False, False]
    assert native["files"][0]["public_url"] is None
    assert native["public_url"] == native["files"][1]["public_url"]
    assert httpx2.get(native["public_url"]).status_code == 200


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_images_carry_content_credentials(http: httpx2.Client, encoding: str) -> None:
    body = {**PROMPT, "seed": 4, "image_encoding": encoding, "enable_safety": True}
    answer = http.post("/generate/sdxl", json=body).raise_for_status().json()
    image = base64.b64decode(answer["images"][0]["image_b64"])
    assert verified(image, encoding)[0] == "Valid"
    assert (text_of(image) or "").startswith("a red star")
    stored = http.post("/generate", json=body).raise_for_status().json()
    file = httpx2.get(stored["public_url"]).raise_for_status()
    assert verified(file.content, encoding)[0] == "Valid"


def test_jobs_and_requests_without_any_image(http: httpx2.Client) -> None:
    before = charged(http)
    body = {**PROMPT, "num_images": 2, "enable_safety": True}
    headers = {"Idempotency-Key": "judged"}
    first = http.post("/generate", json=body, headers=headers).raise_for_status().json()
    assert [file["removed_for_safety"] for file in first["files"]] == [True, False]
    again = http.post("/generate", json=body, headers=headers).raise_for_status().json()
    assert again["files"][1]["file_key"] == first["files"][1]["file_key"]
    charges(http, before, 1)

    nothing = {**body, "prompt": "all of it"}
    answer = http.post("/generate/sdxl", json=nothing, headers={"Idempotency-Key": "none"})
    assert all(each["removed_for_safety"] for each in answer.raise_for_status().json()["images"])
    answer = http.post("/generate", json=nothing).raise_for_status()
    assert answer.json()["public_url"] is None
    charges(http, before, 1)
    assert acts(http)[0]["act"] == "policy.image"
    assert acts(http)[0]["details"] == {"score": 0.8}


def test_no_previews_while_images_are_judged(http: httpx2.Client) -> None:
    def kinds(body: dict[str, Any]) -> set[str]:
        headers = {"Accept": "text/event-stream"}
        answer = http.post("/generate", params={"previews": True}, json=body, headers=headers)
        lines = answer.raise_for_status().text.splitlines()
        return {line.removeprefix("event: ") for line in lines if line.startswith("event: ")}

    assert "preview" in kinds({**PROMPT, "steps": 20})
    judged = kinds({**PROMPT, "steps": 20, "enable_safety": True})
    assert "preview" not in judged
    assert {"step", "done"} <= judged
