"""The operator's commands on the database: tenants, plans, members, keys and pins."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from assets.plan import Plan
from assets.principal import KeyRole
from assets.storage.private_folder import keep_private
from router.pool import pool_names
from serving.cli.options import AsJson, DataDir, settings_with
from serving.cli.output import clear_errors, show, show_one
from serving.errors import InvalidRequest

tenants = typer.Typer(help="Tenants (operator; works on the database).", no_args_is_help=True)
plans = typer.Typer(help="Service plans (operator; works on the database).", no_args_is_help=True)
members = typer.Typer(help="Members (operator; works on the database).", no_args_is_help=True)
keys = typer.Typer(help="API keys (operator; works on the database).", no_args_is_help=True)
pins = typer.Typer(help="Pinned assets (operator; works on the database).", no_args_is_help=True)
GROUPS = {"tenants": tenants, "plans": plans, "members": members, "keys": keys, "pins": pins}


def _backends(data_dir: Path | None) -> Any:
    from serving.bootstrap.backends import open_backends

    keep_private()
    return open_backends(settings_with(data_dir=data_dir))


@tenants.command("create")
def create_tenant(
    name: str,
    weight: Annotated[float, typer.Option(help="Queue share, times the plan's weight.")] = 1.0,
    plan: Annotated[str | None, typer.Option(help="Default: no limits.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create a tenant (organisation)."""
    with clear_errors():
        tenant = _backends(data_dir).directory.add_tenant(name, weight, plan)
        show_one(asdict(tenant), f"tenant {tenant.name} ({tenant.id})", as_json)


