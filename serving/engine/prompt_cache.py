"""Embeddings of prompts that come again, such as a tenant's negative prompt.

The tenant is part of the key: a cache that is shared between tenants would tell one, by its time,
what another has asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache

from assets.content import Component
from serving.engine.text import Encoded


@dataclass(frozen=True, slots=True)
class PromptKey:
    """Everything that decides a prompt's embeddings.

    ``encoders`` are the content keys of both text encoders; ``loras`` those that change them, as
    (content key, weight on the first, weight on the second); ``inversions`` are (trigger word,
    content key); ``texts`` the prompt for each encoder.
    """

    tenant_id: str
    encoders: tuple[str, str]
    loras: tuple[tuple[str, float, float], ...]
    inversions: tuple[tuple[str, str], ...]
    texts: tuple[tuple[Component, str], ...]

    @property
    def assets(self) -> frozenset[str]:
        """The content keys that it depends on."""
        loras = (key for key, _, _ in self.loras)
        inversions = (key for _, key in self.inversions)
        return frozenset((*self.encoders, *loras, *inversions))


class PromptCache:
    """Within ``budget_bytes`` of the device, least recently used first out. Thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self._entries: LRUCache[PromptKey, Encoded] = LRUCache(
            budget_bytes, getsizeof=lambda encoded: encoded.size_bytes
        )
        self._lock = Lock()

    def get(self, key: PromptKey) -> Encoded | None:
        with self._lock:
            return self._entries.get(key)

    def put(self, key: PromptKey, encoded: Encoded) -> None:
        """What is larger than the budget, or belongs to no tenant, is not kept."""
        if key.tenant_id and encoded.size_bytes <= self._entries.maxsize:
            with self._lock:
                self._entries[key] = encoded

    def forget(self, assets: Collection[str]) -> None:
        """Drop what depends on these content keys."""
        with self._lock:
            for key in [key for key in self._entries if key.assets.intersection(assets)]:
                del self._entries[key]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
