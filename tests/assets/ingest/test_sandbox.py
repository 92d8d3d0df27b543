"""The sandbox: limits, forbidden operations, restarts."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.ingest.convert import ingest_file
from assets.ingest.sandbox import Sandbox, SandboxFailed, SandboxLimits, _digest
from tests.support.samples import write_kohya_lora


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def lora(schema: ParameterSchema, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kohya_lora(tmp_path_factory.mktemp("sandbox") / "lora.safetensors", schema)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def test_the_result_equals_an_unsandboxed_ingest(
    sandbox: Sandbox, lora: Path, schema: ParameterSchema, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("in", "out")]
    for folder in folders:
        folder.mkdir()
    results = [
        run(lora, "lora", schema, b"salt", folder)
        for run, folder in zip((sandbox.ingest, ingest_file), folders, strict=True)
    ]
    assert results[0].report == results[1].report
    (blob, path), (other, _) = (result.files["lora"] for result in results)
    assert blob == other
    assert path.stat().st_size == blob.size_bytes
    with pytest.raises(IngestRejected, match="declared as vae"):
        sandbox.ingest(lora, "vae", schema, None, tmp_path)
    assert sandbox._worker is not None
    assert children(sandbox._worker.pid) == []


def test_memory_is_limited(lora: Path, schema: ParameterSchema, tmp_path: Path) -> None:
    sandbox = Sandbox(replace(SandboxLimits(), memory_bytes=1 << 18))
    with pytest.raises(IngestRejected, match="bytes of memory"):
        sandbox.ingest(lora, "lora", schema, None, tmp_path)
    sandbox.close()


def test_time_is_limited(lora: Path, schema: ParameterSchema, tmp_path: Path) -> None:
    sandbox = Sandbox(SandboxLimits(base_s=0.0, least_bytes_per_s=1e12))
    with pytest.raises(IngestRejected, match="took longer"):
        sandbox.ingest(lora, "lora", schema, None, tmp_path)
    sandbox.close()


def test_a_killed_worker_is_restarted(
    sandbox: Sandbox, lora: Path, schema: ParameterSchema, tmp_path: Path
) -> None:
    sandbox.ingest(lora, "lora", schema, None, tmp_path)
    worker = sandbox._worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert sandbox.ingest(lora, "lora", schema, None, tmp_path).files
    assert sandbox._worker is not worker


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /nowhere",)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin", "x.ckpt"])
def test_a_pickle_is_refused_without_unpickling_under_any_name(
    sandbox: Sandbox, schema: ParameterSchema, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    for write in (
        lambda: path.write_bytes(pickle.dumps(Evil())),
        lambda: torch.save({"emb_params": torch.zeros(1, 4)}, path),
    ):
        write()
        with pytest.raises(IngestRejected) as caught:
            sandbox.ingest(path, "textual_inversion", schema, None, tmp_path)
        assert "forbidden operation" not in str(caught.value)  # unpickling was not attempted


_ATTEMPTS = """
import os, pickle, socket, sys
from assets.ingest import sandbox_worker

class Evil:
    def __reduce__(self):
        return os.system, ("true",)

evil = pickle.dumps(Evil())
sys.addaudithook(sandbox_worker._refuse)
for forbidden in (
    lambda: pickle.loads(evil),
    lambda: os.system("true"),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: os.fork(),
):
    try:
        forbidden()
    except sandbox_worker._Forbidden as error:
        print(error)
"""


def test_forbidden_operations_are_refused() -> None:
    """In a subprocess: an audit hook cannot be removed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ATTEMPTS],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    events = ["pickle.find_class", "os.system", "socket.getaddrinfo", "os.fork"]
    assert done.stdout.split() == events


def test_a_stale_answer_is_discarded(
    sandbox: Sandbox,
    lora: Path,
    schema: ParameterSchema,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that answers another job is stopped; a new one inspects the file."""
    sandbox.ingest(lora, "lora", schema, None, tmp_path)
    worker, read_line = sandbox._worker, sandbox._read_line
    stale = [b'{"id": "another-job", "components": ["lora"], "report": {}}\n']
    monkeypatch.setattr(sandbox, "_read_line", lambda *a: stale.pop() if stale else read_line(*a))
    assert sandbox.ingest(lora, "lora", schema, None, tmp_path).report["kind"] == "lora"
    assert sandbox._worker is not worker


def test_only_regular_files_are_accepted_as_output(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "lora").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "vae")
    for name in ("lora", "vae", "unet"):
        with pytest.raises(SandboxFailed):
            _digest(tmp_path / name)


def test_an_unexpected_failure_is_not_a_rejection(
    sandbox: Sandbox, schema: ParameterSchema, tmp_path: Path, lora: Path
) -> None:
    with pytest.raises(SandboxFailed, match="Error"):
        sandbox.ingest(lora, "lora", schema, None, tmp_path / "missing")
