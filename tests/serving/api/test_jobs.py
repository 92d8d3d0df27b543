"""Jobs: states, lists, events, cancellation, results stored once."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from assets.principal import Principal
from assets.storage.object_paths import IMAGES, RESULTS, result_key
from assets.storage.object_store import put_bytes
from serving.api import stream_limit
from serving.errors import Cancelled, Refused
from serving.generation.contract import GenerationResult
from serving.generation.events import Assigned, ImageReady, Preview, Queued, Step
from serving.generation.fakes import IMAGE
from serving.generation.submission import Submission
from serving.jobs.failed import JobError
from serving.jobs.store import JobRow
from tests.support.api_app import Api, serving_api, working
from tests.support.generation import REQUEST

PROMPT = {"prompt": "a star", "steps": 4, "seed": 1}
ASYNC = {"X-OctoAI-Async": "1"}
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving_api(tmp_path) as served:
        yield served


async def accepted(api: Api, headers: dict[str, str], **fields: Any) -> str:
    body = {**PROMPT, **fields}
    answer = await api.http.post("/generate/sdxl", json=body, headers={**headers, **ASYNC})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["response_id"])


async def state(api: Api, job: str) -> Any:
    return (await api.http.get(f"/v1/jobs/{job}")).json()


async def ended(api: Api, job: str) -> None:
    async with asyncio.timeout(20):
        await api.context.jobs.watch.finished(job)


def read(text: str) -> list[tuple[str, Any, str | None]]:
    """The events of a stream: name, data, id."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            events.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return events


def images_of(api: Api) -> list[str]:
    return [stored.key for stored in api.backends.store.list(IMAGES)]


def charged(api: Api, tenant: str) -> float:
    (found,) = [t for t in api.backends.directory.tenants() if t.name == tenant]
    return api.backends.meter.ledger.totals(found.id)["gpu_s"]


async def test_pages_are_stable_while_jobs_are_added(api: Api) -> None:
    acme, other = api.key("acme"), api.key("other")
    jobs = [await accepted(api, acme) for _ in range(5)]
    theirs = await accepted(api, other)
    found: list[str] = []
    after = ""
    while True:
        query = {"limit": "2", "after": after}
        page = (await api.http.get("/v1/jobs", params=query, headers=acme)).json()
        found += [job["id"] for job in page["data"]]
        await accepted(api, acme)  # newer ones do not move the rest
        if not page["has_more"]:
            break
        after = page["next"]
    assert found == jobs[::-1]
    page = (await api.http.get("/v1/jobs", headers=other)).json()
    assert [job["id"] for job in page["data"]] == [theirs]
    assert page["next"] is None


async def test_jobs_are_filtered_by_status_time_and_gpu(api: Api) -> None:
    acme = api.key("acme")
    done, waiting = await accepted(api, acme), await accepted(api, acme, gpu="default")
    api.backends.jobs.cancel(done, JobError.of(Cancelled("c")))

    async def ids(**params: Any) -> list[str]:
        answer = await api.http.get("/v1/jobs", params=params, headers=acme)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    assert await ids(status="cancelled") == [done]
    assert await ids(status=["pending", "running"]) == [waiting]
    assert await ids(since="2100-01-01T00:00:00Z") == []
    assert await ids(until="2100-01-01T00:00:00Z") == [waiting, done]
    bad = await api.http.get("/v1/jobs", params={"after": "soon"}, headers=acme)
    assert bad.status_code == 422
    assert (await api.http.get("/v1/jobs")).status_code == 401


async def test_a_poll_shows_how_far_the_job_is(api: Api) -> None:
    job = await accepted(api, api.key("acme"))
    api.backend.events = [Assigned("a-0", 1), Step(2, 4, 0, 1, 0.5)]
    poll = await state(api, job)
    assert (poll["status"], poll["state"]) == ("pending", "pending")
    assert poll["progress"] == {
        "phase": "step", "replica": "a-0", "attempt": 1, "step": 2, "steps": 4, "first": 0,
        "images": 1, "fraction": 0.5,
    }  # fmt: skip


async def test_a_waiting_job_is_cancelled_at_once_and_costs_nothing(api: Api) -> None:
    acme = api.key("acme")
    job = await accepted(api, acme)
    answer = await api.http.post(f"/v1/jobs/{job}/cancel", headers=acme)
    assert answer.status_code == 200
    assert answer.json()["state"] == "cancelled"
    result = await api.http.get(f"/v1/jobs/{job}/result")
    assert (result.status_code, result.json()["code"]) == (499, "cancelled")
    assert (await state(api, job))["state"] == "cancelled"
    again = await api.http.post(f"/v1/jobs/{job}/cancel", headers=acme)
    assert again.json() == answer.json()
    async with working(api):
        other = await accepted(api, acme)
        await ended(api, other)
    assert len(api.backend.submissions) == 1
    (cancellation,) = api.backend.cancelled
    assert cancellation.job_id == job


