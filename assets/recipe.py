"""A recipe: what a replica must become, by content alone.

Behind the resolver nothing has a name. Two requests whose recipes are equal are
served by the same weights, whoever sent them and whatever they called the assets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from assets.content import Blob, Component
from assets.prediction import Prediction, prediction_of


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA at a weight. The weight is a run-time value and no part of the key.

    ``text_weight`` is that of the text encoders where it is another one; equal to ``weight``
    it is the same recipe as none.
    """

    blob: Blob
    weight: float
    text_weight: float | None = None

    def __post_init__(self) -> None:
        if self.text_weight == self.weight:
            object.__setattr__(self, "text_weight", None)

    def weight_on(self, component: Component) -> float:
        is_text = component in ("text_encoder", "text_encoder_2")
        return self.text_weight if is_text and self.text_weight is not None else self.weight


@dataclass(frozen=True, slots=True, order=True)
class InversionUse:
    """A textual inversion and the trigger word that stands for it in the prompt."""

    blob: Blob
    token: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """The whole of a request's assets in canonical order (LoRAs sorted by key:
    floating-point sums depend on the order of their terms)."""

    unet: Blob
    text_encoder: Blob
    text_encoder_2: Blob
    vae: Blob
    loras: tuple[LoraUse, ...] = field(default=())
    inversions: tuple[InversionUse, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "loras", tuple(sorted(self.loras, key=lambda use: (use.blob, use.weight)))
        )
        object.__setattr__(self, "inversions", tuple(sorted(self.inversions)))

    @property
    def prediction(self) -> Prediction:
        """What its UNet predicts."""
        return prediction_of(self.unet.key)

    def components(self) -> Iterator[tuple[str, Blob]]:
        """The model's four components by name."""
        yield "unet", self.unet
        yield "text_encoder", self.text_encoder
        yield "text_encoder_2", self.text_encoder_2
        yield "vae", self.vae

    def extras(self) -> tuple[Blob, ...]:
        """What comes on top of the model: LoRAs and inversions, once each."""
        wanted = [use.blob for use in self.loras] + [use.blob for use in self.inversions]
        return tuple(dict.fromkeys(wanted))

    def blobs(self) -> tuple[Blob, ...]:
        """Every blob the recipe needs, once each, the model's components first."""
        wanted = [blob for _, blob in self.components()]
        return tuple(dict.fromkeys([*wanted, *self.extras()]))
