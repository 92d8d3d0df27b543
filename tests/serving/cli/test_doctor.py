"""``doctor`` reports faults with remedies and leaves no files."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serving.cli import main
from serving.cli.doctor import examine
from serving.cli.finding import Finding
from serving.settings import PoolSettings, Settings

VERSIONS = Path(__file__).parents[3] / "serving" / "migrations" / "versions"


def findings_of(settings: Settings) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(settings)}


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(data_dir=folder, port=1, disk_bytes=1 << 20, host_bytes=1 << 20, **more)


def test_a_missing_data_folder_passes_and_is_not_created(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    findings = findings_of(settings(fresh))
    assert {f.what for f in findings.values() if f.state != "ok"} <= {"data folder"}
    assert not fresh.exists()


def test_an_existing_database_and_store_are_checked(tmp_path: Path) -> None:
    from serving.bootstrap.backends import open_backends

    here = settings(tmp_path)
    open_backends(here)
    (tmp_path / "store").mkdir(exist_ok=True)
    findings = findings_of(here)
    newest = max(path.name[:4] for path in VERSIONS.glob("0*.py"))
    assert f"schema {newest}" in findings["database"].found
    assert "written, read and deleted" in findings["store"].found
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_clock_skew_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    assert "clock" not in findings_of(settings(tmp_path))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 600.0)
    clock = findings_of(settings(tmp_path))["clock"]
    assert clock.state == "warn"
    seconds = re.fullmatch(r"this machine's is (\d+) s behind the store's", clock.found)
    assert seconds is not None
    assert 590 <= int(seconds[1]) <= 600


def test_each_fault_has_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        (tmp_path / "secret").write_text("s" * 64)
        (tmp_path / "secret").chmod(0o644)
        (tmp_path / "platform.db").write_text("no database at all, but long enough for a header")
        pools = {"a": PoolSettings(gpu="a10g", max=0)}
        findings = findings_of(
            Settings(data_dir=tmp_path, port=listener.getsockname()[1], pools=pools,
                     disk_bytes=1 << 60, host_bytes=1 << 20)
        )  # fmt: skip
    assert (findings["secret"].state, findings["secret"].remedy[:9]) == ("fail", "chmod 600")
    assert findings["database"].state == "fail"
    assert findings["pool a"].state == findings["disk tier"].state == "warn"
    assert (findings["pools"].state, findings["pools"].remedy[-13:]) == ("fail", "leave gpu out")
    assert findings["port"].state == "warn"
    assert findings["device"].state in ("ok", "fail")  # depends on a GPU


def test_the_command_fails_when_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AO_SECRET", "short")
    done = CliRunner().invoke(main.app, ["doctor", "--json", "--data-dir", str(tmp_path)])
    assert done.exit_code == 1
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert rows["secret"]["state"] == "fail"
    monkeypatch.setenv("AO_POOLS", '{"A B": {}}')
    done = CliRunner().invoke(main.app, ["doctor", "--data-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert "'A B' is not a valid name" in re.sub(r"[\s│]+", " ", done.output)
    assert "Traceback" not in done.output


def test_exposure_to_others_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    tier = tmp_path / "tier"
    tier.mkdir()
    tier.chmod(0o755)
    open_to_all = settings(
        data,
        disk_dir=tier,
        host="0.0.0.0",
        open_tenant="demo",
        import_schemes=("https", "http"),
        import_networks=("10.0.0.0/8",),
        store_options={"client_kwargs": {"endpoint_url": "http://minio:9000"}},
        database_url="postgresql+psycopg://u:p@10.0.0.1/x?connect_timeout=1",
    )
    findings = findings_of(open_to_all)
    for what, state in {
        "data folder's owner": "fail",
        "disk tier's owner": "warn",
        "address": "warn",
        "open tenant": "warn",
        "imports": "warn",
        "database's TLS": "warn",
        "store's TLS": "warn",
        "Ray's token": "fail",
    }.items():
        assert findings[what].state == state, what
        assert findings[what].remedy
