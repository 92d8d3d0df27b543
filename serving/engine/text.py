"""Text encoding with textual inversions.

Placeholder tokens, one per vector, replace a trigger word; after the embedding lookup the vectors
replace their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from assets.content import Component
from serving.engine.devices import to_device
from serving.engine.trigger_words import split
from serving.engine.values import Inversion
from serving.engine.vocabulary import MAX_TOKENS, tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel


#: Token id of placeholders; not the highest, which marks the prompt's end.
_PLACEHOLDER = 0
_MAX_BODY_TOKENS = MAX_TOKENS - 2


@dataclass(frozen=True, slots=True)
class Tokens:
    """77 ``ids``, placeholders (position, trigger word, vector index), and the number of tokens
    dropped."""

    ids: tuple[int, ...]
    vectors: tuple[tuple[int, str, int], ...]
    dropped: int


class PromptTokenizer:
    """The tokenizer of both encoders."""

    def __init__(self) -> None:
        self._tokenizer = tokenizer()
        self._start = self._tokenizer.bos_token_id
        self._end = self._tokenizer.eos_token_id
        self._pads: Mapping[Component, int] = {"text_encoder": self._end, "text_encoder_2": 0}

    def tokenize(self, text: str, component: Component, sizes: Mapping[str, int]) -> Tokens:
        """``sizes``: trigger word → number of vectors."""
        body: list[int] = []
        places: list[tuple[int, str, int]] = []
        for piece, is_trigger in split(text, sizes):
            if is_trigger:
                places += [(len(body) + 1 + i, piece, i) for i in range(sizes[piece])]
                body += [_PLACEHOLDER] * sizes[piece]
            else:
                body += self._tokenizer(piece, add_special_tokens=False)["input_ids"]
        dropped = max(0, len(body) - _MAX_BODY_TOKENS)
        body = body[:_MAX_BODY_TOKENS]
        padding = [self._pads[component]] * (_MAX_BODY_TOKENS - len(body))
        ids = (self._start, *body, self._end, *padding)
        kept = tuple(place for place in places if place[0] <= len(body))
        return Tokens(ids, kept, dropped)


class TokenEmbeddingHook:
    """A forward hook that replaces placeholders' rows with vectors."""

    def __init__(self, embedding: torch.nn.Module) -> None:
        self._rows: list[tuple[int, int, torch.Tensor]] = []
        embedding.register_forward_hook(self)

    def __call__(
        self, _module: object, _inputs: object, output: torch.Tensor
    ) -> torch.Tensor | None:
        if not self._rows:
            return None
        output = output.clone()
        for batch, position, vector in self._rows:
            output[batch, position] = vector
        return output

    def set(self, rows: Sequence[tuple[int, int, torch.Tensor]]) -> None:
        """Set the (batch row, position, vector)."""
        self._rows = list(rows)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """n prompts: ``context`` [n, 77, w₁+w₂], ``pooled`` [n, p]."""

    context: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt's embeddings, warnings, trigger words."""

    embeddings: Embeddings
    warnings: tuple[str, ...]
    seen: frozenset[str]

    @property
    def size_bytes(self) -> int:
        return self.embeddings.context.nbytes + self.embeddings.pooled.nbytes


class TextEncoders:
    """Both text encoders, bound to the working weights."""

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module) -> None:
        self._modules: dict[Component, CLIPTextModel] = {
            "text_encoder": first,
            "text_encoder_2": second,
        }
        self._prompts = PromptTokenizer()
        self._hooks = {
            component: TokenEmbeddingHook(token_embedding(module))
            for component, module in self._modules.items()
        }

    @torch.inference_mode()
    def encode(
        self, texts: Mapping[Component, str], inversions: Mapping[str, Inversion]
    ) -> Encoded:
        """Return both penultimate hidden states and the second's pooled projection (Podell et al.
        2023, section 2.1)."""
        contexts: list[torch.Tensor] = []
        warnings: list[str] = []
        seen: set[str] = set()
        pooled: torch.Tensor | None = None
        for component, module in self._modules.items():
            sizes = {
                word: len(inv.vectors[component])
                for word, inv in inversions.items()
                if component in inv.vectors
            }
            tokens = self._prompts.tokenize(texts[component], component, sizes)
            if tokens.dropped:
                warnings.append(
                    f"{component}: the prompt is {tokens.dropped} tokens too long; "
                    f"those past {_MAX_BODY_TOKENS} were dropped"
                )
            seen.update(word for _, word, _ in tokens.vectors)
            rows = [
                (0, position, inversions[word].vectors[component][index])
                for position, word, index in tokens.vectors
            ]
            hook = self._hooks[component]
            hook.set(rows)
            try:
                device = next(module.parameters()).device
                ids = to_device(torch.tensor([tokens.ids]), device)
                output = module(ids, output_hidden_states=True)
            finally:
                hook.set([])
            contexts.append(output.hidden_states[-2])
            if component == "text_encoder_2":
                pooled = output.text_embeds
        assert pooled is not None
        embeddings = Embeddings(torch.cat(contexts, dim=-1), pooled)
        return Encoded(embeddings, tuple(dict.fromkeys(warnings)), frozenset(seen))


def token_embedding(module: CLIPTextModel) -> torch.nn.Module:
    """Return the token embedding, for any version of transformers."""
    inner = getattr(module, "text_model", module)
    embedding: torch.nn.Module = inner.embeddings.token_embedding
    return embedding
