"""Library calls of tenants with 10,000 and 100 assets: list, search, get, resolve.

Without HTTP, which costs both the same: ratios look worse, not better.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track

from assets.asset import COMMONS, Asset
from assets.content import MODEL_COMPONENTS, Blob, Component
from assets.ids import new_asset_id
from assets.library.library import Library
from assets.library.records import Query
from assets.library.resolve import BASE_NAME
from assets.principal import Principal
from assets.selection import AssetSelection
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from assets.storage.object_store import FsspecStore
from benchmarks.document import Document
from serving.bootstrap.database import open_database

RESULT = Path(__file__).parent / "results" / "library.json"
SIZES = (100, 10_000)
ROUNDS = 300
#: Per page of a search.
PAGE = 20
_FIRST = ("neon", "glass", "ink", "gold", "retro", "pix", "dream", "storm", "copper", "moon")
_SECOND = ("light", "sketch", "forest", "city", "paper", "wave", "stone", "garden", "line", "ish")
_WORDS = tuple(f"{first}{second}" for first in _FIRST for second in _SECOND)


@dataclass(frozen=True, slots=True)
class OperationFigures:
    """Milliseconds of one operation for the tenant with ``assets`` assets."""

    operation: str
    assets: int
    p50: float
    p99: float


def asset_of(tenant: str, index: int, rng: random.Random) -> Asset:
    """Make a typical asset."""
    words = rng.sample(_WORDS, 6)
    blob = Blob(f"t{new_asset_id()}", "0" * 64, 20_000_000)
    return Asset(
        id=new_asset_id(1.7e9 + index),
        tenant_id=tenant,
        owner=tenant,
        name=f"{words[0]}-{words[1]}-{index}",
        kind="lora",
        created_at_s=1.7e9 + index,
        status="ready",
        description=" ".join(words),
        size_bytes=20_000_000,
        tags=tuple(words[2:4]),
        trigger_words=(words[4],),
        parts={"lora": blob},
        report={"fits": "model", "matched": 986, "modules": 986, "training": {"ss_x": "y" * 500}},
    )


def fill(records: SqlAssetRecords, seed: int) -> dict[int, list[Asset]]:
    rng = random.Random(seed)
    parts: dict[Component, Blob] = {c: Blob(f"p{c}", "0" * 64, 1) for c in MODEL_COMPONENTS}
    base = Asset(
        new_asset_id(), COMMONS, COMMONS, BASE_NAME, "checkpoint", 0.0, status="ready",
        visibility="public", parts=parts, report={"fits": "model"},
    )  # fmt: skip
    records.add(base)
    made: dict[int, list[Asset]] = {}
    for size in SIZES:
        tenant = f"tenant-{size}"
        indices = track(range(size), f"{size} assets", transient=True)
        made[size] = [records.add(asset_of(tenant, index, rng)) for index in indices]
    return made


def operations(
    library: Library, made: Mapping[int, Sequence[Asset]], rng: random.Random
) -> dict[str, Callable[[int], object]]:
    """Return operations by name. Each takes the tenant's size and picks random arguments."""

    def principal(size: int) -> Principal:
        return Principal(f"tenant-{size}", f"tenant-{size}")

    def random_asset(size: int) -> Asset:
        return rng.choice(made[size])

    def list_after_any(size: int) -> object:
        return library.list(principal(size), Query(after=random_asset(size).id, limit=100))

    return {
        "list, first 100": lambda size: library.list(principal(size), Query(limit=100)),
        "list, 100 after any": list_after_any,
        "search two words, first 20": lambda size: library.list(
            principal(size), Query(text=" ".join(rng.sample(_WORDS, 2)), limit=PAGE)
        ),
        "search a tag, first 20": lambda size: library.list(
            principal(size), Query(tags=[rng.choice(_WORDS)], limit=PAGE)
        ),
        "get by name": lambda size: library.get(principal(size), random_asset(size).name),
        "resolve four LoRAs by name": lambda size: library.resolve(
            principal(size),
            AssetSelection(loras={random_asset(size).name: 1.0 for _ in range(4)}),
        ),
    }


def measure(database_url: str | None, rounds: int, seed: int) -> Document:
    with TemporaryDirectory(prefix="library-") as temporary:
        folder = Path(temporary)
        engine = open_database(database_url or f"sqlite:///{folder}/library.db")
        records, blobs = SqlAssetRecords(engine), SqlBlobRecords(engine)
        made = fill(records, seed)
        library = Library(records, blobs, FsspecStore(f"file://{folder}/store"))
        rng = random.Random(seed)
        spent: dict[tuple[str, int], list[float]] = {}
        for _ in track(range(rounds), "rounds", transient=True):
            for name, call in operations(library, made, rng).items():
                for size in rng.sample(SIZES, len(SIZES)):
                    started = time.perf_counter()
                    call(size)
                    spent.setdefault((name, size), []).append(time.perf_counter() - started)
        dialect = engine.dialect.name
        engine.dispose()
    rows = [
        OperationFigures(
            name, size, statistics.median(times) * 1e3, statistics.quantiles(times, n=100)[98] * 1e3
        )
        for (name, size), times in sorted(spent.items())
    ]
    medians = {(row.operation, row.assets): row.p50 for row in rows}
    ratios = {
        name: medians[name, SIZES[1]] / medians[name, SIZES[0]]
        for name in operations(library, made, rng)
    }
    return {
        "rows": [asdict(row) for row in rows],
        "ratios": ratios,
        "database": dialect,
        "rounds": rounds,
        "machine": {"cpu": platform.processor() or platform.machine()},
    }


def table(result: Document) -> str:
    lines = [
        "| operation | 100 assets, p50 / p99 ms | 10,000 assets, p50 / p99 ms | ratio of p50 |",
        "|---|---|---|---|",
    ]
    rows = {(row["operation"], row["assets"]): row for row in result["rows"]}
    for name, ratio in result["ratios"].items():
        few, many = (rows[name, size] for size in SIZES)
        cells = " | ".join(f"{row['p50']:.2f} / {row['p99']:.2f}" for row in (few, many))
        lines.append(f"| {name} | {cells} | {ratio:.2f} × |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="default: SQLite in a private folder")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.database, options.rounds, options.seed)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else table(result))
    if max(result["ratios"].values()) > 3.0:
        raise SystemExit("an operation takes more than three times as long with 10,000 assets")


if __name__ == "__main__":
    main()
