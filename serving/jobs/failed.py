"""Errors of jobs, as stored."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from assets.errors import StoreError
from orchestrator.errors import TierError
from serving.errors import (
    CommonsDamaged,
    DeadlineExceeded,
    GenerationFailed,
    InternalError,
    NotFinite,
    OutOfMemory,
    PolicyUnavailable,
    Refused,
    ReplicaLost,
)
from serving.generation.failure import Failure

#: Another request with the job's key starts it again.
_PASSING = (
    CommonsDamaged, DeadlineExceeded, GenerationFailed, InternalError, OutOfMemory,
    PolicyUnavailable, Refused, ReplicaLost, StoreError, TierError,
)  # fmt: skip


class JobError(Struct, frozen=True, kw_only=True):
    """Why a job failed."""

    failure: Failure | None = None
    #: The request is at fault: it would fail again.
    is_final: bool = True
    #: Of jobs of the first release: the response.
    status: int = 0
    body: Mapping[str, object] | None = None

    @classmethod
    def of(cls, error: Exception) -> JobError:
        failure = Failure.of(error)
        if failure is None:  # no words of other libraries
            error = InternalError("internal error; the server log has the details")
            failure = Failure.of(error)
        is_final = isinstance(error, NotFinite) or not isinstance(error, _PASSING)
        return cls(failure=failure, is_final=is_final)

    @property
    def may_pass(self) -> bool:
        """Whether a new attempt may succeed."""
        if self.failure is None:
            return self.status >= 500 or self.status == 429
        return not self.is_final
