"""The content policy: word list, HTTP callback, and what the gate makes of rulings."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from assets.content import Blob
from assets.principal import Principal
from assets.recipe import Recipe
from serving.errors import PolicyUnavailable, PolicyViolation
from serving.generation.choices import of_image
from serving.generation.content_gate import ContentGate
from serving.generation.contract import GenerationResult, Swap, Timings
from serving.generation.policy import (
    ALLOWED,
    NoPolicy,
    Policies,
    Ruling,
    Subject,
    WordList,
)
from serving.generation.policy_callback import PolicyCallback
from serving.generation.styles import Style
from tests.support.generation import changed, task_of

ADA = Principal("t1", "ada", key_id="key_1")
BLOB = Blob("k", "k", 1)
TASK = task_of("req_1", Recipe(BLOB, BLOB, BLOB, BLOB), "a red star", 64, 64, (1, 2, 3))
RESULT = GenerationResult(
    images=(b"one", b"two", b"three"), replica="r", fetches=(), swap=Swap(0, 0, 0, 0),
    timings=Timings(),
)  # fmt: skip


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[str, str, dict[str, object]]] = []

    def note(self, tenant_id: str, actor: str, act: str, subject: str, **details: object) -> None:
        assert (tenant_id, actor) == ("t1", "key_1")
        self.rows.append((act, subject, details))


class NoTwos(NoPolicy):
    async def judge_image(self, subject: Subject, image: bytes) -> Ruling:
        return Ruling(image != b"two", 0.9 if image == b"two" else 0.1, "a two")


def find(params: dict[str, Any], word: str) -> int:
    """Return a seed that chooses ``word``."""
    task = changed(TASK, **params)
    return next(seed for seed in range(99) if word in of_image(task.params, seed).prompt)


def check(gate: ContentGate, **changes: Any) -> None:
    asyncio.run(gate.check_prompts(ADA, changed(TASK, **changes)))


def test_a_word_list(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text("# not wanted\nred star\nКот # comment\n\n猫\n", "utf-8")
    log = Log()
    gate = ContentGate(WordList.from_file(file), audit=log)
    for prompt in (
        "a RED STAR", "кот", "白い猫と", "a (red star:1.2)", "a (red) star", "a re(d sta:1.1)r",
        "a red\\ star", "a re<lora:x:1>d star",
        "red star_", "_red1 star", "réd star", "red  star", "red\nstar", "red, star",
    ):  # fmt: skip
        with pytest.raises(PolicyViolation, match="Acceptable Use Policy"):
            check(gate, prompt=prompt)
    with pytest.raises(PolicyViolation):
        check(gate, prompt="red", styles=(Style("s", "{prompt} star"),))
    for prompt in ("a red moon", "redstar", "котик", "a red starling"):
        check(gate, prompt=prompt)
    check(gate, prompt="a moon", negative_prompt="a red star")
    with pytest.raises(PolicyViolation):
        check(gate, prompt="a moon", prompt_2="a red star")
    with pytest.raises(PolicyViolation):
        check(gate, prompt="a moon", styles=(Style("s", "{prompt}, red star"),))
    assert log.rows[0][:2] == ("policy.prompt", "req_1")
    assert log.rows[0][2] == {"score": None}
    assert len(log.rows) == 17
    choices = {"prompt": "a {blue|red} {star|star}", "dynamic_prompts": True}
    check(gate, **choices, seeds=(find(choices, "blue"),))
    with pytest.raises(PolicyViolation):
        check(gate, **choices, seeds=(find(choices, "blue"), find(choices, "red")))


def test_withheld_images() -> None:
    log = Log()
    gate = ContentGate(NoTwos(), "requested", log)
    assert gate.judges_images(requested=True)
    assert not gate.judges_images(requested=False)
    assert ContentGate(NoTwos(), "always").judges_images(requested=False)
    assert not ContentGate(NoTwos(), "off").judges_images(requested=True)
    screened = asyncio.run(gate.screened(ADA, TASK, RESULT))
    assert screened.images == (b"one", b"", b"three")
    assert [each.removed for each in screened.safety] == [False, True, False]
    assert [each.score for each in screened.safety] == [0.1, 0.9, 0.1]
    assert screened.removed == 1
    assert log.rows == [("policy.image", "req_1/1", {"score": 0.9})]
    assert structs.replace(screened, images=RESULT.images, safety=()) == RESULT


def test_several_policies() -> None:
    class Score(NoPolicy):
        async def judge_prompt(self, subject: Subject) -> Ruling:
            return Ruling(True, 0.4)

    both = Policies([Score(), WordList(["star"])])
    subject = Subject(tenant="ada", request_id="r", prompts=("a star",))
    assert asyncio.run(both.judge_prompt(subject)) == Ruling(False, None, "the word 'star'")
    assert asyncio.run(Policies([Score(), NoPolicy()]).judge_prompt(subject)) == Ruling(True, 0.4)
    assert asyncio.run(Policies([]).judge_prompt(subject)) == ALLOWED


@pytest.fixture
def endpoint() -> Iterator[Any]:
    """A policy that refuses what has "no" in it, and breaks on "odd"."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            answer: Any = {"allowed": not any("no" in text for text in question["prompts"])}
            if question["kind"] == "image":
                answer = {"allowed": question["image_b64"] != "dHdv", "score": 0.5, "more": 1}
            if "odd" in question["prompts"][0]:
                answer = {"allowed": "perhaps"}
            body = json.dumps(answer).encode()
            self.send_response(500 if "broken" in question["prompts"][0] else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_callback(endpoint: Any) -> None:
    url, asked = endpoint

    async def ask() -> None:
        policy = PolicyCallback(url, 5.0)
        gate = ContentGate(policy, "always")
        try:
            await gate.check_prompts(ADA, TASK)
            assert asked == [
                {
                    "kind": "prompt",
                    "tenant": "ada",
                    "request_id": "req_1",
                    "prompts": ["a red star"],
                }
            ]
            with pytest.raises(PolicyViolation):
                await gate.check_prompts(ADA, changed(TASK, prompt="no"))
            screened = await gate.screened(ADA, TASK, RESULT)
            assert screened.images == (b"one", b"", b"three")
            for prompt in ("odd", "broken"):
                with pytest.raises(PolicyUnavailable):
                    await gate.check_prompts(ADA, changed(TASK, prompt=prompt))
        finally:
            await policy.close()

    asyncio.run(ask())


def test_an_endpoint_that_does_not_answer_refuses() -> None:
    async def ask() -> None:
        policy = PolicyCallback("http://127.0.0.1:9/", 1.0)
        try:
            with pytest.raises(PolicyUnavailable):
                await ContentGate(policy).check_prompts(ADA, TASK)
        finally:
            await policy.close()

    asyncio.run(ask())
