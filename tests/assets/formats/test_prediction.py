"""Checkpoints' prediction types: sources, precedence, refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from assets.content import content_key
from assets.errors import IngestRejected
from assets.families.sdxl import SDXL_SCHEDULE
from assets.formats.prediction_source import find_prediction, prediction_of_scheduler
from assets.formats.tensors import TensorFile
from assets.ingest.convert import with_owners_prediction
from assets.prediction import PREDICTIONS, PredictionReport, key_suffix, prediction_of
from assets.report import Report

EMPTY, ONE = torch.tensor([]), torch.tensor(1.0)
#: ᾱ of SDXL's and of a zero-terminal-SNR schedule.
ALPHAS = torch.linspace(0.9991, 0.0047, 1000)
ZERO = torch.linspace(0.9991, 0.0, 1000)


def detect(
    folder: Path,
    tensors: Mapping[str, torch.Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[str, str, tuple[str, ...]]:
    path = folder / "x.safetensors"
    all_tensors = {"w": ONE, **(tensors or {})}
    save_file({n: t.clone() for n, t in all_tensors.items()}, path, dict(metadata or {}))
    with TensorFile(path) as file:
        predicts = find_prediction(file)
    return predicts.value, predicts.source, predicts.contradicted_by


@pytest.mark.parametrize(
    ("tensors", "metadata", "value", "source"),
    [
        ({}, {}, "epsilon", "nothing says otherwise"),
        ({"alphas_cumprod": ALPHAS}, {}, "epsilon", "nothing says otherwise"),
        ({"v_pred": EMPTY}, {}, "v_prediction", "tensor 'v_pred'"),
        ({"v_pred": ONE}, {}, "v_prediction", "tensor 'v_pred'"),
        ({"model.diffusion_model.v_pred": EMPTY}, {}, "v_prediction", "tensor 'v_pred'"),
        ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, "v_prediction_zero_snr",
         "tensor 'v_pred', tensor 'ztsnr'"),
        ({"ztsnr": EMPTY}, {"prediction_type": "v"}, "v_prediction_zero_snr",
         "metadata prediction_type, tensor 'ztsnr'"),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction",
         "metadata modelspec.prediction_type"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon",
         "metadata modelspec.prediction_type"),
        ({}, {"prediction_type": "V_Prediction"}, "v_prediction", "metadata prediction_type"),
        ({}, {"prediction_type": "v", "zsnr": "True"}, "v_prediction_zero_snr",
         "metadata prediction_type, metadata zsnr"),
        ({}, {"ss_v_parameterization": "True"}, "v_prediction", "metadata ss_v_parameterization"),
        ({"alphas_cumprod": ZERO}, {}, "v_prediction_zero_snr",
         "tensor 'alphas_cumprod' ends in zero"),
        ({}, {"scheduler_config": json.dumps({"prediction_type": "v_prediction"})},
         "v_prediction", "scheduler_config.json"),
    ],
)  # fmt: skip
def test_every_source_is_read(
    tmp_path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    value: str,
    source: str,
) -> None:
    assert detect(tmp_path, tensors, metadata) == (value, source, ())


def test_precedence_of_sources_that_disagree(tmp_path: Path) -> None:
    v, epsilon = {"v_pred": EMPTY}, {"modelspec.prediction_type": "epsilon"}
    marker = ("v_prediction", "tensor 'v_pred'", ("metadata modelspec.prediction_type",))
    assert detect(tmp_path, v, epsilon) == marker
    # Zero terminal SNR excludes epsilon.
    assert detect(tmp_path, {"ztsnr": EMPTY}, epsilon)[0] == "v_prediction_zero_snr"
    scheduler = {"scheduler_config": json.dumps({"prediction_type": "epsilon"})}
    assert detect(tmp_path, {}, {**scheduler, "prediction_type": "v"})[:2] == (
        "epsilon", "scheduler_config.json",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"edm_mean": ONE, "edm_std": ONE}, {}, "'EDM' .tensor 'edm_mean'"),
        ({"edm_vpred.sigma_max": ONE}, {}, "EDM"),
        ({}, {"prediction_type": "flow"}, "'flow' .metadata prediction_type"),
        ({}, {"modelspec.prediction_type": "sample"}, "'sample'"),
        ({}, {"scheduler_config": "[]"}, "not a JSON object"),
        ({}, {"scheduler_config": "[" * 100_000}, "not a JSON object"),
    ],
)
def test_unsupported_types_are_refused_by_name(
    tmp_path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    reason: str,
) -> None:
    with pytest.raises(IngestRejected, match=reason):
        detect(tmp_path, tensors, metadata)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow"),
        ({"prediction_type": "sample"}, "'sample'"),
        ({"beta_end": 0.02}, "beta_end 0.02"),
        ({"beta_schedule": "linear"}, "beta_schedule 'linear'"),
        ({"trained_betas": [0.1]}, "trained_betas"),
    ],
)
def test_unsupported_schedulers_are_refused(config: Mapping[str, Any], reason: str) -> None:
    assert prediction_of_scheduler(SDXL_SCHEDULE).value == "epsilon"
    with pytest.raises(IngestRejected, match=reason):
        prediction_of_scheduler({**SDXL_SCHEDULE, **config})


def test_the_owners_prediction_type_is_set_and_removed() -> None:
    marked = PredictionReport(value="v_prediction", source="tensor 'v_pred'")
    own = PredictionReport(value="epsilon", source="owner")
    report = Report(matched=1, prediction_type=marked)
    declared = with_owners_prediction(report, "epsilon")
    assert declared == {"matched": 1, "prediction_type": {**own, "found": marked}}
    changed = with_owners_prediction(declared, "v_prediction_zero_snr")["prediction_type"]
    assert changed == {"value": "v_prediction_zero_snr", "source": "owner", "found": marked}
    assert with_owners_prediction(declared, None) == report
    # Without a prediction type, and with an unsupported one.
    before = with_owners_prediction({}, "v_prediction")["prediction_type"]
    assert (before["value"], before["found"]["value"]) == ("v_prediction", "epsilon")
    assert with_owners_prediction({}, None) == {}
    alone = Report(prediction_type=own)
    assert with_owners_prediction(alone, "v_prediction")["prediction_type"] == {
        "value": "v_prediction", "source": "owner",
    }  # fmt: skip


def test_keys_carry_the_prediction_type_and_epsilon_adds_no_suffix() -> None:
    """Older keys stay valid."""
    for salt in (None, b"salt"):
        plain = content_key("ab", "unet", "m", salt)
        assert len(plain) == 41
        for prediction in PREDICTIONS:
            key = content_key("ab", "unet", "m", salt, prediction)
            assert key == plain + key_suffix(prediction)
            assert prediction_of(key) == prediction
        assert content_key("ab", "vae", "m", salt, "v_prediction") == content_key(
            "ab", "vae", "m", salt
        )
    assert content_key("ab", "unet", "m", None) == "p68fd74b7c11e534275f1c55a6c9d5171aaa1ae2b"
    with pytest.raises(ValueError, match="unknown prediction type"):
        prediction_of("p" + "0" * 40 + "-x")
