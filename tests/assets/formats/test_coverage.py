"""The used share of a file, as shown in responses."""

from __future__ import annotations

import pytest

from assets.asset import Asset, AssetKind
from assets.formats.coverage import coverage_warning, owner_warnings
from assets.report import Report


@pytest.mark.parametrize(
    ("kind", "report", "warnings"),
    [
        ("lora", {"modules": 737, "matched": 737}, ()),
        ("lora", {"modules": 737, "matched": 1, "unmatched": ["a", "b", "c", "d"]},
         ("1 of its 737 modules are used (1 %); not used, for example: 'a', 'b', 'c'",)),
        ("lora", {"modules": 1000, "matched": 999, "unmatched": ["a"]},
         ("999 of its 1000 modules are used (99 %); not used, for example: 'a'",)),
        ("checkpoint", {"matched": 5, "tensors_for_the_model": 5}, ()),
        ("checkpoint", {"matched": 4, "tensors_for_the_model": 8, "unmatched": ["te.x"],
                        "from_base": ["text_encoder", "vae"]},
         ("4 of its 8 tensors are used (50 %); not used, for example: 'te.x'",
          "it contains no text_encoder, vae: the base model's is used")),
        ("checkpoint", {"matched": 5}, ()),  # recorded before the total was
        ("textual_inversion", {"vectors": 2}, ()),
        ("lora", {"modules": 1, "matched": 1, "warnings": ["careful"]}, ("careful",)),
        ("checkpoint",
         {"prediction_type": {"value": "v_prediction", "source": "tensor 'v_pred'",
                              "contradicted_by": ["metadata prediction_type"]}},
         ("its prediction type is v_prediction (tensor 'v_pred'); contradicted by "
          "metadata prediction_type",)),
    ],
)  # fmt: skip
def test_warnings_for_the_owner(kind: AssetKind, report: Report, warnings: tuple[str]) -> None:
    assert owner_warnings(kind, report) == warnings


def test_responses_state_the_share_and_no_private_names() -> None:
    report = Report(modules=100, matched=1, unmatched=["secret_project"])
    asset = Asset("a", "t", "o", "n", "lora", 0.0, report=report)
    warning = coverage_warning(asset, "commons:n")
    assert warning == "'commons:n': 1 of its 100 modules are used (1 %)"
    whole = Asset("a", "t", "o", "n", "lora", 0.0, report={"modules": 1, "matched": 1})
    assert coverage_warning(whole, "n") is None
