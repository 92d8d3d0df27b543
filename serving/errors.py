"""The error tree of serving.

::

    ServingError
    ├── Unauthenticated      no key, or one that is not valid
    ├── InvalidRequest       a field that does not fit; ``field`` names it
    ├── Refused              not admitted: 429 or 503, with ``retry_after_s``
    ├── DeadlineExceeded     not done in time
    ├── Cancelled            the client went away
    ├── ReplicaLost          the replica died with the request in it
    ├── DrawingFailed        the engine could not draw; says why
    └── CommonsDamaged       the package's own weights are not what they were
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of everything this package raises on purpose."""


class Unauthenticated(ServingError):
    pass


class InvalidRequest(ServingError):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return self.message


class Refused(ServingError):
    def __init__(self, status: int, reason: str, retry_after_s: float) -> None:
        super().__init__(status, reason, retry_after_s)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.reason


class DeadlineExceeded(ServingError):
    pass


class Cancelled(ServingError):
    pass


class ReplicaLost(ServingError):
    pass


class DrawingFailed(ServingError):
    pass


class CommonsDamaged(ServingError):
    pass
