"""Unit tests of sizes, seeds, keys, jobs, settings and migrations."""

from __future__ import annotations

import json
import pickle
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from assets.errors import Forbidden
from assets.library.records import Query
from assets.plan import Plan
from assets.principal import Principal
from assets.sql.base import connect
from assets.sql.blobs import SqlBlobRecords
from assets.sql.clock import clock_of
from assets.sql.records import SqlAssetRecords
from serving.api.errors import describe
from serving.bootstrap.database import open_database, upgrade
from serving.errors import (
    AssetFault,
    InvalidRequest,
    NotFinite,
    OutOfMemory,
    Quarantined,
    Refused,
    Unauthenticated,
    UnexpectedEngineError,
)
from serving.generation.service import fixed_seeds
from serving.generation.sizes import WIRE_SIZES, image_size
from serving.jobs.store import CLAIM_S, KEPT_S, Job, JobStore
from serving.settings import Settings
from serving.tenants.directory import Directory
from serving.tenants.keys import new_key
from serving.tenants.meter import Charge, Meter, Settlement


def test_image_sizes() -> None:
    assert image_size(None, None, 128).width == 128
    assert image_size(None, None, 1024).scaled is False
    for width, height in WIRE_SIZES:
        native = image_size(width, height, 1024)
        assert (native.width, native.height, native.scaled) == (width, height, False)
        small = image_size(width, height, 128)
        assert small.scaled
        assert (small.width * 8, small.height * 8) == (width, height)
    refused: tuple[tuple[int | None, int | None], ...] = ((512, 512), (1024, None), (None, 1024))
    for wide, high in refused:
        with pytest.raises(InvalidRequest):
            image_size(wide, high, 1024)


def test_fixed_seeds() -> None:
    assert fixed_seeds(5, 3) == (5, 6, 7)
    assert fixed_seeds(2**32 - 1, 2) == (2**32 - 1, 0)
    seeds = fixed_seeds([1, None], 3)
    assert seeds[0] == 1
    assert len(seeds) == 3
    assert len(set(fixed_seeds(None, 16))) == 16


def test_keys_are_hashed_found_and_revoked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    directory = Directory(open_database(url))
    tenant = directory.add_tenant("acme", weight=2.0)
    key = directory.keyring.add_key("acme", "laptop")
    assert directory.keyring.authenticate(key.text) == Principal(tenant.id, "acme", 2.0, key.id)
    for path in tmp_path.iterdir():
        assert key.text.encode() not in path.read_bytes()
    directory.keyring.revoke_key(key.id)
    for text in (key.text, None, "", "ao_x", f"ao_{key.id}_wrong", "sk-else"):
        with pytest.raises(Unauthenticated):
            directory.keyring.authenticate(text)
    for name in ("acme", "commons", "octoai", "No", "a" * 80):
        with pytest.raises(InvalidRequest):
            directory.add_tenant(name)


ACME = Principal("t", "acme")


def jobs_of(url: str, now: Callable[[], float] = time.time) -> JobStore:
    engine = open_database(url)
    return JobStore(engine, Meter(engine, SqlBlobRecords(engine), now), now)


def spent(job: Job) -> Settlement:
    return Settlement(Charge(job.id, ACME, 1.0), 1.0, 1)


def test_a_failed_job_is_retried_on_request(tmp_path: Path) -> None:
    now = [1000.0]
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db", lambda: now[0])
    job = jobs.add(ACME, {}, "job_x", "digest")
    assert jobs.claim("w") is not None
    assert jobs.fail(job.id, "w", {"status": 503, "body": {}})
    now[0] += KEPT_S + 1
    assert jobs.expired() == [job.id]
    retried = jobs.again(job.id, ACME, 1.0)
    assert retried is not None
    assert (retried.status, retried.error) == ("pending", None)
    jobs.forget(job.id)  # by a sweep that saw it expired before the retry; it keeps the job
    assert jobs.get(job.id) is not None
    assert jobs.claim("w") is not None


def test_an_expired_idempotency_key_is_charged_again(tmp_path: Path) -> None:
    now = [1000.0]
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db", lambda: now[0])
    for _ in range(2):
        job = jobs.add(ACME, {}, "job_key", "digest")
        assert jobs.claim("w") is not None
        assert jobs.finish(job.id, "w", Settlement(Charge(job.charge_id, ACME, 1.0), 1.0, 1))
        now[0] += KEPT_S + 1
        jobs.forget(job.id)
    assert jobs._meter.totals(ACME.tenant_id)["pictures"] == 2