async def test_a_running_job_is_cancelled_and_charged_what_it_used(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = api.key("acme")
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def submit(submission: Submission) -> GenerationResult:
        started.set()
        await cancelled.wait()
        error = Cancelled("the request was cancelled")
        error.engine_s = 1.5
        raise error

    monkeypatch.setattr(api.backend, "submit", submit)
    async with working(api), asyncio.timeout(20):
        job = await accepted(api, acme)
        await started.wait()
        answer = await api.http.post(f"/v1/jobs/{job}/cancel", headers=acme)
        assert answer.json()["state"] == "cancelled"
        assert charged(api, "acme") == 0
        cancelled.set()
        while charged(api, "acme") == 0:
            await asyncio.sleep(0.01)
    assert charged(api, "acme") == 1.5
    assert (await state(api, job))["state"] == "cancelled"


async def test_a_cancelled_jobs_key_starts_it_again(api: Api) -> None:
    headers = {**api.key("acme"), "Idempotency-Key": "k"}
    job = await accepted(api, headers)
    await api.http.post(f"/v1/jobs/{job}/cancel", headers=headers)
    async with working(api):
        assert await accepted(api, headers) == job
        await ended(api, job)
    assert (await state(api, job))["state"] == "completed"


async def test_only_its_member_and_owners_cancel_a_job(api: Api) -> None:
    owner, member, other = api.key("acme"), api.key("acme", "member"), api.key("other")
    reader = api.key("acme", "reader")
    job = await accepted(api, owner)
    url = f"/v1/jobs/{job}/cancel"
    assert (await api.http.post(url)).status_code == 401
    assert (await api.http.post(url, headers=other)).status_code == 404
    assert (await api.http.post(url, headers=reader)).status_code == 403
    assert (await api.http.post("/v1/jobs/job_none/cancel", headers=owner)).status_code == 404
    job_of_member = await accepted(api, member)
    url = f"/v1/jobs/{job_of_member}/cancel"
    assert (await api.http.post(url, headers=owner)).json()["state"] == "cancelled"


async def test_members_and_their_keys_list_their_own_jobs(api: Api) -> None:
    """An id gives access to the images."""
    owner, member, other = api.key("acme"), api.key("acme", "member"), api.key("acme", "member")
    jobs = [await accepted(api, headers) for headers in (owner, member, other)]

    async def ids(headers: dict[str, str]) -> list[str]:
        answer = await api.http.get("/v1/jobs", headers=headers)
        return [job["id"] for job in answer.json()["data"]]

    assert await ids(owner) == jobs[::-1]
    assert await ids(member) == [jobs[1]]
    assert await ids(other) == [jobs[2]]
    assert (await api.http.get("/v1/jobs", headers=api.key("acme", "reader"))).status_code == 403
    forbidden = await api.http.post(f"/v1/jobs/{jobs[2]}/cancel", headers=member)
    assert forbidden.status_code == 403


async def test_the_default_pool_is_found_by_name(api: Api) -> None:
    acme = api.key("acme")
    jobs = [await accepted(api, acme), await accepted(api, acme, gpu="default")]
    answer = await api.http.get("/v1/jobs", params={"gpu": "default"}, headers=acme)
    assert [job["id"] for job in answer.json()["data"]] == jobs[::-1]
    unknown = await api.http.get("/v1/jobs", params={"gpu": "b200"}, headers=acme)
    assert unknown.status_code == 422


async def test_a_job_of_a_newer_version_fails_alone(api: Api) -> None:
    acme = api.key("acme")
    strange, good = await accepted(api, acme), await accepted(api, acme)
    with api.backends.database.begin() as connection:
        newer = {**msgspec.to_builtins(REQUEST), "seeds": "of a newer version"}
        change = update(JobRow).where(JobRow.id == strange).values(request=newer)
        connection.execute(change)
    async with working(api):
        await ended(api, strange)
        await ended(api, good)
    assert (await state(api, good))["state"] == "completed"
    failed = await api.http.get(f"/v1/jobs/{strange}/result")
    assert (failed.status_code, failed.json()["code"]) == (500, "internal")
    assert len((await api.http.get("/v1/jobs", headers=acme)).json()["data"]) == 2


async def test_cancelled_after_its_engine_finished_a_job_costs_what_it_used(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = api.key("acme")
    saving, cancelled = threading.Event(), threading.Event()
    save = api.context.jobs.results.save

    def slow(*arguments: Any) -> None:
        saving.set()
        assert cancelled.wait(20)
        save(*arguments)

    monkeypatch.setattr(api.context.jobs.results, "save", slow)
    async with working(api), asyncio.timeout(20):
        job = await accepted(api, acme)
        await asyncio.to_thread(saving.wait, 20)
        await api.http.post(f"/v1/jobs/{job}/cancel", headers=acme)
        cancelled.set()
        while charged(api, "acme") == 0:
            await asyncio.sleep(0.01)
    usage = (await api.http.get("/v1/usage", headers=acme)).json()
    assert [row["kind"] for row in usage["data"]] == ["attempt"]
    assert (await state(api, job))["state"] == "cancelled"


async def test_a_job_has_a_bounded_number_of_followers(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_limit, "MAX_FOLLOWERS", 2)
    job = await accepted(api, api.key("acme"))
    url = f"/v1/jobs/{job}/events"
    followers = [asyncio.create_task(api.http.get(url)) for _ in range(2)]
    while len(api.backend.followed) < 2:
        await asyncio.sleep(0.01)
    assert (await api.http.get(url)).status_code == 429
    for follower in followers:
        follower.cancel()
    await asyncio.gather(*followers, return_exceptions=True)


async def test_a_keyed_stream_counts_as_a_follower(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_limit, "MAX_FOLLOWERS", 1)
    headers = {**api.key("acme"), **STREAM, "Idempotency-Key": "k"}
    following = asyncio.create_task(api.http.post("/generate", json=PROMPT, headers=headers))
    while not api.backend.followed:
        await asyncio.sleep(0.01)
    assert (await api.http.post("/generate", json=PROMPT, headers=headers)).status_code == 429
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_busy_database_ends_no_followed_job(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await accepted(api, api.key("acme"))

    def busy(number: int) -> Any:
        raise OperationalError("SELECT", {}, Exception("busy"))

    monkeypatch.setattr(api.backends.jobs.outbox, "after", busy)
    answer = await api.http.get(f"/v1/jobs/{job}/events")
    assert answer.status_code == 200
    assert read(answer.text) == []  # the client comes again


async def test_a_jobs_events_end_with_its_result(api: Api) -> None:
    api.backend.events = [Queued(0, 1.0), Assigned("a"), Step(1, 4), Preview(0, 1, b"jpeg")]
    api.backend.go.clear()
    async with working(api), asyncio.timeout(20):
        job = await accepted(api, api.key("acme"))
        url = f"/v1/jobs/{job}/events"
        streaming = asyncio.create_task(
            api.http.get(url, params={"previews": "true"}, headers={"Last-Event-ID": "e-7"})
        )
        while not api.backend.submissions or not api.backend.followed:
            await asyncio.sleep(0.01)
        api.backend.go.set()
        answer = await streaming
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert api.backend.followed == [(job, "previews", "e-7")]
    events = read(answer.text)
    assert [event[0] for event in events] == ["queued", "assigned", "step", "preview", "done"]
    assert events[0] == ("queued", {"position": 0, "expected_s": 1.0}, "e-0")
    assert base64.b64decode(events[3][1]["jpeg_b64"]) == b"jpeg"
    assert (await api.http.get(events[-1][1]["response_url"])).status_code == 200


async def test_events_of_a_job_that_ended_or_does_not_exist(api: Api) -> None:
    acme = api.key("acme")
    job = await accepted(api, acme)
    await api.http.post(f"/v1/jobs/{job}/cancel", headers=acme)
    ((name, body, _),) = read((await api.http.get(f"/v1/jobs/{job}/events")).text)
    assert (name, body["status"], body["code"]) == ("failed", 499, "cancelled")
    missing = await api.http.get("/v1/jobs/job_none/events")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


async def test_the_native_route_as_a_stream(api: Api) -> None:
    acme = api.key("acme")
    api.backend.events = [Assigned("a"), Step(1, 4), ImageReady(0)]
    answer = await api.http.post("/generate", json=PROMPT, headers={**acme, **STREAM})
    assert answer.status_code == 200
    events = read(answer.text)
    assert [event[0] for event in events] == ["assigned", "step", "image", "done"]
    done = events[-1][1]
    assert (await api.http.get(done["public_url"])).content == IMAGE
    assert images_of(api) == [done["file_key"]]
    async with asyncio.timeout(20):
        while charged(api, "acme") == 0:
            await asyncio.sleep(0.01)


async def test_a_stream_with_an_idempotency_key_follows_the_job(api: Api) -> None:
    headers = {**api.key("acme"), **STREAM, "Idempotency-Key": "k"}
    async with working(api), asyncio.timeout(20):
        answers = [await api.http.post("/generate", json=PROMPT, headers=headers) for _ in "12"]
    first, second = (read(answer.text)[-1][1] for answer in answers)
    assert first == second
    assert (await api.http.get(first["public_url"])).content == IMAGE
    assert len(api.backend.submissions) == 1


async def test_what_refuses_a_request_before_its_stream_has_its_own_status(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {**api.key("acme"), **STREAM}
    missing = {**PROMPT, "checkpoint": "nothing"}
    assert (await api.http.post("/generate", json=missing, headers=headers)).status_code == 404

    async def refuse(submission: Submission) -> GenerationResult:
        raise Refused(429, "full", 3.0)

    monkeypatch.setattr(api.backend, "submit", refuse)
    refused = await api.http.post("/generate", json=PROMPT, headers=headers)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")


async def test_a_failure_ends_a_stream_that_has_begun(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.backend.events = [Queued(0, 1.0)]

    async def displace(submission: Submission) -> GenerationResult:
        while not api.backend.followed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        raise Refused(429, "full", 3.0)

    monkeypatch.setattr(api.backend, "submit", displace)
    headers = {**api.key("acme"), **STREAM}
    answer = await api.http.post("/generate", json=PROMPT, headers=headers)
    assert answer.status_code == 200
    name, body, _ = read(answer.text)[-1]
    assert (name, body["status"], body["code"]) == ("failed", 429, "rate_limited")
    assert images_of(api) == []


async def test_an_idempotent_simple_request_stores_its_image_once(api: Api) -> None:
    headers = {**api.key("acme"), "Idempotency-Key": "k"}
    async with working(api):
        body = {**PROMPT, "num_images": 2, "seed": [1, 2]}
        answers = [await api.http.post("/generate", json=body, headers=headers) for _ in "12"]
    first, second = (answer.json() for answer in answers)
    assert first == second
    assert sorted(images_of(api)) == sorted(file["file_key"] for file in first["files"])
    (document,) = api.backends.store.list(RESULTS)
    assert document.size_bytes < 2000
    octo = await api.http.post("/generate/sdxl", json=body, headers=headers)
    assert [base64.b64decode(i["image_b64"]) for i in octo.json()["images"]] == [IMAGE] * 2


async def test_images_outlive_their_job_only_if_they_have_urls(tmp_path: Path) -> None:
    async with serving_api(tmp_path, results_kept_s=0.0) as api:
        acme = api.key("acme")
        async with working(api):
            url = (
                await api.http.post(
                    "/generate", json=PROMPT, headers={**acme, "Idempotency-Key": "k"}
                )
            ).json()["public_url"]
            job = await accepted(api, acme)
            await ended(api, job)
        assert len(images_of(api)) == 2
        tenant = api.backends.directory.tenants()[0].id
        await api.context.jobs.expire()
        assert len(images_of(api)) == 1
        assert (await api.http.get(url)).content == IMAGE
        assert (await api.http.get(f"/v1/jobs/{job}")).status_code == 404
        assert list(api.backends.store.list(RESULTS)) == []
        assert api.backends.blobs.stored_bytes(tenant) == len(IMAGE)


async def test_results_of_the_first_release_are_served(api: Api) -> None:
    """Their documents are OctoAI's response."""
    acme = {**api.key("acme"), "Idempotency-Key": "k"}
    async with working(api):
        job = await accepted(api, acme)
        await ended(api, job)
    answer = (await api.http.get(f"/v1/jobs/{job}/result")).json()
    put_bytes(api.backends.store, result_key(job), json.dumps(answer).encode())
    assert (await api.http.get(f"/v1/jobs/{job}/result")).json() == answer
    native = (await api.http.post("/generate", json=PROMPT, headers=acme)).json()
    assert (await api.http.get(native["public_url"])).content == IMAGE
    await api.context.jobs.expire()


async def test_errors_of_the_first_release_are_served(api: Api) -> None:
    body = {"code": "not_found", "message": "no asset", "request_id": "job"}
    earlier = JobError(status=404, body=body)
    assert not earlier.may_pass
    assert JobError(status=503, body=body).may_pass
    principal = Principal("t", "acme")
    job = api.backends.jobs.add(principal, REQUEST)
    assert api.backends.jobs.claim("w") is not None
    assert api.backends.jobs.fail(job.id, "w", earlier)
    answer = await api.http.get(f"/v1/jobs/{job.id}/result")
    assert (answer.status_code, answer.json()) == (404, body)
