"""A rolling upgrade under load to a copy with two more fields and one more kind of event: two
versions serve side by side, nothing is lost and nothing misread."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.faults.client import Endpoint, Load, known
from tests.serving.cluster.test_platform import check, golden_of, serving_processes, up
from tests.support.platforms import Running, running, wait_until

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
PACKAGES = ("assets", "orchestrator", "router", "serving")
CONTRACT, EVENTS = "serving/generation/contract.py", "serving/generation/events.py"
PROGRESS = "serving/generation/progress.py"
#: (file, text, replacement): a field before and one after the known ones, and an event that a
#: replica sends before each step.
CHANGES = (
    (CONTRACT, "    prompt: str\n", '    mood: str = "calm"\n    prompt: str\n'),
    (
        CONTRACT,
        "    fallbacks: Mapping[str, int] = field(default_factory=dict)\n",
        "    fallbacks: Mapping[str, int] = field(default_factory=dict)\n    mood: int = 7\n",
    ),
    (
        EVENTS,
        "\n\nclass Preview(",
        '\n\nclass Mood(Struct, frozen=True, tag_field="type", tag="mood"):\n'
        '    words: str = "calm"\n\n\nclass Preview(',
    ),
    (EVENTS, "| Step | Preview |", "| Step | Mood | Preview |"),
    (
        PROGRESS,
        "        self._emit(self.last)\n",
        "        self._emit(Mood())\n        self._emit(self.last)\n",
    ),
    (PROGRESS, "import Event, Fetching", "import Event, Mood, Fetching"),
)


def copy_of_the_code(folder: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def upgrade(code: Path) -> None:
    for name, before, after in CHANGES:
        text = (code / name).read_text()
        assert before in text, (name, before)
        (code / name).write_text(text.replace(before, after, 1))


class FollowedJobs(threading.Thread):
    """Follows one job after the other until told to stop; a lost stream is continued."""

    def __init__(self, platform: Running) -> None:
        super().__init__(daemon=True)
        self._url = platform.url
        self._headers = {"Authorization": f"Bearer {platform.key('acme')}", "X-OctoAI-Async": "1"}
        self._stop_now = threading.Event()
        self.kinds: set[str] = set()
        self.ended: list[str] = []
        self.errors: list[str] = []

    def run(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=60) as http:
            while not self._stop_now.is_set():
                try:
                    self.ended.append(self._follow(http, self._accepted(http)))
                except Exception as error:
                    self.errors.append(repr(error))
                    return

    def stop(self) -> None:
        self._stop_now.set()
        self.join(timeout=120)

    def _accepted(self, http: httpx2.Client) -> str:
        body = {"prompt": "a star", "steps": 30, "seed": 1}
        while True:
            try:
                answer = http.post("/generate/sdxl", json=body, headers=self._headers)
                if answer.is_success:
                    return str(answer.json()["response_id"])
            except httpx2.HTTPError:
                continue

    def _follow(self, http: httpx2.Client, job: str) -> str:
        last = ""
        while True:
            headers = {"Last-Event-ID": last}
            try:
                with http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "event":
                            kind = value
                            self.kinds.add(kind)
                        elif name == "id":
                            last = value
                        elif name == "data" and kind in ("done", "failed"):
                            assert kind == "done", json.loads(value)
                            return job
            except httpx2.HTTPError:
                continue


def test_a_rolling_upgrade_to_a_version_with_more_fields_and_events(tmp_path: Path) -> None:
    code = copy_of_the_code(tmp_path / "code")
    with running(tmp_path, checkout=code, replicas=2, gateways=2) as platform:
        golden = golden_of(platform)
        old = serving_processes(platform)
        followed = FollowedJobs(platform)
        followed.start()
        with Load(known(Endpoint([platform.url], platform.key("acme"))), clients=3) as load:
            load.await_more(4)
            wait_until(lambda: len(followed.ended) > 0)
            upgrade(code)
            platform.process.send_signal(signal.SIGHUP)
            wait_until(
                lambda: len(up(platform)) == 2 and not old & serving_processes(platform), 300
            )
            load.await_more(8)
            count = len(followed.ended)
            wait_until(lambda: len(followed.ended) > count, 120)
        followed.stop()
        check(load, golden)
        assert followed.errors == []
        assert {"assigned", "step", "image", "done"} <= followed.kinds
        assert golden_of(platform) == golden
        totals = _totals(platform)
        print(
            f"{len(load.answers)} requests and {len(followed.ended)} followed jobs during the "
            f"upgrade of {len(old)} processes; events: {sorted(followed.kinds)}"
        )
        assert totals["pictures"] == len(load.answers) + len(followed.ended) + 2 * len(golden)


def _totals(platform: Running) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {platform.key('acme')}"}
    answer = httpx2.get(f"{platform.url}/v1/usage", headers=headers, timeout=60)
    return dict(answer.json()["totals"])