@tenants.command("list")
def list_tenants(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    with clear_errors():
        rows = [asdict(tenant) for tenant in _backends(data_dir).directory.tenants()]
        show(rows, ("name", "plan", "weight", "id"), as_json)


@tenants.command("plan")
def set_plan(tenant: str, plan: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Change a tenant's plan; "unlimited" removes limits."""
    with clear_errors():
        _backends(data_dir).directory.set_plan(tenant, plan)
        show_one({"tenant": tenant, "plan": plan}, f"{tenant} is on plan {plan}", as_json)


@tenants.command("gpu")
def set_gpu(tenant: str, gpu: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Set the default GPU pool of a tenant's requests; "any" means the first pool."""
    with clear_errors():
        names = pool_names(settings_with(data_dir=data_dir).resolved_pools)
        if gpu != "any" and gpu not in names:
            raise InvalidRequest("gpu", f"no pool {gpu!r}; choose from {', '.join(names)}")
        name = None if gpu == "any" else names[gpu]
        _backends(data_dir).directory.set_gpu(tenant, name)
        show_one({"tenant": tenant, "gpu": name}, f"{tenant} uses {name or 'any GPU'}", as_json)


@tenants.command("image-metadata")
def set_image_metadata(
    tenant: str, wanted: bool, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Write the parameters of a tenant's images into them: true or false."""
    with clear_errors():
        _backends(data_dir).directory.set_image_metadata(tenant, wanted=wanted)
        done = "have metadata" if wanted else "have no metadata"
        show_one(
            {"tenant": tenant, "image_metadata": wanted}, f"images of {tenant} {done}", as_json
        )


@tenants.command("usage")
def tenant_usage(tenant: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show this month's budget and the ledger's totals."""
    with clear_errors():
        backends = _backends(data_dir)
        principal = backends.directory.keyring.principal_of_tenant(tenant)
        budget = asdict(backends.meter.ledger.budget(principal.tenant_id))
        row = {**budget, **backends.meter.ledger.totals(principal.tenant_id)}
        show([row], tuple(row), as_json)


@tenants.command("audit")
def tenant_audit(
    tenant: str, limit: int = 50, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """List the audit log of administrative actions, newest first."""
    with clear_errors():
        backends = _backends(data_dir)
        principal = backends.directory.keyring.principal_of_tenant(tenant)
        rows = [asdict(act) for act in backends.audit.acts(principal.tenant_id, limit)]
        show(rows, ("at_s", "actor", "act", "subject", "details"), as_json)


def reconcile(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Reconcile records with stored objects now, as a running platform does periodically."""
    with clear_errors():
        counts = _backends(data_dir).reconciler.run()
        rows = [{"deed": deed, "count": count} for deed, count in counts.items()]
        show(rows, ("deed", "count"), as_json)
        if counts.get("failed"):
            raise typer.Exit(1)  # the log says why


@pins.command("add")
def add_pin(asset: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Pin an asset (id or OWNER:NAME) in the tiers of every node that has it."""
    with clear_errors():
        pinned = _backends(data_dir).pins.add(asset)
        text = f"{pinned.owner}:{pinned.reference} is pinned on running nodes within a minute"
        show_one({"id": pinned.id, "pinned": True}, text, as_json)


@pins.command("remove")
def remove_pin(asset: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Let an asset be evicted again."""
    with clear_errors():
        found = _backends(data_dir).pins.remove(asset)
        text = f"{found.owner}:{found.reference} is not pinned any more"
        show_one({"id": found.id, "pinned": False}, text, as_json)


@pins.command("list")
def list_pins(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    with clear_errors():
        rows = [
            {"id": a.id, "owner": a.owner, "name": a.reference, "kind": a.kind,
             "size_bytes": sum(blob.size_bytes for blob in a.parts.values())}
            for a in _backends(data_dir).pins.list()
        ]  # fmt: skip
        show(rows, ("owner", "name", "kind", "size_bytes", "id"), as_json)


@plans.command("put")
def put_plan(
    name: str,
    weight: Annotated[float, typer.Option(help="Share of the queue.")] = 1.0,
    requests_per_min: int | None = None,
    concurrent_pictures: int | None = None,
    storage_gb: Annotated[float | None, typer.Option(help="In 10^9 bytes.")] = None,
    assets: Annotated[int | None, typer.Option(help="Number of assets.")] = None,
    gpu_seconds: Annotated[float | None, typer.Option(help="Per calendar month (UTC).")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create or replace a plan; omitted limits mean no limit."""
    storage_bytes = None if storage_gb is None else int(storage_gb * 1e9)
    plan = Plan(
        name, weight, requests_per_min, concurrent_pictures, storage_bytes, assets, gpu_seconds
    )
    with clear_errors():
        _backends(data_dir).directory.put_plan(plan)
        show_one(asdict(plan), f"plan {name} saved", as_json)


@plans.command("list")
def list_plans(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    with clear_errors():
        rows = [asdict(plan) for plan in _backends(data_dir).directory.plans()]
        show(rows, tuple(Plan.__dataclass_fields__), as_json)


@members.command("add")
def add_member(
    tenant: str,
    name: str,
    role: Annotated[str, typer.Option(help="reader, member or owner.")] = "member",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add a member, whose role limits their keys."""
    with clear_errors():
        member = _backends(data_dir).directory.add_member(tenant, name, cast(KeyRole, role))
        show_one(asdict(member), f"{name} is a {role} of {tenant}", as_json)


@members.command("list")
def list_members(tenant: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    with clear_errors():
        rows = [asdict(member) for member in _backends(data_dir).directory.members(tenant)]
        show(rows, ("name", "role", "id"), as_json)


@members.command("remove")
def remove_member(
    tenant: str, name: str, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Remove a member and revoke their keys."""
    with clear_errors():
        _backends(data_dir).directory.remove_member(tenant, name)
        show_one({"name": name, "removed": True}, f"{name} removed", as_json)


@keys.command("create")
def create_key(
    tenant: str,
    label: str = "",
    role: Annotated[str, typer.Option(help="reader, member or owner.")] = "owner",
    expires_days: Annotated[float | None, typer.Option(help="Default: never.")] = None,
    member: Annotated[str | None, typer.Option(help="Default: the organisation's own key.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it; it cannot be shown again."""
    with clear_errors():
        expires_at_s = None if expires_days is None else time.time() + expires_days * 86400
        key = _backends(data_dir).directory.keyring.add_key(
            tenant, label, cast(KeyRole, role), expires_at_s, member
        )
        show_one({"id": key.id, "tenant": tenant, "key": key.text}, key.text, as_json)


@keys.command("rotate")
def rotate_key(
    key_id: str,
    overlap_hours: Annotated[float, typer.Option(help="How long the old key still works.")] = 24.0,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create a key with the same rights; the old key expires after the overlap."""
    with clear_errors():
        key = _backends(data_dir).directory.keyring.rotate_key(key_id, overlap_hours * 3600)
        show_one({"id": key.id, "replaces": key_id, "key": key.text}, key.text, as_json)


@keys.command("list")
def list_keys(tenant: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    with clear_errors():
        rows = [asdict(key) for key in _backends(data_dir).directory.keyring.keys(tenant)]
        show(
            rows,
            ("id", "label", "member", "role", "created_at_s", "expires_at_s", "revoked_at_s"),
            as_json,
        )


@keys.command("revoke")
def revoke_key(key_id: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Revoke a key; every gateway refuses it within seconds."""
    with clear_errors():
        _backends(data_dir).directory.keyring.revoke_key(key_id)
        show_one({"id": key_id, "revoked": True}, f"key {key_id} revoked", as_json)
