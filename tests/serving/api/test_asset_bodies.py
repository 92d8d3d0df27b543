"""The bodies of the asset routes: both spellings of the license."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serving.api.dialects.octoai.assets import ChangeAsset, CreateAsset

NEW = {"asset_type": "lora", "name": "style"}


@pytest.mark.parametrize(
    "fields",
    [
        {"license": "CC0"},
        {"licence": "CC0"},
        {"license": "CC0", "licence": "CC0"},
        {"license": None, "licence": "CC0"},
        {"license": "CC0", "licence": None},
    ],
)
def test_both_spellings_of_the_license_are_accepted(fields: dict[str, Any]) -> None:
    assert CreateAsset.model_validate({**NEW, **fields}).license == "CC0"
    assert ChangeAsset.model_validate(fields).license == "CC0"


def test_two_different_licenses_are_refused() -> None:
    both = {"license": "CC0", "licence": "MIT"}
    with pytest.raises(ValidationError, match="differ"):
        CreateAsset.model_validate({**NEW, **both})
    with pytest.raises(ValidationError, match="differ"):
        ChangeAsset.model_validate(both)
