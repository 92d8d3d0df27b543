"""Background maintenance of a gateway: expiry, metering, eviction, pins, reconciliation."""

from __future__ import annotations

import asyncio
import logging

from serving.api.context import Context

log = logging.getLogger(__name__)

#: Bounds the delay of deletions that unreachable replicas missed.
SWEEP_S = 30.0
#: Then an upload's ingest is restarted.
STALE_UPLOAD_S = 300.0
#: Each hour is charged once however often this is.
_METER_S = 600.0


async def run_housekeeping(context: Context) -> None:
    """Run all tasks every SWEEP_S, despite failures."""
    while True:
        for task in (_expire, _restart_ingests, _account, _forget, _hold_pinned, _reconcile):
            try:
                await task(context)
            except Exception:
                log.exception("%s failed; retrying", task.__name__)
        await asyncio.sleep(SWEEP_S)


async def _expire(context: Context) -> None:
    await context.jobs.expire()
    await asyncio.to_thread(context.platform.library.removal.delete_expired)


async def _restart_ingests(context: Context) -> None:
    """Starting one twice is harmless."""
    for asset in await asyncio.to_thread(
        context.platform.library.upkeep.stale_uploads, STALE_UPLOAD_S
    ):
        await context.ingest.start(asset)


async def _account(context: Context) -> None:
    await asyncio.to_thread(context.backends.meter.release_expired)
    if await asyncio.to_thread(context.backends.periodic.claim, "storage", _METER_S):
        await asyncio.to_thread(context.backends.storage_meter.charge_hour)


async def _forget(context: Context) -> None:
    await context.placement.forget_dead()


async def _hold_pinned(context: Context) -> None:
    """Repeat the pins: a restarted dispatcher has none."""
    await context.tiers.hold(await asyncio.to_thread(context.backends.pins.keys))


async def _reconcile(context: Context) -> None:
    if await asyncio.to_thread(context.backends.periodic.claim, "reconcile", context.reconcile_s):
        await asyncio.to_thread(context.backends.reconciler.run)
        for asset in await asyncio.to_thread(context.backends.records.miskeyed):
            await context.ingest.start(asset)
