"""The use cases of the door: generate, now or later; no framework, no Ray, no torch.

Each method is a request's way from an authenticated principal to an answer. The
rest of the library's verbs need nothing more than the library itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from assets.ids import ulid
from assets.library import Library
from assets.principal import Principal
from assets.resolve import BASE_NAME, Wanted
from serving.dispatcher import Submission
from serving.drawing import Drawing, DrawRequest, ImageEncoding, Sampler
from serving.errors import Blaming
from serving.sizes import Size, picture_size

log = logging.getLogger(__name__)

MAX_SEED = 2**32 - 1


class Drawer(Protocol):
    """Whatever draws: a dispatcher in this process, or the cluster's."""

    async def submit(self, submission: Submission) -> Drawing: ...


@dataclass(frozen=True, slots=True)
class Order:
    """A generation as a client orders it, checked but not resolved. One seed an image."""

    prompt: str
    seeds: tuple[int, ...]
    wanted: Wanted = field(default_factory=Wanted)
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    width: int | None = None
    height: int | None = None
    sampler: Sampler = "DDIM"
    steps: int = 30
    cfg_scale: float = 12.0
    encoding: ImageEncoding = "jpeg"


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer; ``names`` says under which name the request knew each content key."""

    request_id: str
    drawing: Drawing
    seeds: tuple[int, ...]
    size: Size
    names: Mapping[str, str]


class Platform:
    def __init__(
        self, library: Library, drawer: Drawer, native_size: int, timeout_s: float
    ) -> None:
        self.library = library
        self._drawer = drawer
        self.native_size = native_size
        self.timeout_s = timeout_s

    async def generate(self, principal: Principal, order: Order) -> Generated:
        """Resolve, wait, draw.

        Raises:
            AssetError about a reference, InvalidRequest about a field, Refused,
            DeadlineExceeded, DrawingFailed, OutOfMemory, Quarantined, TierError.
        """
        size = picture_size(order.width, order.height, self.native_size)
        resolved = await asyncio.to_thread(self.library.resolve, principal, order.wanted)
        request = DrawRequest(
            id="req_" + ulid(),
            recipe=resolved.recipe,
            prompt=order.prompt,
            prompt_2=order.prompt_2,
            negative_prompt=order.negative_prompt,
            negative_prompt_2=order.negative_prompt_2,
            width=size.width,
            height=size.height,
            seeds=order.seeds,
            sampler=order.sampler,
            steps=order.steps,
            cfg_scale=order.cfg_scale,
            encoding=order.encoding,
        )
        named = frozenset(key for key, name in resolved.names.items() if name != BASE_NAME)
        submission = Submission(
            request, principal.tenant_id, principal.weight, self.timeout_s, named
        )
        try:
            drawing = await self._drawer.submit(submission)
        except Blaming as error:
            raise error.named(resolved.names) from None
        return Generated(request.id, drawing, order.seeds, size, resolved.names)

    async def check(self, principal: Principal, order: Order) -> None:
        """Raise now what ``generate`` would raise about the order itself."""
        picture_size(order.width, order.height, self.native_size)
        await asyncio.to_thread(self.library.resolve, principal, order.wanted)


def fixed_seeds(given: int | list[int | None] | None, count: int) -> tuple[int, ...]:
    """One seed an image: a single one counts up; what is missing is drawn by lot."""
    if isinstance(given, int):
        return tuple((given + index) % (MAX_SEED + 1) for index in range(count))
    listed = list(given or [])[:count]
    listed += [None] * (count - len(listed))
    return tuple(secrets.randbelow(MAX_SEED + 1) if seed is None else seed for seed in listed)
