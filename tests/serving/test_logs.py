"""Log lines carry the request, tenant and job, and no private data."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx

from serving.api.app import create_app
from serving.api.context import Context
from serving.logs import add_fields, note
from tests.platforms import running

WRITE = """
import asyncio, logging, sys
from serving.logs import about, configure, note

configure(sys.argv[1], "info")
log = logging.getLogger("serving.test")

async def one(name):
    with about(http=name):
        await asyncio.sleep(0)
        note(tenant="t-" + name)
        log.info("hello %s", name, extra={"seconds": 1.5})
        await asyncio.to_thread(log.warning, "from a thread")

async def main():
    await asyncio.gather(one("a"), one("b"))
    log.info("no context")
    log.debug("not logged")
    logging.getLogger("another.library").info("not logged")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it broke")

asyncio.run(main())
"""


def logged(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WRITE, log_format], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_json_lines_have_the_context_fields() -> None:
    lines = [json.loads(line) for line in logged("json")]
    for name in ("a", "b"):
        hello, thread = [line for line in lines if line.get("http") == name]
        assert hello["message"] == f"hello {name}"
        assert hello["tenant"] == thread["tenant"] == f"t-{name}"
        assert (hello["level"], hello["logger"], hello["seconds"]) == ("INFO", "serving.test", 1.5)
        assert "at" in hello
    (no_context,) = [line for line in lines if line["message"] == "no context"]
    assert "http" not in no_context
    assert "tenant" not in no_context
    assert "ValueError: broken" in lines[-1]["error"]
    assert len(lines) == 6


def test_text_lines_end_with_the_fields() -> None:
    lines = logged("text")
    assert any(line.endswith("hello a http=a tenant=t-a") for line in lines)
    assert any(line.endswith("no context") for line in lines)


def test_logs_trace_a_request_without_its_prompt(tmp_path: Path) -> None:
    with running(tmp_path, "--in-process", replicas=1, log_format="json") as platform:
        headers = {"Authorization": f"Bearer {platform.key('acme')}"}
        (tenant,) = (t.id for t in platform.directory.tenants() if t.name == "acme")
        body = {"prompt": "a very secret heron", "steps": 1, "seed": 1}
        url = f"{platform.url}/generate/sdxl"
        answer = httpx.post(url, json=body, headers=headers, timeout=60)
        keyed = {**headers, "Idempotency-Key": "once"}
        by_key = httpx.post(url, json=body, headers=keyed, timeout=60)
    assert answer.status_code == by_key.status_code == 200
    text = platform.log.read_text()
    assert "heron" not in text
    assert platform.key("acme") not in text
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in text.splitlines() if line.startswith("{")
    ]
    own = [line for line in lines if line.get("http") == answer.headers["x-request-id"]]
    assert [line["message"].partition(" in ")[0] for line in own] == [
        "drawn by default-0",
        "POST /generate/sdxl: 200",
    ]
    for line in own:
        assert line["request"] == answer.json()["request_id"]
        assert line["tenant"] == tenant
    assert own[0]["denoise_ms"] > 0
    (exchange,) = [line for line in lines if line.get("http") == by_key.headers["x-request-id"]]
    (generated,) = [line for line in lines if line.get("request") == by_key.json()["request_id"]]
    assert exchange["job"] == generated["job"]
    assert generated["tenant"] == tenant


async def test_an_unexpected_error_is_logged_with_its_request_id() -> None:
    """The response refers to the log by the request id."""
    app = create_app(cast(Context, SimpleNamespace()))

    @app.get("/breaks")
    async def breaks() -> None:
        note(tenant="t")
        raise RuntimeError("the unexpected")

    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    handler.addFilter(add_fields)
    log = logging.getLogger("serving.api")
    log.addHandler(handler)
    log.setLevel("INFO")
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answer = await client.get("/breaks")
    finally:
        log.removeHandler(handler)
        log.setLevel("NOTSET")
    assert answer.status_code == 500
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    error, exchange = records
    assert "the unexpected" in str(error.exc_info)
    assert exchange.getMessage().startswith("GET /breaks: 500")
    for record in records:
        assert record.__dict__["http"] == answer.headers["x-request-id"]
        assert record.__dict__["tenant"] == "t"
