"""The one question that every verb asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from assets.asset import Asset
from assets.errors import Forbidden
from assets.principal import Principal, Role

#: ``read`` is what everybody sees of it, ``inspect`` its report and training metadata,
#: ``download`` its bytes; ``share`` is to say who else may see it.
Verb = Literal[
    "read", "inspect", "download", "use", "create", "update", "share", "delete", "restore"
]

_LOOKS: frozenset[Verb] = frozenset({"read", "inspect", "download"})
_WORKS: frozenset[Verb] = _LOOKS | {"use", "create", "update"}

#: What each role may do where its tenant may.
_VERBS: Mapping[Role, frozenset[Verb]] = {
    "anonymous": frozenset({"use"}),
    "reader": _LOOKS,
    "member": _WORKS,
    "owner": _WORKS | {"share", "delete", "restore"},
}
#: What others may do with what is not theirs: a shared asset's weights stay with its owner.
_WITH_PUBLIC: frozenset[Verb] = frozenset({"read", "use", "download"})
_WITH_SHARED: frozenset[Verb] = frozenset({"read", "use"})


def require(principal: Principal, verb: Verb) -> None:
    """Raises Forbidden when the key's role does not allow ``verb`` on anything. Asked before
    anything is looked up, so the answer tells nothing of what there is."""
    if verb not in _VERBS[principal.role]:
        raise Forbidden(principal.role, f"{verb} assets")


def require_owner(principal: Principal) -> None:
    """Raises Forbidden unless the key may administer its organisation."""
    if principal.role != "owner":
        raise Forbidden(principal.role, "administer its organisation")


def may(principal: Principal, verb: Verb, asset: Asset) -> bool:
    """Whether ``principal`` may do ``verb`` to ``asset``. Pure; asked on every request.

    An organisation does as its roles allow with its own live assets, except that a private
    one is its maker's and the owners' alone. Others reach what is ready and public, or shared
    with them. To a deleted asset its organisation may do one thing: restore it. Anonymous
    requests reach public assets only, their own tenant's included.
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
