"""The report of a file's inspection, kept with the asset."""

from __future__ import annotations

from typing import TypedDict

from assets.content import Component
from assets.prediction import PredictionReport


class EffectReport(TypedDict, total=False):
    """An asset's effect on a test image; ``why`` it is unknown."""

    rms: float | None
    finite: bool
    changes_picture: bool | None
    why: str


class Report(TypedDict, total=False):
    """Each kind of asset has its own entries. ``reasons``: why the file was rejected."""

    kind: str
    family: str
    #: The fingerprint of the model that the file fits.
    fits: str
    evidence: str
    tensors: int
    dtypes: list[str]
    markers: list[str]
    training: dict[str, str]
    source_sha256: str
    reasons: list[str]
    warnings: list[str]
    matched: int
    unmatched: list[str]
    prediction_type: PredictionReport
    effect: EffectReport
    hints: dict[str, object]
    #: Why these hints are guessed.
    hints_evidence: str
    purged: bool
    # checkpoints and VAEs
    tensors_for_the_model: int
    skipped: list[str]
    from_base: list[Component]
    # LoRAs
    modules: int
    matched_by_component: dict[Component, int]
    kinds: list[str]
    ranks: list[int]
    alpha: str
    bundled: dict[str, int]
    largest_change: float
    # inversions
    vectors: int
    encoders: list[str]
