"""The cage: what a file may cost, what it may not do, and that its keeper comes back."""

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
from assets.ingest.sandbox import Cage, CageBroke, Limits, _digest
from benchmarks.samples import write_kohya_lora


@pytest.fixture
def cage() -> Iterator[Cage]:
    cage = Cage()
    yield cage
    cage.close()


@pytest.fixture(scope="module")
def lora(schema: ParameterSchema, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kohya_lora(tmp_path_factory.mktemp("cage") / "lora.safetensors", schema)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def test_it_does_what_is_done_outside(
    cage: Cage, lora: Path, schema: ParameterSchema, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("in", "out")]
    for folder in folders:
        folder.mkdir()
    done = [
        work(lora, "lora", schema, b"salt", folder)
        for work, folder in zip((cage.ingest, ingest_file), folders, strict=True)
    ]
    assert done[0].report == done[1].report
    (blob, path), (other, _) = (one.files["lora"] for one in done)
    assert blob == other
    assert path.stat().st_size == blob.size_bytes
    with pytest.raises(IngestRejected, match="declared as vae"):
        cage.ingest(lora, "vae", schema, None, tmp_path)
    assert cage._keeper is not None
    assert children(cage._keeper.pid) == []


def test_memory_is_limited(lora: Path, schema: ParameterSchema, tmp_path: Path) -> None:
    cage = Cage(replace(Limits(), memory_bytes=1 << 18))
    with pytest.raises(IngestRejected, match="bytes of memory"):
        cage.ingest(lora, "lora", schema, None, tmp_path)
    cage.close()


def test_time_is_limited(lora: Path, schema: ParameterSchema, tmp_path: Path) -> None:
    cage = Cage(Limits(base_s=0.0, least_bytes_per_s=1e12))
    with pytest.raises(IngestRejected, match="took longer"):
        cage.ingest(lora, "lora", schema, None, tmp_path)
    cage.close()


def test_a_keeper_that_was_killed_comes_back(
    cage: Cage, lora: Path, schema: ParameterSchema, tmp_path: Path
) -> None:
    cage.ingest(lora, "lora", schema, None, tmp_path)
    keeper = cage._keeper
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    assert cage.ingest(lora, "lora", schema, None, tmp_path).files
    assert cage._keeper is not keeper


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /nowhere",)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin", "x.ckpt"])
def test_a_pickle_is_refused_unread_under_any_name(
    cage: Cage, schema: ParameterSchema, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    for write in (
        lambda: path.write_bytes(pickle.dumps(Evil())),
        lambda: torch.save({"emb_params": torch.zeros(1, 4)}, path),
    ):
        write()
        with pytest.raises(IngestRejected) as caught:
            cage.ingest(path, "textual_inversion", schema, None, tmp_path)
        assert "reader do what" not in str(caught.value)  # it was not even tried


_TRIES = """
import os, pickle, socket, sys
from assets.ingest import sandbox_worker as caged

class Evil:
    def __reduce__(self):
        return os.system, ("true",)

evil = pickle.dumps(Evil())
sys.addaudithook(caged._refuse)
for forbidden in (
    lambda: pickle.loads(evil),
    lambda: os.system("true"),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: os.fork(),
):
    try:
        forbidden()
    except caged._Forbidden as error:
        print(error)
"""


def test_what_no_conversion_does_is_refused() -> None:
    """The hook itself: it cannot be taken off again, so it has a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TRIES],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = ["pickle.find_class", "os.system", "socket.getaddrinfo", "os.fork"]
    assert done.stdout.split() == found


def test_an_answer_to_another_question_is_not_taken(
    cage: Cage, lora: Path, schema: ParameterSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that is out of step is ended, and the file is inspected by a new one."""
    cage.ingest(lora, "lora", schema, None, tmp_path)
    keeper, line = cage._keeper, cage._line
    stale = [b'{"id": "of another", "components": ["lora"], "report": {}}\n']
    monkeypatch.setattr(cage, "_line", lambda *a: stale.pop() if stale else line(*a))
    assert cage.ingest(lora, "lora", schema, None, tmp_path).report["kind"] == "lora"
    assert cage._keeper is not keeper


def test_what_the_inside_left_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "lora").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "vae")
    for name in ("lora", "vae", "unet"):
        with pytest.raises(CageBroke):
            _digest(tmp_path / name)


def test_a_file_that_breaks_its_reader_is_our_fault(
    cage: Cage, schema: ParameterSchema, tmp_path: Path, lora: Path
) -> None:
    with pytest.raises(CageBroke, match="Error"):
        cage.ingest(lora, "lora", schema, None, tmp_path / "missing")
