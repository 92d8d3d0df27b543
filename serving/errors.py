"""The error tree of serving.

::

    ServingError
    ├── Unauthenticated      the API key is missing or invalid
    ├── NotServed            the platform does not offer this function
    ├── InvalidRequest       a field has an invalid value; ``field`` names it
    ├── NotFound             there is no key or member of that name
    ├── Busy                 a concurrent request does the same; retry later
    ├── Refused              not admitted: 429 or 503, with ``retry_after_s``
    ├── BudgetExceeded       the month's engine seconds are used up or reserved
    ├── DeadlineExceeded     not finished before the deadline
    ├── Cancelled            the client disconnected
    ├── ReplicaLost          the replica does not answer, or its state cannot be trusted
    │   └── ReplicaDied      the replica died during the request
    ├── GenerationFailed     the engine could not generate; the message says why
    │   ├── NotFinite        the image is not finite; ``blamed`` names the assets at fault
    │   └── EngineBroke      an unexpected engine error; counts against the request's assets
    ├── OutOfMemory          the device lacks memory for the request, even after eviction
    ├── Quarantined          an asset repeatedly killed replicas; ``blamed`` names it
    └── CommonsDamaged       the weights shipped with the package are corrupt
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self


class ServingError(Exception):
    """The base class of all errors of this package."""

    #: Engine seconds spent on the failed request, if the request is at fault and not the platform:
    #: they are charged to the tenant's budget.
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


class NotFound(ServingError):
    """A named object does not exist; ``kind`` is its type: key, member."""

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
    """The estimate of the request, the rest of the budget and its limit, in engine seconds."""

    def __init__(self, estimate_s: float, left_s: float, limit_s: float) -> None:
        super().__init__(estimate_s, left_s, limit_s)

    def __str__(self) -> str:
        estimate, left, limit = self.args
        return (
            f"this request needs about {estimate:.3g} engine seconds; {left:.3g} s of this month's "
            f"{limit:g} s are left (running requests reserve their estimate until they finish)"
        )


class DeadlineExceeded(ServingError):
    """``attempts`` counts how often a replica started the request; 0 if it only waited."""

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


class GenerationFailed(ServingError):
    pass


class AssetFault(ServingError):
    """An error caused by assets; ``blamed`` holds their content keys.

    ``{assets}`` in the message stands for the keys; :meth:`named` replaces them by the names used
    in the request.
    """

    def __init__(self, message: str, blamed: tuple[str, ...] = ()) -> None:
        super().__init__(message, blamed)  # the raw arguments, so that it unpickles
        self.message = message
        self.blamed = blamed

    def __str__(self) -> str:
        return self.message.replace("{assets}", ", ".join(self.blamed))

    def named(self, names: Mapping[str, str]) -> Self:
        """Return the same error with the names that the request used for the assets."""
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


class CommonsDamaged(ServingError):
    pass
