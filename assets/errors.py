"""The error tree of the library.

::

    AssetError
    ├── AssetNotFound         unknown, deleted or inaccessible: not distinguished
    ├── Forbidden             the role allows it on no asset
    ├── AssetNotReady         not usable (yet)
    ├── NameTaken             by a live asset
    ├── Changed               by another request at the same time
    ├── QuotaExceeded         of the plan
    ├── InvalidAsset          invalid request field
    ├── BadSignature          signed URL forged, altered or expired
    ├── TooLarge
    ├── FetchFailed           download of an import failed
    │   └── FetchRefused      by the import rules
    ├── StoreError            object store failed or lost a blob
    │   └── StoreUnavailable  transient: retry
    └── IngestRejected        carries every reason
        └── HeaderError       malformed safetensors header
"""

from __future__ import annotations

from collections.abc import Sequence


class AssetError(Exception):
    """Base of this package's errors."""


class AssetNotFound(AssetError):
    def __init__(self, reference: str) -> None:
        super().__init__(f"no asset {reference!r} that you can read")
        self.reference = reference


class Forbidden(AssetError):
    def __init__(self, role: str, action: str) -> None:
        super().__init__(role, action)  # plain arguments, to unpickle

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


class Changed(AssetError):
    def __init__(self, reference: str) -> None:
        super().__init__(f"{reference!r} was changed by another request; read it and try again")
        self.reference = reference


class QuotaExceeded(AssetError):
    def __init__(self, resource: str, limit: int) -> None:
        super().__init__(resource, limit)  # plain arguments, to unpickle

    def __str__(self) -> str:
        resource, limit = self.args
        return (
            f"your plan allows {limit} {resource}; "
            "delete some, or ask the operator for a larger plan"
        )


class InvalidAsset(AssetError):
    """The message states what ``field`` accepts."""

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
    """The served model cannot use the file."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons: Sequence[str] = reasons


class HeaderError(IngestRejected):
    pass
