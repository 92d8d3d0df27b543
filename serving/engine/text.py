"""Text encoding: weighted prompts of any length, with textual inversions.

Placeholder tokens, one per vector, replace a trigger word; after the embedding lookup the vectors
replace their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from assets.content import Component
from serving.engine.chunks import CHUNK_TOKENS, Chunk, Fitted, Token, Unit, fit
from serving.engine.devices import to_device
from serving.engine.values import Inversion
from serving.engine.vocabulary import MAX_TOKENS, tokenizer
from serving.generation.prompts import PromptPiece, Section
from serving.generation.words import split

if TYPE_CHECKING:
    from transformers import CLIPTextModel


#: Token id of placeholders; not the highest, which marks the prompt's end.
_PLACEHOLDER = 0
#: The last hidden states but one, which SDXL was trained with. A1111 counts its clip skip from
#: there, too: 1 and 2 are the same.
DEFAULT_CLIP_SKIP = 2


class PromptTokenizer:
    """The tokenizer of both encoders."""

    def __init__(self) -> None:
        self._tokenizer = tokenizer()
        self._start = self._tokenizer.bos_token_id
        self._end = self._tokenizer.eos_token_id
        self._pads: Mapping[Component, int] = {"text_encoder": self._end, "text_encoder_2": 0}

    def tokenize(self, sections: Sequence[Section], sizes: Mapping[str, int]) -> Fitted:
        """``sizes``: trigger word → number of vectors."""
        return fit([list(self._units(section, sizes)) for section in sections])

    def first_chunk(self, text: str, sizes: Mapping[str, int]) -> Chunk:
        """Return the first chunk of a text without syntax."""
        return self.tokenize([(PromptPiece(text),)], sizes).chunks[0]

    def _units(self, section: Section, sizes: Mapping[str, int]) -> Sequence[Unit]:
        units: list[Unit] = []
        for phrase, piece in enumerate(section):
            origin = (piece.style, phrase) if piece.style else ("", -1)
            units += [Unit(tokens, *origin) for tokens in self._tokens(piece, sizes)]
        return units

    def _tokens(self, piece: PromptPiece, sizes: Mapping[str, int]) -> Sequence[tuple[Token, ...]]:
        found: list[tuple[Token, ...]] = []
        for text, is_trigger in split(piece.text, sizes):
            if is_trigger:
                vectors = ((text, index) for index in range(sizes[text]))
                found.append(tuple(Token(_PLACEHOLDER, piece.weight, each) for each in vectors))
            else:
                # Not verbose: it warns of more than 77 tokens, which chunks are for.
                ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                found += [(Token(each, piece.weight),) for each in ids]
        return found

    def ids(self, chunk: Chunk, component: Component) -> list[int]:
        """Return a chunk's 77 ids."""
        padding = [self._pads[component]] * (CHUNK_TOKENS - len(chunk))
        return [self._start, *(token.id for token in chunk), self._end, *padding]


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
    """n prompts of k chunks: ``context`` [n, 77 k, w₁+w₂], ``pooled`` [n, p]."""

    context: torch.Tensor
    pooled: torch.Tensor

    @property
    def chunks(self) -> int:
        return self.context.shape[1] // MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt's embeddings, warnings, trigger words."""

    embeddings: Embeddings
    warnings: tuple[str, ...]
    seen: frozenset[str]

    @property
    def size_bytes(self) -> int:
        return self.embeddings.context.nbytes + self.embeddings.pooled.nbytes


