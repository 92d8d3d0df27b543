"""The error tree of serving.

::

    ServingError
    ├── Unauthenticated      no key, or one that is not valid
    ├── NotServed            something that this platform does not do
    ├── InvalidRequest       a field that does not fit; ``field`` names it
    ├── NotFound             no key or member of that name
    ├── Busy                 another request is doing it; try again later
    ├── Refused              not admitted: 429 or 503, with ``retry_after_s``
    ├── BudgetExceeded       the month's engine seconds are used up, or held by other requests
    ├── DeadlineExceeded     not done in time
    ├── Cancelled            the client went away
    ├── ReplicaLost          the replica does not answer, or may not be trusted
    │   └── ReplicaDied      while the request was in it
    ├── DrawingFailed        the engine could not draw; says why
    │   ├── NotFinite        the picture is not finite; ``blamed`` names the assets at fault
    │   └── EngineBroke      the engine raised what it never should; counts against the assets
    ├── OutOfMemory          the device has no room for this drawing, even after evicting
    ├── Quarantined          an asset that replicas died of; ``blamed`` names it
    └── CommonsDamaged       the package's own weights are not what they were
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self


class ServingError(Exception):
    """Base of everything this package raises on purpose."""

    #: Engine seconds that went into what failed, where the request and not the platform is at
    #: fault: they count against its tenant's budget.
    engine_s: float = 0.0


class Unauthenticated(ServingError):
    pass


class NotServed(ServingError):
    pass


class InvalidRequest(ServingError):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return self.message


class NotFound(ServingError):
    """``kind`` is what there is none of: a key, a member."""

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
    """All in engine seconds: what the request would take, what is left, what a month has."""

    def __init__(self, estimate_s: float, left_s: float, limit_s: float) -> None:
        super().__init__(estimate_s, left_s, limit_s)

    def __str__(self) -> str:
        estimate, left, limit = self.args
        return (
            f"this request needs about {estimate:.3g} s of the engine; of this month's {limit:g} s "
            f"{left:.3g} s are left (what runs now holds its share until it ends)"
        )


class DeadlineExceeded(ServingError):
    """``attempts``: how often it was begun; none, when it only waited."""

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


class Blaming(ServingError):
    """``blamed`` holds content keys; in the message ``{assets}`` stands for them, until the
    platform, which knows under which names the request knew them, says it better."""

    def __init__(self, message: str, blamed: tuple[str, ...] = ()) -> None:
        super().__init__(message, blamed)  # as they are: it must unpickle
        self.message = message
        self.blamed = blamed

    def __str__(self) -> str:
        return self.message.replace("{assets}", ", ".join(self.blamed))

    def named(self, names: Mapping[str, str]) -> Self:
        """The same error in the request's own words."""
        known = dict.fromkeys(names.get(key, key) for key in self.blamed)
        assets = ", ".join(map(repr, known))
        return type(self)(self.message.replace("{assets}", assets), self.blamed)


class NotFinite(Blaming, GenerationFailed):
    pass


class EngineBroke(GenerationFailed):
    pass


class OutOfMemory(ServingError):
    pass


class Quarantined(Blaming):
    pass


class CommonsDamaged(ServingError):
    pass
