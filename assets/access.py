"""Authorization: which principal may do what to which asset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from assets.asset import Asset
from assets.errors import Forbidden
from assets.principal import Principal, Role

#: ``read``: public fields; ``inspect``: ingest report, training metadata; ``download``: bytes;
#: ``share``: visibility.
Verb = Literal[
    "read", "inspect", "download", "use", "create", "update", "share", "delete", "restore"
]

_LOOKS: frozenset[Verb] = frozenset({"read", "inspect", "download"})
_WORKS: frozenset[Verb] = _LOOKS | {"use", "create", "update"}

#: On its own tenant's assets.
_VERBS: Mapping[Role, frozenset[Verb]] = {
    "anonymous": frozenset({"use"}),
    "reader": _LOOKS,
    "member": _WORKS,
    "owner": _WORKS | {"share", "delete", "restore"},
}
#: Other tenants cannot download shared weights.
_WITH_PUBLIC: frozenset[Verb] = frozenset({"read", "use", "download"})
_WITH_SHARED: frozenset[Verb] = frozenset({"read", "use"})


def require(principal: Principal, verb: Verb) -> None:
    """Raise Forbidden when the role allows ``verb`` on no asset. Called before lookups, to reveal
    none."""
    if verb not in _VERBS[principal.role]:
        raise Forbidden(principal.role, f"{verb} assets")


def require_owner(principal: Principal) -> None:
    """Raise Forbidden unless the principal may administer its organisation."""
    if principal.role != "owner":
        raise Forbidden(principal.role, "administer its organisation")


def may(principal: Principal, verb: Verb, asset: Asset) -> bool:
    """Return whether ``principal`` may do ``verb`` to ``asset``. Pure; called on every request.

    Only creator and owners reach a private asset; a deleted one can only be restored. Other tenants
    reach ready public or shared assets, anonymous requests public ones.
    """
    if verb not in _VERBS[principal.role]:
        return False
    if asset.tenant_id == principal.tenant_id and principal.role != "anonymous":
        if (
            asset.visibility == "private"
            and principal.role != "owner"
            and principal.member_id != asset.created_by
        ):
            return False
        return (verb == "restore") == asset.is_deleted
    if asset.is_deleted or asset.status != "ready":
        return False
    if asset.visibility == "public":
        return verb in _WITH_PUBLIC
    return (
        asset.visibility == "shared"
        and principal.role != "anonymous"
        and principal.tenant_name in asset.shared_with
        and verb in _WITH_SHARED
    )
