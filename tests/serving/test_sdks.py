"""OctoAI's Python clients and a generated one, in virtual environments, run the scripts in sdk."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.miniature.catalogue import CATALOGUE, weights_file
from tests.support.platforms import Running, running
from tests.support.samples import write_padded

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
HERE = Path(__file__).parent / "sdk"
PUBLIC = 1 + len(CATALOGUE)
LARGE_BYTES = 66 << 20


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def source(sample_files: dict[str, Path]) -> Iterator[str]:
    """An import URL within AO_IMPORT_NETWORKS."""
    file = sample_files["inversion"]
    handler = partial(Quiet, directory=str(file.parent))
    server = ThreadingHTTPServer(("127.0.0.2", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.2:{server.server_port}/{file.name}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("sdks")
    imports: dict[str, Any] = {"import_schemes": ("http",), "import_networks": ("127.0.0.2/32",)}
    with running(folder, "--in-process", replicas=1, **imports) as server:
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, sample_files: dict[str, Path]) -> list[str]:
    folder = tmp_path_factory.mktemp("large")
    large = write_padded(sample_files["checkpoint"], folder / "large.safetensors", LARGE_BYTES)
    samples = [sample_files[name] for name in ("lora_all", "inversion", "checkpoint")]
    return [str(file) for file in (*samples, large, weights_file("sepia"))]


def run_script(requirement: str, script: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a script of sdk with a client; return its JSON."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", requirement]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    command = [python, "-W", "ignore", str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_octoai_1_11(platform: Running, files: list[str], source: str, tmp_path: Path) -> None:
    arguments = [platform.url, platform.key("new"), source, *files]
    platform.directory.set_image_metadata("new", wanted=False)  # equal pixels are equal files
    results = run_script("octoai==1.11.0", "octoai_1_11.py", tmp_path / "venv", *arguments)
    large = results.pop("large")
    assert large > 64 << 20
    assert results == {
        "statuses": ["ready"],
        "listed": [1, True, False],
        "loras": 1,
        "public": PUBLIC,
        "got": True,
        "others": "outline",
        "data": "Data_Lora",
        "same": True,
        "seeds": [5, 6],
        "changed": True,
        "bytes": "ffd8",
        "samplers": [21, True],
        "style": [True, True],
        "clip_skip": [True, True],
        "422": ["UnprocessableEntityError"] * 3,
        "404": ["ApiError", 404, "not_found"],
        "taken": ["UnprocessableEntityError", 422, "name_taken"],
        "401": ["ApiError", 401, "unauthenticated"],
        "501": ['["ApiError", 501, "not_served"]'],
        "later": True,
        "health": 200,
        "async": ["ready", 1, 1, True],
        "async 501": 501,
        "deleted": [True, True],
        "after": ["ApiError", 404, "not_found"],
    }


def test_octoai_sdk_0_10(platform: Running, files: list[str], source: str, tmp_path: Path) -> None:
    arguments = [platform.url, platform.key("old"), source, *files]
    results = run_script("octoai-sdk==0.10.1", "octoai_0_10.py", tmp_path / "venv", *arguments)
    assert results.pop("large") > 64 << 20
    assert results == {
        "statuses": ["ready"],
        "listed": True,
        "total": 5,
        "public": PUBLIC,
        "got": True,
        "same": True,
        "changed": True,
        "removed": 0,
        "later": True,
        "samplers": 21,
        "style": True,
        "unknown": "OctoAIClientError",
        "bad size": "OctoAIValidationError",
        "tunes": results["tunes"],
        "deleted": True,
        "after": "OctoAIClientError",
    }
    assert "501" in results["tunes"]
