"""Encoding of a request's prompts with the recipe's weights and inversions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from assets.content import Component
from serving.engine.attention import attention_order
from serving.engine.device_cache import Prepared
from serving.engine.options import AttentionBackend
from serving.engine.prompt_cache import PromptCache, PromptKey
from serving.engine.text import Embeddings, Encoded, TextEncoders
from serving.engine.values import Inversion
from serving.generation.contract import GenerationTask

#: Trigger word → its asset's content key and vectors.
Inversions = Mapping[str, tuple[str, Inversion]]


class PromptEncoder:
    """The cached prompt encoder. Thread-safe: only ``forget`` and ``clear``."""

    def __init__(
        self, text: TextEncoders, cache: PromptCache, attention: Sequence[AttentionBackend]
    ) -> None:
        self.text = text
        self._cache = cache
        self._attention = attention

    def forget(self, keys: Collection[str]) -> None:
        self._cache.forget(keys)

    def clear(self) -> None:
        self._cache.clear()

    def encode(
        self, prepared: Prepared, request: GenerationTask
    ) -> tuple[Embeddings, Embeddings, list[str]]:
        """Return embeddings of prompt and negative prompt with the current weights, and
        warnings."""
        recipe, params = prepared.recipe, request.params
        # Requested inversions override those bundled with a LoRA.
        inversions = {
            use.token: (use.blob.key, prepared.inversion(use.blob)) for use in recipe.inversions
        }
        for lora in recipe.loras:
            for word, inversion in prepared.lora(lora.blob).bundled.items():
                inversions.setdefault(word, (lora.blob.key, inversion))
        prompt = self._encode_cached(prepared, request, inversions, params.prompt, params.prompt_2)
        positive, warnings, seen = prompt.embeddings, list(prompt.warnings), set(prompt.seen)
        if params.negative_prompt is None and params.negative_prompt_2 is None:
            # SDXL's training used zeros for an absent prompt (force_zeros_for_empty_prompt).
            negative = Embeddings(
                torch.zeros_like(positive.context), torch.zeros_like(positive.pooled)
            )
        else:
            text = params.negative_prompt or ""
            encoded = self._encode_cached(
                prepared, request, inversions, text, params.negative_prompt_2
            )
            negative = encoded.embeddings
            warnings += [f"negative {warning}" for warning in encoded.warnings]
            seen |= encoded.seen
        for token in {use.token for use in recipe.inversions} - seen:
            warnings.append(
                f"no prompt contains the trigger word {token!r}: its inversion has no effect"
            )
        return positive, negative, warnings

    def _encode_cached(
        self,
        prepared: Prepared,
        request: GenerationTask,
        inversions: Inversions,
        text: str,
        text_2: str | None,
    ) -> Encoded:
        texts: dict[Component, str] = {"text_encoder": text, "text_encoder_2": text_2 or text}
        key = _cache_key(prepared, request.tenant_id, inversions, texts)
        encoded = self._cache.get(key)
        if encoded is None:
            vectors = {word: inversion for word, (_, inversion) in inversions.items()}
            with attention_order(self._attention):
                encoded = self.text.encode(texts, vectors)
            self._cache.put(key, encoded)
        return encoded


def _cache_key(
    prepared: Prepared, tenant_id: str, inversions: Inversions, texts: Mapping[Component, str]
) -> PromptKey:
    recipe = prepared.recipe
    weighted = (
        (use.blob.key, use.weight_on("text_encoder"), use.weight_on("text_encoder_2"))
        for use in recipe.loras
        if prepared.lora(use.blob).moves_text
    )
    return PromptKey(
        tenant_id,
        (recipe.text_encoder.key, recipe.text_encoder_2.key),
        tuple(use for use in weighted if any(use[1:])),
        tuple((word, blob_key) for word, (blob_key, _) in inversions.items()),
        tuple(texts.items()),
    )
