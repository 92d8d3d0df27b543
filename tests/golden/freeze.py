"""Freeze every name and value that outlives a process: stored, sent, logged, configured or typed.

``python -m tests.golden.freeze`` adds entries to ``frozen.json`` and never changes old ones.
Functions and classes can be renamed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from inspect import iscoroutinefunction, isfunction
from pathlib import Path
from typing import Any, BinaryIO, get_args

import typer
from fastapi import FastAPI
from sqlalchemy import inspect

from assets.content import Blob, Component, content_key, original_key, tenant_salt
from assets.families.sdxl import schema_of
from assets.prediction import Prediction
from assets.sql.base import connect
from assets.storage.object_paths import (
    blob_key,
    image_key,
    model_key,
    part_key,
    preview_key,
    result_key,
    stored_blob_key,
    upload_key,
)
from assets.storage.signing import Signer
from orchestrator.file_tier import FileTier
from serving.api.errors import TABLE
from serving.bootstrap.database import upgrade
from serving.cli.main import app as command_line
from serving.cluster.dispatcher_actor import DispatcherActor
from serving.cluster.ingest_actor import IngestActor
from serving.logs import FIELDS
from serving.miniature.model import MINIATURE_CONFIGS, identity
from serving.settings import Settings
from serving.tenants.keys import digest

FROZEN = Path(__file__).parent / "frozen.json"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_SECRET = b"a secret of tests"
_SHA256 = "5" * 64


def content_keys() -> dict[str, str]:
    salt = tenant_salt(_SECRET, "tenant")
    keys = {
        f"{'private' if owner else 'public'} {component} {prediction}": content_key(
            _SHA256, component, "f" * 40, owner, prediction
        )
        for component in get_args(Component)
        for owner in (None, salt)
        for prediction in get_args(Prediction)
    }
    return keys | {"original": original_key(_SHA256, salt), "salt": salt.hex()}


def fingerprints() -> dict[str, str]:
    return {
        "miniature": schema_of(MINIATURE_CONFIGS).digest,
        "miniature's weights": identity(),
    }


def object_paths() -> dict[str, str]:
    return {
        "upload": upload_key("asset_1"),
        "part": part_key("uploads/asset_1", "u", 7),
        "public blob": blob_key(Blob("p" + "1" * 40, _SHA256, 1)),
        "private blob": stored_blob_key("t" + "1" * 40),
        "original": stored_blob_key("o" + "1" * 40),
        "compiled": stored_blob_key("c" + "1" * 40),
        "model": model_key("name"),
        "preview": preview_key("asset_1", _SHA256),
        "image": image_key("id"),
        "result": result_key("job_1"),
    }


def signatures() -> dict[str, str]:
    signer = Signer(_SECRET)
    return {
        "url": signer.sign("GET", "blobs/p11/p1", 1_700_000_000),
        "derived": signer.derived("job", "tenant", "key"),
        "api key": digest("ao_short_long"),
    }


def tier_files() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tier = FileTier("disk", root, 100)
        blob = Blob("key", "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", 1)

        def fill(file: BinaryIO) -> None:
            file.write(b"x")

        tier.admit(blob, fill, "tenant")[0].release()
        tier.pins.add("key")
        return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def tables() -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        engine = connect(f"sqlite:///{folder}/platform.db")
        upgrade(engine)
        inspector = inspect(engine)
        columns = {
            table: sorted(column["name"] for column in inspector.get_columns(table))
            for table in inspector.get_table_names()
        }
        engine.dispose()
        return columns


def error_codes() -> dict[str, int]:
    return {f"{code} {status}": status for _, status, code in TABLE}


def metrics() -> dict[str, list[str]]:
    from serving.api.metrics import REQUESTS, SECONDS
    from tests.serving.pool.test_metrics import STATUS, pool_metrics, status

    families = [
        *pool_metrics("a").families(STATUS, status("a")),
        *REQUESTS.collect(),
        *SECONDS.collect(),
    ]
    return {
        family.name: sorted({label for sample in family.samples for label in sample.labels})
        for family in families
    }


def wire(app: FastAPI) -> dict[str, Any]:
    """OpenAPI routes with parameters, and fields with allowed values."""
    document = app.openapi()
    routes = {
        f"{method.upper()} {path}": sorted(
            f"{parameter['in']} {parameter['name']}" for parameter in route.get("parameters", [])
        )
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    }
    # Clients never see model names.
    fields = {
        f"{name} {choice}".strip()
        for schema in document["components"]["schemas"].values()
        for name, field in schema.get("properties", {}).items()
        for choice in ["", *_choices(field)]
    }
    return {"routes": routes, "fields": sorted(fields)}


def _choices(field: Mapping[str, Any]) -> Iterator[str]:
    yield from (str(choice) for choice in field.get("enum", []))
    if "const" in field:
        yield str(field["const"])
    for part in [*field.get("anyOf", []), *filter(None, [field.get("items")])]:
        yield from _choices(part)


def commands() -> dict[str, list[str]]:
    def walk(command: Any, path: str) -> Iterator[tuple[str, list[str]]]:
        children = getattr(command, "commands", {})
        for name, child in children.items():
            yield from walk(child, f"{path} {name}".strip())
        if not children:
            options = [name for parameter in command.params for name in parameter.opts]
            yield path, sorted(options)

    return dict(walk(typer.main.get_command(command_line), ""))


def variables() -> list[str]:
    return sorted(f"AO_{name.upper()}" for name in Settings.model_fields)


def actor_methods() -> dict[str, str]:
    """Ray restarts an actor with the wrappers of its methods, by name, that an earlier build
    pickled. A wrapper of a coroutine stays one."""
    return {
        f"{actor.__name__}.{name}": "coroutine" if iscoroutinefunction(method) else "function"
        for actor in (DispatcherActor, IngestActor)
        for name, method in vars(actor).items()
        if isfunction(method)
    }


def result_keys() -> dict[str, list[str]]:
    def walk(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for name, child in value.items():
                yield f"{path}{name}"
                yield from walk(child, f"{path}{name}.")
        elif isinstance(value, list):
            for child in value:
                yield from walk(child, path)

    return {
        path.name: sorted(set(walk(json.loads(path.read_text()), "")))
        for path in sorted(RESULTS.glob("*.json"))
    }


def frozen(app: FastAPI) -> dict[str, Any]:
    return {
        "content keys": content_keys(),
        "fingerprints": fingerprints(),
        "object paths": object_paths(),
        "signatures": signatures(),
        "files of a tier": tier_files(),
        "tables": tables(),
        "error codes": error_codes(),
        "metrics": metrics(),
        "log keys": sorted(FIELDS),
        "wire": wire(app),
        "commands": commands(),
        "variables": variables(),
        "methods of actors": actor_methods(),
        "keys of results": result_keys(),
    }


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield what of ``before`` is missing or changed."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name, value in before.items():
            if name in now:
                yield from differences(value, now[name], f"{path} / {name}")
            else:
                yield f"{path} / {name} is gone"
    elif isinstance(before, list) and isinstance(now, list):
        yield from (f"{path} / {value} is gone" for value in before if value not in now)
    elif before != now:
        yield f"{path} was {before!r} and is {now!r}"


def _merged(before: Any, now: Any) -> Any:
    if isinstance(before, dict):
        return {name: _merged(before[name], value) if name in before else value
                for name, value in now.items()}  # fmt: skip
    if isinstance(before, list):
        return sorted({*before, *now})
    return before


def main() -> None:
    import asyncio

    from tests.support.api_app import serving_api

    async def now() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            async with serving_api(Path(folder)) as made:
                return frozen(made.app)

    current = asyncio.run(now())
    if FROZEN.exists():
        before = json.loads(FROZEN.read_text())
        changes = list(differences(before, current))
        if changes:
            sys.exit("frozen names or values have changed:\n" + "\n".join(changes))
        current = _merged(before, current)
    FROZEN.write_text(json.dumps(current, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
