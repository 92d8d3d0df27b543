"""Changes of an asset that other requests may cross."""

from __future__ import annotations

from collections.abc import Callable

from assets.access import Verb
from assets.asset import Asset
from assets.errors import Changed
from assets.library.records import AssetRecords
from assets.library.resolve import find
from assets.principal import Principal

_ATTEMPTS = 10


def change_asset(
    records: AssetRecords,
    principal: Principal,
    reference: str,
    verb: Verb,
    now_s: float,
    change: Callable[[Asset], Asset | None],
) -> Asset:
    """Find an asset and change it; again if another request changed it meanwhile.

    ``change`` returns the changed asset, or None if the asset's revision is another by then.

    Raises:
        AssetNotFound.
        Forbidden: the role does not allow the verb.
        Changed: other requests were faster each time.
    """
    for _ in range(_ATTEMPTS):
        asset = find(records, principal, reference, verb, now_s)
        result = change(asset)
        if result is not None:
            return result
        reference = asset.id  # its name may be another's now
    raise Changed(reference)
