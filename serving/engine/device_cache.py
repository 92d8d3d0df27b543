"""The device cache: loads a recipe's assets onto the device and leases them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import assert_never, cast

import torch

from assets.content import MODEL_COMPONENTS, Blob, Component
from assets.families.schema import ParameterSchema
from assets.formats.tensors import TensorFile
from assets.recipe import Recipe
from orchestrator.asset_fetch import AssetFetch, TierName
from orchestrator.device_tier import DeviceLease, DeviceTier
from orchestrator.errors import TierError
from orchestrator.provision import Provisioner
from serving.engine.slabs import SlabLayout, Slabs, load_slabs
from serving.engine.values import (
    DeviceValue,
    Inversion,
    Lora,
    Pristine,
    elements,
    load_inversion,
    load_lora,
)
from serving.errors import OutOfMemory
from serving.generation.contract import (
    ClusterDirectives,
)
from serving.generation.engine import (
    DeviceResidency,
)


@dataclass(slots=True)
class Prepared:
    """A recipe with a device lease on each value. Release it exactly once."""

    recipe: Recipe
    leases: dict[str, DeviceLease[DeviceValue]] = field(default_factory=dict)
    fetches: list[AssetFetch] = field(default_factory=list)
    fetch_s: float = 0.0

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        for lease in self.leases.values():
            lease.release()
        self.leases.clear()

    def pristine(self, blob: Blob) -> Pristine:
        return cast(Pristine, self.leases[blob.key].value)

    def lora(self, blob: Blob) -> Lora:
        return cast(Lora, self.leases[blob.key].value)

    def inversion(self, blob: Blob) -> Inversion:
        return cast(Inversion, self.leases[blob.key].value)


class DeviceCache:
    """The device tier and the loading into it. ``prepare`` is thread-safe.

    On a small GPU ``pristine_tier`` is pinned host memory; otherwise both are one tier.
    """

    def __init__(
        self,
        provisioner: Provisioner | None,
        schema: ParameterSchema,
        layouts: Mapping[Component, SlabLayout],
        device: torch.device,
        dtypes: Mapping[Component, torch.dtype],
        tier: DeviceTier[DeviceValue],
        pristine_tier: DeviceTier[DeviceValue] | None = None,
    ) -> None:
        self._optional_provisioner = provisioner
        self._schema = schema
        self._layouts = layouts
        self._device = device
        self._dtypes = dtypes
        self.tier = tier
        self.pristine_tier = pristine_tier or tier
        self._spare: dict[Component, Slabs] = {}
        # One stream for all loads: the allocator never reuses a block on another stream.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._unets = set[str]()
        sizes = (layouts[part].size_bytes(dtypes[part], self._pins) for part in MODEL_COMPONENTS)
        self._checkpoint_capacity = max(1, self.pristine_tier.budget_bytes // sum(sizes))

    @property
    def _provisioner(self) -> Provisioner:
        if self._optional_provisioner is None:
            raise TierError(
                "this engine has no file tiers: every asset must already be in its device tier"
            )
        return self._optional_provisioner

    @property
    def has_pristine_tier(self) -> bool:
        return self.pristine_tier is not self.tier

    @property
    def _pins(self) -> bool:
        return self.has_pristine_tier and self._device.type == "cuda"

    def prepare(self, recipe: Recipe, tenant_id: str = "") -> Prepared:
        """Load and lease the recipe's values; ``tenant_id`` is charged ("": the platform).

        Raises:
            TierError: no room, or corrupt bytes.
            OutOfMemory: the device has less memory than the tier's budget.
            After any error nothing stays leased.
        """
        started = time.perf_counter()
        prepared = Prepared(recipe)
        self._unets.add(recipe.unet.key)
        try:
            for component, blob in recipe.components():
                self._lease(prepared, blob, component, tenant_id)
            for use in recipe.loras:
                self._lease(prepared, use.blob, "lora", tenant_id)
            for inversion in recipe.inversions:
                self._lease(prepared, inversion.blob, "textual_inversion", tenant_id)
        except BaseException:
            prepared.release()
            raise
        prepared.fetch_s = time.perf_counter() - started
        return prepared

    def _lease(self, prepared: Prepared, blob: Blob, component: Component, tenant_id: str) -> None:
        if blob.key in prepared.leases:
            return
        tier = self.pristine_tier if component in MODEL_COMPONENTS else self.tier
        lease = tier.lease(blob.key, tenant_id)
        if lease is not None:
            prepared.leases[blob.key] = lease
            where: TierName = "gpu" if tier is self.tier else "host"
            prepared.fetches.append(AssetFetch(blob.key, where, 0, 0.0))
            return
        file_lease, fetch = self._provisioner.acquire(blob, tenant_id)
        with file_lease, TensorFile(file_lease.path) as file:
            started = time.perf_counter()
            dtype = self._dtypes.get(component, self._dtypes["unet"])
            if component in MODEL_COMPONENTS:
                size_bytes = self._layouts[component].size_bytes(dtype, self._pins)
            else:
                size_bytes = elements(file) * dtype.itemsize
            lease, loaded = self._admit(tier, blob.key, size_bytes, file, component, tenant_id)
            fetch_s = fetch.fetch_s + time.perf_counter() - started
        prepared.leases[blob.key] = lease
        bytes_moved = fetch.bytes_moved + (blob.size_bytes if loaded else 0)
        prepared.fetches.append(AssetFetch(blob.key, fetch.tier, bytes_moved, fetch_s))

    def _admit(
        self,
        tier: DeviceTier[DeviceValue],
        key: str,
        size_bytes: int,
        file: TensorFile,
        component: Component,
        tenant_id: str,
    ) -> tuple[DeviceLease[DeviceValue], bool]:
        """Return the lease and whether this call loaded; if out of memory, evict and retry once."""
        for attempt in (1, 2):
            try:
                return tier.admit(key, size_bytes, lambda: self._load(file, component), tenant_id)
            except RuntimeError as error:  # pinned memory has no error type of its own
                if not isinstance(error, torch.OutOfMemoryError) and not (
                    self._pins and "memory" in str(error)
                ):
                    raise
                reason = str(error).partition("\n")[0]
            # Outside the handler: the exception's frames keep tensors alive.
            if attempt == 1:
                self.make_room()
        raise OutOfMemory(f"the device has no memory for an asset of {size_bytes} bytes: {reason}")

    def make_room(self) -> None:
        self.tier.evict_idle()
        if self.has_pristine_tier:
            self.pristine_tier.evict_idle()
        self._spare.clear()  # the evicted components' slabs
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, file: TensorFile, component: Component) -> DeviceValue:
        spare = self._spare.pop(component, None)
        if self._device.type == "cuda":  # spare memory is outside the budget
            self._spare.clear()
        with self._arriving():
            match component:
                case "lora":
                    return load_lora(
                        file, self._schema, self._layouts, self._device, self._dtypes["unet"]
                    )
                case "textual_inversion":
                    return load_inversion(file, self._device, self._dtypes["unet"])
                case "unet" | "text_encoder" | "text_encoder_2" | "vae":
                    layout, dtype = self._layouts[component], self._dtypes[component]
                    device = torch.device("cpu") if self.has_pristine_tier else self._device
                    slabs = load_slabs(file, layout, device, dtype, self._pins, spare)
                    return Pristine(slabs, component)
                case _:
                    assert_never(component)

    def keep_spare(self, value: DeviceValue) -> None:
        """Keep evicted slabs for the next load: allocating takes longer than filling."""
        if isinstance(value, Pristine):
            self._spare[value.component] = value.slabs

    @contextmanager
    def _arriving(self) -> Iterator[None]:
        """Load on a separate stream, in parallel with generation; complete on exit."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def warm(self, blobs: Sequence[Blob]) -> TierName:
        """Fetch into host RAM, unleased; return the lowest tier that had any.

        Raises:
            TierError: no room, or corrupt bytes.
        """
        order: tuple[TierName, ...] = ("gpu", "host", "disk", "peer", "store")
        lowest = 0
        for blob in blobs:
            if blob.key not in self.tier.resident():
                lease, fetch = self._provisioner.acquire(blob)
                lease.release()
                lowest = max(lowest, order.index(fetch.tier))
        return order[lowest]

    def apply_directives(self, directives: ClusterDirectives) -> None:
        self._provisioner.set_peers(directives.nodes)
        if directives.pins is None:
            return
        for tier in self._provisioner.tiers:
            tier.pins.set_exactly(directives.pins)
        for device_tier in {self.tier, self.pristine_tier}:
            device_tier.pin_exactly(directives.pins.keys())

    def forget(self, keys: Collection[str]) -> None:
        """Drop keys from every tier once not leased."""
        for key in keys:
            for tier in {self.tier, self.pristine_tier}:
                tier.forget(key)
            if self._optional_provisioner is not None:
                self._optional_provisioner.forget(key)
        self._spare.clear()  # spare memory is outside the budget

    def residency(self) -> DeviceResidency:
        pristine = frozenset(self.pristine_tier.resident())
        ready = pristine | frozenset(self.tier.resident())
        eviction_policies = {"gpu": self.tier.policy_selector.policy.value}
        if self._optional_provisioner is not None:
            host, disk = self._optional_provisioner.tiers
            eviction_policies |= {"host": host.policy.value, "disk": disk.policy.value}
        models = pristine.intersection(self._unets)
        return DeviceResidency(ready, models, self._checkpoint_capacity, eviction_policies)

    def resident(self) -> Mapping[str, frozenset[str]]:
        """Return content keys by tier: ``gpu``, ``host``, ``disk``."""
        pinned = frozenset(self.pristine_tier.resident()) if self.has_pristine_tier else frozenset()
        gpu = frozenset(self.tier.resident())
        if self._optional_provisioner is None:
            return {"gpu": gpu, "host": pinned, "disk": frozenset()}
        host, disk = self._optional_provisioner.tiers
        return {
            "gpu": gpu,
            "host": frozenset(host.resident()) | pinned,
            "disk": frozenset(disk.resident()),
        }
