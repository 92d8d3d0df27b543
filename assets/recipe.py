"""A recipe: the weights that a request needs, identified by content key and not by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from assets.content import Blob, Component
from assets.prediction import Prediction, prediction_of


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA and its run-time weight, outside the content key. ``text_weight`` is the text
    encoders'; None: as ``weight``."""

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
    """A textual inversion and its trigger word."""

    blob: Blob
    token: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """Blobs in canonical order: LoRAs are sorted, as floating-point sums depend on order."""

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
        return prediction_of(self.unet.key)

    def components(self) -> Iterator[tuple[Component, Blob]]:
        yield "unet", self.unet
        yield "text_encoder", self.text_encoder
        yield "text_encoder_2", self.text_encoder_2
        yield "vae", self.vae

    def extras(self) -> tuple[Blob, ...]:
        """LoRAs and inversions, without duplicates."""
        blobs = [use.blob for use in self.loras] + [use.blob for use in self.inversions]
        return tuple(dict.fromkeys(blobs))

    def blobs(self) -> tuple[Blob, ...]:
        """Without duplicates, the model's components first."""
        components = [blob for _, blob in self.components()]
        return tuple(dict.fromkeys([*components, *self.extras()]))
