"""The limit on a tenant's concurrent images: requests beyond it are held back, in order."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from router.request import QueuedRequest, QueuePosition

_Entry = tuple[QueuePosition, str]


class ConcurrencyLimit:
    """Mutable. Counts the images of limited tenants that are admitted or generating. A small
    request never overtakes the first."""

    def __init__(
        self, request: Callable[[str], QueuedRequest], admit: Callable[[QueuedRequest], None]
    ) -> None:
        """``request`` returns a queued request by id; ``admit`` gets each that fits."""
        self._request = request
        self._admit = admit
        self._held: dict[str, list[_Entry]] = {}
        self._images: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def __contains__(self, request: QueuedRequest) -> bool:
        """Whether it is held back."""
        return (request.position, request.id) in self._held.get(request.tenant_id, ())

    def add(self, request: QueuedRequest) -> None:
        """Admit a request, now or later."""
        if request.max_concurrent_images is None:
            self._admit(request)
            return
        insort(self._held.setdefault(request.tenant_id, []), (request.position, request.id))
        self._admit_next(request.tenant_id)

    def remove(self, request: QueuedRequest) -> None:
        """Remove a request that is held back."""
        self._held[request.tenant_id].remove((request.position, request.id))
        self._admit_next(request.tenant_id)

    def move(self, request: QueuedRequest, position: QueuePosition) -> None:
        held = self._held[request.tenant_id]
        held.remove((request.position, request.id))
        insort(held, (position, request.id))

    def release(self, request: QueuedRequest) -> None:
        """An admitted request does not generate any more."""
        if request.max_concurrent_images is not None:
            self._images[request.tenant_id] -= request.images
            self._admit_next(request.tenant_id)

    def _admit_next(self, tenant: str) -> None:
        held, taken = self._held.get(tenant, []), self._images.pop(tenant, 0)
        while held:
            request = self._request(held[0][1])
            limit = request.max_concurrent_images
            if limit is not None and taken and taken + request.images > limit:
                break
            del held[0]
            taken += request.images
            self._admit(request)
        if not held:
            self._held.pop(tenant, None)
        if taken:
            self._images[tenant] = taken
