"""The error tree of the library.

::

    AssetError
    ├── AssetNotFound      unknown, deleted or foreign: one answer for all three
    ├── Forbidden          the key's role does not allow it, whatever the asset
    ├── AssetNotReady      known, but not yet (or never) usable in a recipe
    ├── NameTaken          the owner already has a live asset of that name
    ├── QuotaExceeded      more than the tenant's plan allows
    ├── InvalidAsset       a request about an asset that makes no sense
    ├── BadSignature       a signed URL that is forged, altered or expired
    ├── TooLarge           more bytes than the limit
    ├── FetchFailed        what was to be imported could not be fetched
    │   └── FetchRefused   and may not be, whatever is there
    ├── StoreError         the object store failed or lost a blob
    │   └── StoreBroke     and may do better when asked again
    └── IngestRejected     the uploaded bytes cannot be served; carries every reason
        └── HeaderError    the safetensors header itself is malformed
"""

from __future__ import annotations

from collections.abc import Sequence


class AssetError(Exception):
    """Base of everything this package raises on purpose."""


class AssetNotFound(AssetError):
    def __init__(self, reference: str) -> None:
        super().__init__(f"no asset {reference!r} that you can read")
        self.reference = reference


class Forbidden(AssetError):
    def __init__(self, role: str, deed: str) -> None:
        super().__init__(role, deed)  # as they are: it must unpickle

    def __str__(self) -> str:
        role, deed = self.args
        return f"this API key is a {role}'s: it may not {deed}; ask an owner for another"


class AssetNotReady(AssetError):
    def __init__(self, reference: str, status: str, details: str = "") -> None:
        super().__init__(f"asset {reference!r} is {status}" + (f": {details}" if details else ""))
        self.reference = reference
        self.status = status


class NameTaken(AssetError):
    def __init__(self, name: str) -> None:
        super().__init__(f"you already have an asset named {name!r}; delete it or choose another")
        self.name = name
        self.field = "name"


class QuotaExceeded(AssetError):
    def __init__(self, what: str, limit: int) -> None:
        super().__init__(what, limit)  # as they are: it must unpickle

    def __str__(self) -> str:
        what, limit = self.args
        return f"your plan allows {limit} {what}; delete some, or ask the operator for another plan"


class InvalidAsset(AssetError):
    """The field named by ``field`` does not fit; ``message`` says what would."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class BadSignature(AssetError):
    pass


class TooLarge(AssetError):
    pass


class FetchFailed(AssetError):
    pass


class FetchRefused(FetchFailed):
    pass


class StoreError(AssetError):
    pass


class StoreBroke(StoreError):
    pass


class IngestRejected(AssetError):
    """The bytes are not something the served model can use."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons: Sequence[str] = reasons


class HeaderError(IngestRejected):
    pass
