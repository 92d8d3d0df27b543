"""The one question that every verb asks."""

from __future__ import annotations

from typing import Literal

from assets.asset import Asset
from assets.principal import Principal

Verb = Literal["read", "use", "update", "delete", "restore"]


def may(principal: Principal, verb: Verb, asset: Asset) -> bool:
    """Whether ``principal`` may do ``verb`` to ``asset``. Pure; asked on every request.

    An owner may do everything to its own live assets; everybody may read and use
    a public one that is ready. To a deleted one its owner may do one thing: restore it.
    """
    is_own = asset.tenant_id == principal.tenant_id
    if asset.status == "deleted" or asset.deleted_at_s is not None:
        return is_own and verb == "restore"
    if is_own:
        return verb != "restore"
    return asset.is_public and asset.status == "ready" and verb in ("read", "use")
