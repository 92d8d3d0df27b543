"""Bodies of estimates."""

from __future__ import annotations

from pydantic import BaseModel

from serving.api.models.generation import ReceiptHint, ReceiptSize
from serving.generation.service import RequestEstimate


class FetchInfo(BaseModel):
    """A file that would be fetched to the GPU, from the tier that has it."""

    asset: str
    content_key: str
    found_on: str
    size_bytes: int
    seconds: float


class EstimatedSeconds(BaseModel):
    """``queue``: until a replica begins; ``fetch`` runs while the replica is busy."""

    queue: float
    fetch: float
    generate: float
    total: float


class EstimatedRequest(BaseModel):
    """What a request would take now. ``evaluations``: of the UNet, for one image; ``gpu_s``: what
    would be reserved and is then charged as measured. ``seconds``: null while the pool sleeps."""

    images: int
    steps: int
    evaluations: int
    work: float
    size: ReceiptSize
    pool: str
    waiting: int | None
    replica: str | None
    seconds: EstimatedSeconds | None
    #: The pool has measured its speed; otherwise the seconds are a guess.
    is_measured: bool
    gpu_s: float | None
    fetches: list[FetchInfo]
    hints: list[ReceiptHint]
    warnings: list[str]

    @classmethod
    def of(cls, estimate: RequestEstimate) -> EstimatedRequest:
        task, pool = estimate.request.task, estimate.pool
        size = estimate.request.size
        names = estimate.request.resolved.names
        seconds = None
        if pool is not None:
            fetch_s = sum(fetch.seconds for fetch in pool.fetches)
            seconds = EstimatedSeconds(
                queue=pool.wait_s,
                fetch=fetch_s,
                generate=pool.generate_s,
                total=max(pool.wait_s, fetch_s) + pool.generate_s,
            )
        return cls(
            images=len(task.seeds),
            steps=task.params.steps,
            evaluations=task.evaluations,
            work=task.work,
            size=ReceiptSize(width=size.width, height=size.height, scaled_to_model=size.scaled),
            pool=task.pool,
            waiting=None if pool is None else pool.waiting,
            replica=None if pool is None else pool.replica,
            seconds=seconds,
            is_measured=pool is not None and pool.is_measured,
            gpu_s=estimate.gpu_s,
            fetches=[
                FetchInfo(
                    asset=names.get(fetch.key, ""),
                    content_key=fetch.key,
                    found_on=fetch.tier,
                    size_bytes=fetch.size_bytes,
                    seconds=fetch.seconds,
                )
                for fetch in (pool.fetches if pool else ())
            ],
            hints=[
                ReceiptHint(field=hint.field, value=hint.value, asset=hint.asset)
                for hint in estimate.request.hints
            ],
            warnings=list(estimate.request.warnings),
        )
