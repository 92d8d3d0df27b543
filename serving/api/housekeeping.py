"""What a gateway does beside its requests: expire, give back, meter, reconcile, forget."""

from __future__ import annotations

import asyncio
import logging

from assets.storage.object_paths import result_key
from serving.api.context import Context

log = logging.getLogger(__name__)

#: A deleted asset leaves the tiers at once; one whose replica was away, within this.
SWEEP_S = 30.0
#: An upload whose ingest has not ended by then is ingested again.
STALE_UPLOAD_S = 300.0
#: Each hour is metered once, however often it is looked at.
_METER_S = 600.0


async def keep_house(context: Context) -> None:
    """Until cancelled. A chore that fails is logged, and tried again next time."""
    while True:
        for chore in (_expire, _restart_ingests, _account, _forget, _hold_pinned, _reconcile):
            try:
                await chore(context)
            except Exception:
                log.exception("%s failed; it will be done again", chore.__name__)
        await asyncio.sleep(SWEEP_S)


async def _expire(context: Context) -> None:
    for job_id in await asyncio.to_thread(context.backends.jobs.expired):
        await asyncio.to_thread(context.backends.blobs.unkeep, [result_key(job_id)])
        await asyncio.to_thread(context.backends.store.delete, result_key(job_id))
        await asyncio.to_thread(context.backends.jobs.forget, job_id)
    await asyncio.to_thread(context.platform.library.delete_expired)


async def _restart_ingests(context: Context) -> None:
    """Of those that died half way. To start one twice is harmless."""
    for asset in await asyncio.to_thread(context.platform.library.stale_uploads, STALE_UPLOAD_S):
        await context.ingest.start(asset)


async def _account(context: Context) -> None:
    await asyncio.to_thread(context.backends.meter.release_expired)
    if await asyncio.to_thread(context.backends.periodic.claim, "storage", _METER_S):
        await asyncio.to_thread(context.backends.meter.meter_storage)


async def _forget(context: Context) -> None:
    await context.platform.forget_dead()


async def _hold_pinned(context: Context) -> None:
    """Again and again: a dispatcher that was lost has forgotten it."""
    await context.platform.hold(await asyncio.to_thread(context.backends.pins.keys))


async def _reconcile(context: Context) -> None:
    if await asyncio.to_thread(context.backends.periodic.claim, "reconcile", context.reconcile_s):
        await asyncio.to_thread(context.backends.reconciler.run)
        for asset in await asyncio.to_thread(context.platform.library.miskeyed):
            await context.ingest.start(asset)