def test_concurrent_retries_reserve_the_budget_once(tmp_path: Path) -> None:
    principal = replace(ACME, plan=Plan("p", gpu_s_per_month=100.0))
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db")
    jobs._meter.settle(Settlement(Charge("before", principal, 1.0), 1.0, 1))
    job = jobs.add(principal, {}, "job_key", "digest", work=5.0)
    assert jobs.claim("w") is not None
    assert jobs.fail(job.id, "w", {"status": 503, "body": {}})
    for _ in range(2):
        retried = jobs.again(job.id, principal, 5.0)
    assert retried is not None
    assert jobs._meter.budget("t").reserved_gpu_s == 5.0
    assert jobs.claim("w") is not None
    assert jobs.finish(job.id, "w", Settlement(Charge(retried.charge_id, principal, 5.0), 5.0, 1))
    assert jobs.again(job.id, principal, 5.0) is not None  # no effect on a completed job
    assert jobs._meter.budget("t").reserved_gpu_s == 0.0
    jobs._meter.check_integrity()


def test_keys_expire_and_are_rotated_with_an_overlap(tmp_path: Path) -> None:
    now = [1000.0]
    directory = Directory(open_database(f"sqlite:///{tmp_path}/t.db"), now=lambda: now[0])
    directory.add_tenant("acme")
    old = directory.keyring.add_key("acme", "ci", "reader", expires_at_s=5000.0)
    assert directory.keyring.authenticate(old.text).role == "reader"
    new = directory.keyring.rotate_key(old.id, overlap_s=100.0)
    for key in (old, new):
        assert directory.keyring.authenticate(key.text).role == "reader"
    now[0] = 1100.0
    directory.keyring._known.clear()  # this cache expires within seconds
    with pytest.raises(Unauthenticated, match="expired"):
        directory.keyring.authenticate(old.text)
    assert directory.keyring.authenticate(new.text).key_id == new.id
    with pytest.raises(InvalidRequest, match="no live key"):
        directory.keyring.rotate_key(old.id, 1.0)
    now[0] = 5000.0
    directory.keyring._known.clear()
    with pytest.raises(Unauthenticated):
        directory.keyring.authenticate(new.text)
    refused: tuple[dict[str, Any], ...] = ({"role": "king"}, {"expires_at_s": 4999.0})
    for changes in refused:
        with pytest.raises(InvalidRequest):
            directory.keyring.add_key("acme", **changes)
    listed = {key.id: (key.role, key.expires_at_s) for key in directory.keyring.keys("acme")}
    assert listed == {old.id: ("reader", 1100.0), new.id: ("reader", 5000.0)}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFinite("the LoRA {assets} is wild", ("k",)), 422, "not_finite"),
        (Quarantined("{assets} is refused", ("k",)), 422, "quarantined"),
        (Forbidden("reader", "delete"), 403, "forbidden"),
        (UnexpectedEngineError("odd"), 500, "drawing_failed"),
        (OutOfMemory("full"), 503, "out_of_memory"),
    ],
)
def test_failures_cross_processes_and_become_http(error: Exception, status: int, code: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
    assert describe(copy)[0] == status
    assert describe(copy)[1]["code"] == code
    if isinstance(copy, AssetFault):
        assert str(copy.named({"k": "mine"})) == str(error).replace("k is", "'mine' is")


def test_a_database_of_an_earlier_release_is_migrated(tmp_path: Path) -> None:
    """The migration keeps its data."""
    url = f"sqlite:///{tmp_path}/old.db"
    engine = connect(url)
    upgrade(engine, "0001")
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO jobs VALUES ('job_old', 't', 'acme', 1.0, 'pending', "
                "'{\"prompt\": 1}', NULL, NULL, 0.0, 5.0, NULL)"
            )
        )
        connection.execute(sa.text("INSERT INTO tenants VALUES ('t', 'acme', 2.0, 1.0)"))
        key = new_key()
        connection.execute(
            sa.text("INSERT INTO api_keys VALUES (:id, 't', :digest, 'laptop', 1.0, NULL)"),
            {"id": key.id, "digest": key.digest},
        )
        for asset_id, public, parts, deleted in (
            ("asset_1", 0, {"lora": ["k1", "s", 5]}, 2.0),
            ("asset_2", 1, {"lora": ["k2", "s", 6]}, None),
        ):
            connection.execute(
                sa.text(
                    "INSERT INTO assets VALUES (:id, 't', 'acme', 'style', 'lora', 1, 1, 'ready', "
                    "'', '', :public, 6, '{}', :parts, '{}', :deleted)"
                ),
                {"id": asset_id, "public": public, "parts": json.dumps(parts), "deleted": deleted},
            )
    engine.dispose()
    records, blobs = SqlAssetRecords(open_database(url)), SqlBlobRecords(open_database(url))
    first, second = records.get("asset_1"), records.get("asset_2")
    assert first is not None
    assert second is not None
    assert (first.version, first.visibility, first.is_deleted) == (1, "organisation", True)
    assert (second.version, second.visibility, second.is_deleted) == (2, "public", False)
    assert blobs.live(["k1", "k2"]) == {"k2"}
    assert records.list(Query(text="sty")).total == 1
    principal = Directory(open_database(url)).keyring.authenticate(key.text)
    assert principal == Principal("t", "acme", 2.0, key.id, "owner")
    assert blobs.stored_bytes("t") == 11  # includes the deleted asset, which can be restored
    jobs = jobs_of(url)
    old = jobs.get("job_old")
    assert old is not None
    assert (old.request, old.body_digest, old.status) == ({"prompt": 1}, None, "pending")
    assert jobs.add(ACME, {}, "job_new", "digest").body_digest == "digest"
    assert jobs.add(ACME, {"other": 1}, "job_new", "more").body_digest == "digest"


