"""The OpenAPI document with tools of others, in virtual environments: a generated client lists,
generates and polls; schemathesis finds no undocumented answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving.miniature.catalogue import CATALOGUE
from tests.support.openapi import DOCUMENT
from tests.support.platforms import Running, running

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).parent / "sdk" / "generated.py"
#: Rules that JSON Schema cannot say (a name that exists) refuse requests that fit the schema.
CONFIGURATION = """
[parameters]
"path.ref" = {refs}
"path.job_id" = {jobs}
"path.name" = ["default", "ada"]

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "402", "403", "404", "409", "413", "422", "429", "499", "503"]
"""  # noqa: E501


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("openapi"), "--in-process", replicas=1) as server:
        yield server


def environment_with(requirement: str, folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    command = [*pip, "--disable-pip-version-check", requirement]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return folder / "bin"


def test_a_generated_client_lists_generates_and_polls(platform: Running, tmp_path: Path) -> None:
    tools = environment_with("openapi-python-client", tmp_path / "venv")
    generate = [str(tools / "openapi-python-client"), "generate", "--meta", "none"]
    client = tmp_path / "client" / "asset_orchestrator_client"
    client.parent.mkdir()
    paths = ["--path", str(DOCUMENT), "--output-path", str(client)]
    done = subprocess.run([*generate, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "will not be generated" not in done.stdout  # no operation is left out
    command = [str(tools / "python"), str(SCRIPT), platform.url, platform.key("generated")]
    environment = {**os.environ, "PYTHONPATH": str(client.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    lora = results.pop("lora")
    assert lora in results.pop("found")
    assert results == {
        "public": 1 + len(CATALOGUE),
        "seeds": [5],
        "job": ["completed", 5, 1],
        "mine": ["by a generated client", "ready_to_upload", True],
        "missing": "not_found",
        "pools": ["default"],
    }


def test_schemathesis_finds_no_undocumented_answer(platform: Running, tmp_path: Path) -> None:
    tools = environment_with("schemathesis", tmp_path / "venv")
    key = platform.key("fuzzed")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as http:
        assert http.post("/v1/members", json={"name": "ada"}).status_code == 200
        created = http.post("/v1/assets", json={"asset_type": "lora", "name": "watercolour"})
        ref = created.json()["asset"]["id"]
        public = http.get("/v1/assets", params={"is_public": True}).json()["data"][0]["id"]
        body = {"prompt": "a red circle", "steps": 2}
        asynchronous = {"X-OctoAI-Async": "1"}
        job = http.post("/generate/sdxl", json=body, headers=asynchronous).json()["response_id"]
    configuration = CONFIGURATION.format(refs=json.dumps([ref, public]), jobs=json.dumps([job]))
    (tmp_path / "schemathesis.toml").write_text(configuration)
    command = [str(tools / "schemathesis"), "run", f"{platform.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", "all", "--seed", "1"]
    # Its own key must live; requests for 16 large images take long on the CPU.
    command += ["--exclude-path-regex", "^/v1/keys/", "--request-timeout", "300"]
    command += ["--max-examples", "20", "--phases", "examples,fuzzing", "--max-time", "240"]
    command += ["--max-response-time", "300", "--continue-on-failure", "--warnings", "off"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
