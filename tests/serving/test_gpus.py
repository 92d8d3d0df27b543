"""Replicas by the machine's GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from serving.bootstrap.gpus import check_gpus, sized_for
from serving.settings import PoolSettings, Settings


@pytest.mark.parametrize(
    ("values", "gpus", "replicas"),
    [
        ({}, 0, 2),
        ({}, 1, 1),
        ({}, 8, 8),
        ({"device": "cuda"}, 4, 4),
        ({"device": "cpu"}, 8, 2),
        ({"replicas": 3}, 8, 3),
    ],
)
def test_one_replica_per_gpu_unless_configured(
    values: dict[str, Any], gpus: int, replicas: int
) -> None:
    sized = sized_for(Settings(**values), gpus)
    (pool,) = sized.resolved_pools
    assert (pool.min, pool.max) == (replicas, replicas)
    check_gpus(sized, gpus)


@pytest.mark.parametrize(
    ("values", "gpus", "remedy"),
    [
        ({"replicas": 2}, 1, "AO_REPLICAS"),
        ({"device": "cuda"}, 0, "AO_DEVICE=cpu"),
        ({"pools": {"a": PoolSettings(max=4)}}, 1, "max in AO_POOLS"),
        ({"pools": {"a": PoolSettings(gpu="a10g")}}, 1, "leave gpu out"),
    ],
)
def test_more_replicas_than_gpus_are_refused(
    values: dict[str, Any], gpus: int, remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        check_gpus(sized_for(Settings(**values), gpus), gpus)