#: What both encoders read.
Wording = Mapping[Component, Sequence[Section]]


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
        self,
        wording: Wording,
        inversions: Mapping[str, Inversion],
        clip_skip: int = DEFAULT_CLIP_SKIP,
    ) -> Encoded:
        """Return both hidden states, ``clip_skip`` from the last, and the second's pooled
        projection (Podell et al. 2023, section 2.1) of the first chunk, without weights."""
        fitted: dict[Component, Fitted] = {}
        warnings: dict[str, None] = {}
        for component in self._modules:
            sizes = {
                word: len(inversion.vectors[component])
                for word, inversion in inversions.items()
                if component in inversion.vectors
            }
            fitted[component] = self._prompts.tokenize(wording[component], sizes)
            warnings |= dict.fromkeys(_warnings(fitted[component]))
        count = max(len(each.chunks) for each in fitted.values())
        contexts: list[torch.Tensor] = []
        seen: set[str] = set()
        pooled: torch.Tensor | None = None
        for component, module in self._modules.items():
            empty: tuple[Chunk, ...] = ((),)
            chunks = fitted[component].chunks
            chunks += empty * (count - len(chunks))
            seen.update(t.vector[0] for chunk in chunks for t in chunk if t.vector)
            layers = module.config.num_hidden_layers
            if clip_skip > layers:
                warnings[f"clip_skip {clip_skip} is lowered to the {layers} layers of {component}"]\
                    = None  # fmt: skip
            hidden, projected = self._run(component, chunks, inversions, min(clip_skip, layers))
            contexts.append(hidden)
            if component == "text_encoder_2":
                pooled = projected
        assert pooled is not None
        embeddings = Embeddings(torch.cat(contexts, dim=-1), pooled)
        return Encoded(embeddings, tuple(warnings), frozenset(seen))

    def _run(
        self,
        component: Component,
        chunks: Sequence[Chunk],
        inversions: Mapping[str, Inversion],
        clip_skip: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weighted hidden states [1, 77 k, w] and the first chunk's projection."""
        module = self._modules[component]
        hook = self._hooks[component]
        hook.set(
            [
                (row, position, inversions[word].vectors[component][index])
                for row, chunk in enumerate(chunks)
                for position, token in enumerate(chunk, start=1)
                if token.vector
                for word, index in (token.vector,)
            ]
        )
        try:
            device = next(module.parameters()).device
            ids = [self._prompts.ids(chunk, component) for chunk in chunks]
            output = module(to_device(torch.tensor(ids), device), output_hidden_states=True)
        finally:
            hook.set([])
        hidden = output.hidden_states[-max(clip_skip, DEFAULT_CLIP_SKIP)]
        hidden = torch.cat(
            [_weighted(row, chunk) for row, chunk in zip(hidden, chunks, strict=True)]
        )
        return hidden[None], output.text_embeds[:1] if component == "text_encoder_2" else None


def _weighted(hidden: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """Weigh one chunk's hidden states [77, w] and restore their mean, as A1111 ("Original")."""
    if all(token.weight == 1.0 for token in chunk):
        return hidden
    padding = [1.0] * (CHUNK_TOKENS - len(chunk) + 1)
    weights = torch.tensor([1.0, *(token.weight for token in chunk), *padding])
    weighed = hidden.float() * to_device(weights, hidden.device)[:, None]
    ratio = hidden.float().mean() / weighed.mean()
    # A mean near zero has no meaning as a scale.
    ratio = torch.where(ratio.isfinite() & (ratio.abs() < _MAX_RATIO), ratio, 1.0)
    return (weighed * ratio).to(hidden.dtype)


_MAX_RATIO = 100.0


def _warnings(fitted: Fitted) -> Sequence[str]:
    warnings = []
    if fitted.shortened:
        styles = ", ".join(fitted.shortened)
        warnings.append(f"the prompt is too long for all of its style: shortened: {styles}")
    if fitted.dropped:
        room = len(fitted.chunks) * CHUNK_TOKENS
        warnings.append(
            f"the prompt is {fitted.dropped} tokens too long; those past {room} were dropped"
        )
    return warnings


def token_embedding(module: CLIPTextModel) -> torch.nn.Module:
    """Return the token embedding, for any version of transformers."""
    inner = getattr(module, "text_model", module)
    embedding: torch.nn.Module = inner.embeddings.token_embedding
    return embedding
