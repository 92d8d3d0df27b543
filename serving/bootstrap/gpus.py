"""Fits the pools to a machine's GPUs."""

from __future__ import annotations

from serving.settings import Settings


def sized_for(settings: Settings, gpus: int) -> Settings:
    """The settings with one replica per GPU, unless AO_POOLS, AO_REPLICAS or AO_DEVICE says
    otherwise."""
    if settings.pools or settings.replicas or not gpus or not _may_use_gpus(settings):
        return settings
    return settings.model_copy(update={"replicas": gpus})


def check_gpus(settings: Settings, gpus: int) -> None:
    """Check that a single machine with so many GPUs can run the pools at their maximum.

    Raises:
        ValueError: it cannot; the message names the setting to change.
    """
    pools = settings.resolved_pools
    if kinds := sorted({pool.gpu for pool in pools if pool.gpu}):
        raise ValueError(
            f"AO_POOLS asks for GPUs of kind {', '.join(kinds)}: only nodes of a cluster "
            "(AO_RAY_ADDRESS) have kinds; on one machine leave gpu out"
        )
    most = sum(pool.max for pool in pools)
    needs_gpus = settings.device.startswith("cuda") or (gpus and _may_use_gpus(settings))
    if most > gpus and needs_gpus:
        raise ValueError(
            f"{most} replicas need a GPU each, but this machine has {gpus}: lower AO_REPLICAS "
            "(or max in AO_POOLS), or set AO_DEVICE=cpu"
        )


def _may_use_gpus(settings: Settings) -> bool:
    return settings.device == "auto" or settings.device.startswith("cuda")
