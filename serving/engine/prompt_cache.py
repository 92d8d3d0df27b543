"""A cache of prompt embeddings, for repeated prompts such as a tenant's negative prompt.

Keyed by tenant: a shared cache's timing would reveal prompts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache

from assets.content import Component
from serving.engine.text import Encoded
from serving.generation.prompts import Section


@dataclass(frozen=True, slots=True)
class PromptKey:
    """What determines a prompt's embeddings.

    ``loras``: (content key, weights on both encoders); ``inversions``: (trigger word, content key);
    ``encoders``: content keys.
    """

    tenant_id: str
    encoders: tuple[str, str]
    loras: tuple[tuple[str, float, float], ...]
    inversions: tuple[tuple[str, str], ...]
    texts: tuple[tuple[Component, tuple[Section, ...]], ...]
    clip_skip: int = 2

    @property
    def assets(self) -> frozenset[str]:
        loras = (key for key, _, _ in self.loras)
        inversions = (key for _, key in self.inversions)
        return frozenset((*self.encoders, *loras, *inversions))


class PromptCache:
    """An LRU cache in device memory. Thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self._entries: LRUCache[PromptKey, Encoded] = LRUCache(
            budget_bytes, getsizeof=lambda encoded: encoded.size_bytes
        )
        self._lock = Lock()

    def get(self, key: PromptKey) -> Encoded | None:
        with self._lock:
            return self._entries.get(key)

    def put(self, key: PromptKey, encoded: Encoded) -> None:
        """Ignores entries larger than the budget or without a tenant."""
        if key.tenant_id and encoded.size_bytes <= self._entries.maxsize:
            with self._lock:
                self._entries[key] = encoded

    def forget(self, assets: Collection[str]) -> None:
        with self._lock:
            for key in [key for key in self._entries if key.assets.intersection(assets)]:
                del self._entries[key]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
