"""The error tree of serving.

::

    ServingError
    ├── Unauthenticated      no valid API key
    ├── NotSupported         a function that is not offered
    ├── InvalidRequest       an invalid ``field``
    ├── PolicyViolation      the operator's content policy refuses the prompt
    ├── PolicyUnavailable    the content policy does not answer
    ├── Misconfigured        a setting cannot be used
    ├── NotFound             no such key or member
    ├── Busy                 a concurrent request does the same; retry later
    ├── Refused              429 or 503, with ``retry_after_s``
    ├── BudgetExceeded       the month's engine seconds are used or reserved
    ├── DeadlineExceeded     not finished in time
    ├── Cancelled            by its client, or the client disconnected
    ├── ReplicaLost          no answer, or an untrusted state
    │   ├── ReplicaDied      died during the request
    │   └── EarlierVersion   a process that speaks another protocol; restart it
    ├── GenerationFailed     the engine could not generate
    │   ├── NotFinite        the image is not finite
    │   └── UnexpectedEngineError  counts against the request's assets
    ├── OutOfMemory          of the device, even after eviction
    ├── Quarantined          an asset repeatedly killed replicas
    ├── InternalError        a bug, or an error of another library
    └── CommonsDamaged       corrupt weights in the package
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self


class ServingError(Exception):
    """The base of this package's errors."""

    #: Engine seconds to charge, if the request is at fault.
    engine_s: float = 0.0


class Unauthenticated(ServingError):
    pass


class NotSupported(ServingError):
    pass


class InvalidRequest(ServingError):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return self.message


class PolicyViolation(ServingError):
    pass


class PolicyUnavailable(ServingError):
    pass


class Misconfigured(ServingError):
    """The message says what to change."""


class NotFound(ServingError):
    """There is no such ``kind``: key or member."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind = kind
        self.name = name

    def __str__(self) -> str:
        return f"there is no {self.kind} {self.name!r}"


class Busy(ServingError):
    pass


class Refused(ServingError):
    def __init__(self, status: int, reason: str, retry_after_s: float) -> None:
        super().__init__(status, reason, retry_after_s)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.reason


class BudgetExceeded(ServingError):
    """The estimate, rest and limit in engine seconds."""

    def __init__(self, estimate_s: float, left_s: float, limit_s: float) -> None:
        super().__init__(estimate_s, left_s, limit_s)

    def __str__(self) -> str:
        estimate, left, limit = self.args
        return (
            f"this request needs about {estimate:.3g} engine seconds; {left:.3g} s of this month's "
            f"{limit:g} s are left (running requests reserve their estimate until they finish)"
        )


class DeadlineExceeded(ServingError):
    """``attempts`` counts starts on replicas."""

    def __init__(self, message: str, attempts: int = 0) -> None:
        super().__init__(message, attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        return str(self.args[0])


class Cancelled(ServingError):
    pass


class ReplicaLost(ServingError):
    pass


class ReplicaDied(ReplicaLost):
    pass


class EarlierVersion(ReplicaLost):
    pass


class GenerationFailed(ServingError):
    pass


class AssetFault(ServingError):
    """An error caused by assets, by content key in ``blamed``.

    ``{assets}`` in the message stands for them.
    """

    def __init__(self, message: str, blamed: tuple[str, ...] = ()) -> None:
        super().__init__(message, blamed)  # raw, for unpickling
        self.message = message
        self.blamed = blamed

    def __str__(self) -> str:
        return self.message.replace("{assets}", ", ".join(self.blamed))

    def named(self, names: Mapping[str, str]) -> Self:
        """Return the error with the request's names of the assets."""
        unique_names = dict.fromkeys(names.get(key, key) for key in self.blamed)
        assets = ", ".join(map(repr, unique_names))
        return type(self)(self.message.replace("{assets}", assets), self.blamed)


class NotFinite(AssetFault, GenerationFailed):
    pass


class UnexpectedEngineError(GenerationFailed):
    pass


class OutOfMemory(ServingError):
    pass


class Quarantined(AssetFault):
    pass


class InternalError(ServingError):
    pass


class CommonsDamaged(ServingError):
    pass
