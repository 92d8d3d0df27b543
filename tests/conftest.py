"""Fixtures of all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import servers
from tests.support.format_matrix import DOCUMENT, FormatMatrix
from tests.support.servers import await_port, free_port, s3_options

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--formats", action="store_true", help="write the measurements into docs/formats.md"
    )


@pytest.fixture(scope="session")
def formats(request: pytest.FixtureRequest) -> Iterator[FormatMatrix]:
    """Collects measurements; ``--formats`` writes them to docs/formats.md."""
    matrix = FormatMatrix()
    yield matrix
    if request.config.getoption("--formats"):
        before, start, rest = DOCUMENT.read_text().partition("<!-- measured -->\n")
        _, end, after = rest.partition("<!-- /measured -->")
        DOCUMENT.write_text(before + start + matrix.table() + "\n" + end + after)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real model files; skips unless REAL_DATA is set."""
    path = os.environ.get("REAL_DATA")
    if not path:
        pytest.skip("set REAL_DATA to the folder of real files")
    return Path(path)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from serving.miniature.model import write_miniature

    return write_miniature(tmp_path_factory.mktemp("model") / "miniature")


@pytest.fixture(scope="session")
def schema() -> Any:
    from assets.families.sdxl import schema_of
    from serving.miniature.model import MINIATURE_CONFIGS

    return schema_of(MINIATURE_CONFIGS)


@dataclass(frozen=True)
class Bench:
    """A store with the miniature, an ingest service, and factories."""

    store: Any
    records: Any
    library: Any
    ingest_service: Any
    manifest: Any
    folder: Path
    engine: Callable[..., Any]
    ingest: Callable[..., Any]


@pytest.fixture(scope="session")
def bench(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Shared by the session: tests add assets, never reset it."""
    import torch

    from assets.asset import Asset
    from assets.ids import new_asset_id
    from assets.ingest.service import IngestService
    from assets.library.library import Library
    from assets.sql.blobs import SqlBlobRecords
    from assets.sql.records import SqlAssetRecords
    from assets.storage.object_paths import upload_key
    from assets.storage.object_store import FsspecStore, put_file
    from orchestrator.download import StoreSource
    from orchestrator.file_tier import FileTier
    from orchestrator.provision import Provisioner
    from serving.bootstrap.database import open_database
    from serving.engine.engine import Engine

    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("bench")
    store = FsspecStore(f"file://{folder}/store")
    database = open_database(f"sqlite:///{folder}/records.db")
    records, blobs = SqlAssetRecords(database), SqlBlobRecords(database)
    ingest_service = IngestService(records, blobs, store, b"secret", folder / "scratch")
    manifest = ingest_service.commons.install_base(miniature)
    tiers = (
        FileTier("disk", folder / "disk", 4 << 30),
        FileTier("host", folder / "host", 4 << 30),
    )

    def engine(name: str = "engine", **options: Any) -> Engine:
        return Engine(manifest, Provisioner(StoreSource(store), *tiers), name=name, **options)

    def ingest(path: Path, kind: str, tenant: str = "t1", **fields: Any) -> Asset:
        asset = Asset(
            id=new_asset_id(),
            tenant_id=tenant,
            owner=tenant,
            name=f"{path.stem}-{new_asset_id()[-8:]}",
            kind=kind,  # type: ignore[arg-type]
            created_at_s=0.0,
            status="uploaded",
            **fields,
        )
        records.add(asset)
        put_file(store, upload_key(asset.id), path)
        return ingest_service.ingest(asset.id)  # type: ignore[return-value]

    library = Library(records, blobs, store)
    yield Bench(store, records, library, ingest_service, manifest, folder, engine, ingest)
    ingest_service.close()


@pytest.fixture(scope="session")
def sample_files(schema: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three LoRAs with different targets and ranks, two inversions, a second checkpoint."""
    import torch

    from assets.content import MODEL_COMPONENTS
    from serving.miniature.model import weights
    from serving.miniature.single_file import write_single_file
    from tests.support.samples import write_inversion, write_kohya_lora

    folder = tmp_path_factory.mktemp("samples")

    tensors = {component: weights(component) for component in MODEL_COMPONENTS}
    generator = torch.Generator().manual_seed(3)
    for name, tensor in tensors["unet"].items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensors["unet"][name] = (tensor + 0.02 * noise).half()

    def other(component: Any, name: str, _: Any) -> Any:
        return tensors[component][name]

    return {
        "lora_all": write_kohya_lora(folder / "lora_all.safetensors", schema, seed=11),
        "lora_cross": write_kohya_lora(
            folder / "lora_cross.safetensors", schema, seed=12, rank=2, only="attn2"
        ),
        "lora_alpha": write_kohya_lora(
            folder / "lora_alpha.safetensors", schema, seed=13, rank=8, alpha=4.0
        ),
        "inversion": write_inversion(folder / "inversion.safetensors", schema, vectors=2),
        "inversion_long": write_inversion(
            folder / "inversion_long.safetensors", schema, vectors=5, seed=5
        ),
        "checkpoint": write_single_file(folder / "checkpoint.safetensors", schema, other),
    }


@pytest.fixture(scope="session")
def samples(bench: Bench, sample_files: dict[str, Path]) -> dict[str, Any]:
    """Assets from ``sample_files``, by name."""
    kinds = {"lora": "lora", "inversion": "textual_inversion", "checkpoint": "checkpoint"}
    assets = {
        name: bench.ingest(path, kinds[name.split("_")[0]]) for name, path in sample_files.items()
    }
    rejected = {n: a.status_details for n, a in assets.items() if a.status != "ready"}
    assert not rejected, rejected
    return assets


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """An in-memory S3 server, for features that ``s3_server`` lacks."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("moto"))}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment, **quiet)
    await_port(server, port)
    options = s3_options(port)
    httpx2.put(f"http://127.0.0.1:{port}/bucket").raise_for_status()
    yield {"url": "s3://bucket", "options": options}
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A real S3 server over a private folder."""
    with servers.s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield {"url": "s3://bucket", "options": s3_options(port)}


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A private PostgreSQL server on loopback."""
    if servers.POSTGRES is None:
        pytest.skip("PostgreSQL's server is not installed")
    with servers.postgres_server(Path("/tmp") / f"ao-postgres-{os.getpid()}") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A SQLAlchemy engine for each database with every table; PostgreSQL's is shared."""
    from serving.bootstrap.database import open_database, upgrade

    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/r.db"
    else:
        url = request.getfixturevalue("postgres_url")
    engine = open_database(url)
    upgrade(engine)  # changes nothing
    yield engine
    engine.dispose()
