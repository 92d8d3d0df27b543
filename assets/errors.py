"""The error tree of the library.

::

    AssetError
    ├── AssetNotFound      unknown, deleted or not accessible: the same error for all three
    ├── Forbidden          the role allows the action on no asset
    ├── AssetNotReady      not usable in a recipe (yet)
    ├── NameTaken          the tenant already has a live asset of that name
    ├── QuotaExceeded      more than the tenant's plan allows
    ├── InvalidAsset       an invalid field in a request about an asset
    ├── BadSignature       a signed URL is forged, altered or expired
    ├── TooLarge           more bytes than the limit
    ├── FetchFailed        an import could not be downloaded
    │   └── FetchRefused   the import rules forbid the URL
    ├── StoreError         the object store failed or lost a blob
    │   └── StoreBroke     a transient failure: retry
    └── IngestRejected     the uploaded bytes cannot be served; carries every reason
        └── HeaderError    the safetensors header is malformed
"""

from __future__ import annotations

from collections.abc import Sequence


class AssetError(Exception):
    """Base class of the errors that this package raises."""


class AssetNotFound(AssetError):
    def __init__(self, reference: str) -> None:
        super().__init__(f"no asset {reference!r} that you can read")
        self.reference = reference


class Forbidden(AssetError):
    def __init__(self, role: str, action: str) -> None:
        super().__init__(role, action)  # the plain arguments, so that the error unpickles

    def __str__(self) -> str:
        role, action = self.args
        return (
            f"the role of this API key, {role}, may not {action}; "
            "ask an owner of the organisation for a key with another role"
        )


class AssetNotReady(AssetError):
    def __init__(self, reference: str, status: str, details: str = "") -> None:
        super().__init__(f"asset {reference!r} is {status}" + (f": {details}" if details else ""))
        self.reference = reference
        self.status = status


class NameTaken(AssetError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"you already have an asset named {name!r}; delete it or choose another name"
        )
        self.name = name
        self.field = "name"


class QuotaExceeded(AssetError):
    def __init__(self, resource: str, limit: int) -> None:
        super().__init__(resource, limit)  # the plain arguments, so that the error unpickles

    def __str__(self) -> str:
        resource, limit = self.args
        return (
            f"your plan allows {limit} {resource}; "
            "delete some, or ask the operator for a larger plan"
        )


class InvalidAsset(AssetError):
    """The value of ``field`` is invalid; the message states what is accepted."""

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


class StoreUnavailable(StoreError):
    pass


class IngestRejected(AssetError):
    """The uploaded file cannot be used with the served model."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons: Sequence[str] = reasons


class HeaderError(IngestRejected):
    pass
