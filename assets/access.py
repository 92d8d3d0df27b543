"""The one question that every verb asks."""

from __future__ import annotations

from typing import Literal

from assets.asset import Asset
from assets.principal import Principal

Verb = Literal["read", "use", "delete"]


def may(principal: Principal, verb: Verb, asset: Asset) -> bool:
    """Whether ``principal`` may do ``verb`` to ``asset``. Pure; asked on every request.

    An owner may do everything to its own live assets; everybody may read and use
    a public one that is ready. Nobody may anything to a deleted one.
    """
    if asset.status == "deleted" or asset.deleted_at_s is not None:
        return False
    if asset.tenant_id == principal.tenant_id:
        return True
    return asset.is_public and asset.status == "ready" and verb in ("read", "use")
