"""Encoding of a request's prompts with the recipe's weights and inversions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from serving.engine.attention import attention_order
from serving.engine.device_cache import Prepared
from serving.engine.options import AttentionBackend
from serving.engine.prompt_cache import PromptCache, PromptKey
from serving.engine.text import DEFAULT_CLIP_SKIP, Embeddings, Encoded, TextEncoders, Wording
from serving.engine.values import Inversion
from serving.generation.contract import GenerationParams, GenerationTask
from serving.generation.prompts import Section
from serving.generation.styles import styled_negative, styled_prompt

#: Trigger word → its asset's content key and vectors.
Inversions = Mapping[str, tuple[str, Inversion]]
Sections = tuple[Section, ...]


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
        prompts = _wording(
            styled_prompt(text, params.styles, params.syntax)
            for text in (params.prompt, params.prompt_2 or params.prompt)
        )
        prompt = self._encode_cached(prepared, request, inversions, prompts)
        warnings, seen = list(prompt.warnings), set(prompt.seen)
        negatives = negative_texts(params)
        negative: Encoded | None = None
        if negatives is not None:
            negative = self._encode_cached(prepared, request, inversions, _wording(negatives))
            warnings += [f"negative prompt: {warning}" for warning in negative.warnings]
            seen |= negative.seen
        for token in {use.token for use in recipe.inversions} - seen:
            warnings.append(
                f"no prompt contains the trigger word {token!r}: its inversion has no effect"
            )
        positive = prompt.embeddings
        if negative is None:
            # SDXL's training used zeros for an absent prompt (force_zeros_for_empty_prompt).
            absent = Embeddings(
                torch.zeros_like(positive.context), torch.zeros_like(positive.pooled)
            )
            return positive, absent, warnings
        chunks = max(positive.chunks, negative.embeddings.chunks)
        if min(positive.chunks, negative.embeddings.chunks) < chunks:
            empty = self._encode_cached(prepared, request, {}, _wording([((),), ((),)]))
            padding = empty.embeddings.context
            positive = padded(positive, padding, chunks)
            return positive, padded(negative.embeddings, padding, chunks), warnings
        return positive, negative.embeddings, warnings

    def _encode_cached(
        self,
        prepared: Prepared,
        request: GenerationTask,
        inversions: Inversions,
        wording: Wording,
    ) -> Encoded:
        clip_skip = max(request.params.clip_skip or DEFAULT_CLIP_SKIP, DEFAULT_CLIP_SKIP)
        key = _cache_key(prepared, request.tenant_id, inversions, wording, clip_skip)
        encoded = self._cache.get(key)
        if encoded is None:
            vectors = {word: inversion for word, (_, inversion) in inversions.items()}
            with attention_order(self._attention):
                encoded = self.text.encode(wording, vectors, clip_skip)
            self._cache.put(key, encoded)
        return encoded


def negative_texts(params: GenerationParams) -> tuple[Sections, Sections] | None:
    """Return the negative prompts of both encoders with their styles; None: there are none."""
    first, second = params.negative_prompt, params.negative_prompt_2
    if first is None and second is not None:
        first = ""
    styled = styled_negative(first, params.styles, params.syntax)
    if styled is None:
        return None
    other = styled_negative(second or first, params.styles, params.syntax)
    return styled, styled if other is None else other


def padded(embeddings: Embeddings, empty: torch.Tensor, chunks: int) -> Embeddings:
    """Append ``empty`` chunks [1, 77, w], as A1111."""
    missing = chunks - embeddings.chunks
    return Embeddings(torch.cat([embeddings.context, *[empty] * missing], dim=1), embeddings.pooled)


def _wording(sections: Iterable[Sections]) -> Wording:
    first, second = sections
    return {"text_encoder": first, "text_encoder_2": second}


def _cache_key(
    prepared: Prepared,
    tenant_id: str,
    inversions: Inversions,
    wording: Wording,
    clip_skip: int,
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
        tuple((component, tuple(sections)) for component, sections in wording.items()),
        clip_skip,
    )
