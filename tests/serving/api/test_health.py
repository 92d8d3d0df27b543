"""Readiness while a component hangs; graceful shutdown."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx2
import pytest

from router.pool import Pool
from serving.api import health
from serving.api.context import Context
from serving.generation.status import PoolState, PoolStatus
from tests.support.platforms import running


async def test_hanging_checks_do_not_occupy_all_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, release = [], threading.Event()

    def hang() -> None:
        calls.append(1)
        release.wait(30)

    async def pools() -> list[PoolStatus]:
        return [PoolStatus(Pool("a"), PoolState(waiting=0, replicas=[]))]

    monkeypatch.setattr(health, "_CHECK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(health, "load_manifest", lambda *_: None)
    context = SimpleNamespace(
        backends=SimpleNamespace(directory=SimpleNamespace(ping=hang), store=None),
        monitor=SimpleNamespace(pools=pools),
        probes={},
    )
    try:
        answers = [await health._parts(cast(Context, context)) for _ in range(3)]
        assert calls == [1]
        monkeypatch.setattr(health, "_HUNG_AFTER_S", 0.0)
        answers += [await health._parts(cast(Context, context)) for _ in range(4)]
        assert calls == [1, 1]  # one more, in case only the first hangs; never a third
    finally:
        release.set()
    assert [answer.status for answer in answers] == ["not ready"] * 7
    await asyncio.wait([probe for _, probe in context.probes["database"]])
    assert (await health._parts(cast(Context, context))).status == "ready"
    assert calls == [1, 1, 1]


def test_sigterm_finishes_running_requests(tmp_path: Path) -> None:
    with running(tmp_path, "--in-process", replicas=1) as platform:
        headers = {"Authorization": f"Bearer {platform.key('acme')}"}
        answers: list[httpx2.Response] = []

        def generate() -> None:
            body = {"prompt": "a star", "steps": 100, "seed": 1}
            answers.append(
                httpx2.post(f"{platform.url}/generate/sdxl", json=body, headers=headers, timeout=60)
            )

        client = threading.Thread(target=generate)
        client.start()
        while not any(replica["running"] for replica in platform.status()["replicas"]):
            assert client.is_alive()
        platform.process.send_signal(signal.SIGTERM)
        client.join(timeout=60)
        assert platform.process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert [answer.status_code for answer in answers] == [200]
