"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from assets.prediction import Prediction

#: Lin et al. 2023, arXiv:2305.08891: without it images of these schedules are overexposed.
GUIDANCE_RESCALE: Mapping[Prediction, float] = {"v_prediction_zero_snr": 0.7}


def guided_prediction(
    without: torch.Tensor, with_prompt: torch.Tensor, scale: float, rescale: float
) -> torch.Tensor:
    """Apply classifier-free guidance to predictions [n, channels, height, width].

    ``rescale``: how far (0..1) standard deviations move towards ``with_prompt``'s.
    """
    guided = without + scale * (with_prompt - without)
    if not rescale:
        return guided
    dims = tuple(range(1, guided.dim()))
    spread = with_prompt.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guided * (rescale * spread + (1 - rescale))
