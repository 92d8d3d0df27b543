"""The one question that every verb asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from assets.asset import Asset
from assets.errors import Forbidden
from assets.principal import Principal, Role

Verb = Literal["read", "use", "create", "update", "delete", "restore"]

#: What each role may do where its tenant may.
_VERBS: Mapping[Role, frozenset[Verb]] = {
    "reader": frozenset({"read"}),
    "member": frozenset({"read", "use", "create", "update"}),
    "owner": frozenset({"read", "use", "create", "update", "delete", "restore"}),
}


def require(principal: Principal, verb: Verb) -> None:
    """Raises Forbidden when the key's role does not allow ``verb`` on anything. Asked before
    anything is looked up, so the answer tells nothing of what there is."""
    if verb not in _VERBS[principal.role]:
        raise Forbidden(principal.role, verb)


def may(principal: Principal, verb: Verb, asset: Asset) -> bool:
    """Whether ``principal`` may do ``verb`` to ``asset``. Pure; asked on every request.

    An owner may do everything to its own live assets; everybody may read and use
    a public one that is ready. To a deleted one its owner may do one thing: restore it.
    """
    if verb not in _VERBS[principal.role]:
        return False
    is_own = asset.tenant_id == principal.tenant_id
    if asset.status == "deleted" or asset.deleted_at_s is not None:
        return is_own and verb == "restore"
    if is_own:
        return verb != "restore"
    return asset.is_public and asset.status == "ready" and verb in ("read", "use")