def test_a_job_is_claimed_by_one_worker_and_finished_once(tmp_path: Path) -> None:
    now = [1000.0]
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db", lambda: now[0])
    job = jobs.add(ACME, {"prompt": "x", "seed": [1]})
    job_id = job.id
    claimed = jobs.claim("w1")
    assert claimed is not None
    assert claimed.request == {"prompt": "x", "seed": [1]}
    assert jobs.claim("w2") is None
    now[0] += CLAIM_S - 1
    assert jobs.renew(job_id, "w1")
    now[0] += CLAIM_S - 1
    assert jobs.claim("w2") is None
    now[0] += 2
    assert jobs.claim("w2") is not None  # w1's claim expired
    assert not jobs.renew(job_id, "w1")
    assert not jobs.finish(job_id, "w1", spent(job))
    assert jobs.finish(job_id, "w2", spent(job))
    assert not jobs.finish(job_id, "w2", spent(job))
    done = jobs.get(job_id)
    assert done is not None
    assert done.status == "completed"
    now[0] += 25 * 3600
    assert jobs.expired() == [job_id]
    jobs.forget(job_id)
    assert jobs.expired() == []
    assert jobs.get(job_id) is None


def test_a_tenants_backlog_of_jobs_does_not_delay_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db")
    heavy, light = Principal("many", "many"), Principal("one", "one")
    backlog = [jobs.add(heavy, {}).id for _ in range(5)]
    light_id = jobs.add(light, {}).id
    first, second = jobs.claim("w"), jobs.claim("w")
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == (backlog[0], light_id)
    assert jobs.put_back(light_id, "w", 0.0, 1)
    returned = jobs.get(light_id)
    assert returned is not None
    assert (returned.status, returned.failures) == ("pending", 1)
    monkeypatch.setattr("serving.jobs.store.MAX_UNFINISHED", 5)
    with pytest.raises(Refused):
        jobs.add(heavy, {})
    jobs.add(light, {})


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        _ = Settings(data_dir=tmp_path, secret="short").secret_bytes
    (tmp_path / "secret").touch()
    with pytest.raises(ValueError, match="shorter"):
        _ = Settings(data_dir=tmp_path).secret_bytes


def test_settings_round_trip_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        data_dir=tmp_path, replicas=3, store_options={"key": "k"}, open_tenant="demo", port=81
    )
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert settings.secret_bytes == Settings().secret_bytes
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_results_are_kept_as_long_as_configured(tmp_path: Path) -> None:
    now = [1000.0]
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    clock = lambda: now[0]  # noqa: E731
    jobs = JobStore(engine, Meter(engine, SqlBlobRecords(engine), clock), clock, kept_s=60.0)
    job = jobs.add(ACME, {}, "job_x")
    assert jobs.claim("w") is not None
    assert jobs.finish(job.id, "w", spent(job))
    now[0] += 59
    assert jobs.expired() == []
    now[0] += 2
    assert jobs.expired() == [job.id]


def test_clock_skew_does_not_take_over_claims(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims use PostgreSQL's clock, which all machines share. With SQLite there is one machine."""

    def open_jobs() -> JobStore:
        clock = clock_of(database)
        meter = Meter(database, SqlBlobRecords(database), clock)
        return JobStore(database, meter, clock, kept_s=600.0)

    def claimed_by(jobs: JobStore, worker: str) -> set[str]:
        """Claim everything, because the database also has other tests' jobs."""
        claims = iter(lambda: jobs.claim(worker), None)
        return {job.id for job in claims if job is not None}

    exact = open_jobs()
    job = exact.add(ACME, {}, f"job_{secrets.token_hex(8)}")
    assert job.id in claimed_by(exact, "right")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 900.0)
    ahead = open_jobs()
    stolen = claimed_by(ahead, "ahead")
    if database.dialect.name == "postgresql":
        assert job.id not in stolen
        assert not ahead.is_old(job)
        assert exact.finish(job.id, "right", spent(job))
    else:
        assert job.id in stolen


def test_database_errors_do_not_contain_the_parameters(database: Any) -> None:
    with pytest.raises(sa.exc.SQLAlchemyError) as failed, database.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO no_such_table VALUES (:prompt)"), {"prompt": "a secret heron"}
        )
    assert "heron" not in str(failed.value)
