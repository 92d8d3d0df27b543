"""The judge: recognizes shape and colours of a tiny world's image.

Colours are measured. A small network, trained on renders, classifies the shape from distances to
the background: it cannot use colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from benchmarks.miniature.training import TrainingPlan, batches, train
from benchmarks.miniature.world import PALETTE, SHAPES, SIDE, random_scene, render

JUDGED = (*SHAPES, "heart")
WEIGHTS = Path(__file__).parent / "judge.safetensors"
PLAN = TrainingPlan(steps=1500, rate=4e-3, weight_decay=1e-3)
_POOL, _BATCH = 6000, 64
_FRAME = 8
#: Minimum RGB distance from the background.
_APART = 45.0
_COLOURS = torch.tensor(list(PALETTE.values()), dtype=torch.float32)
_NAMES = tuple(PALETTE)


@dataclass(frozen=True, slots=True)
class Seen:
    """The recognized content of one image."""

    background: str
    colour: str
    shape: str


def frame(images: torch.Tensor) -> torch.Tensor:
    """Return the outermost pixels, (n, pixels, 3) float."""
    p = images.float()
    edges = (p[..., :_FRAME, :], p[..., -_FRAME:, :], p[..., :_FRAME], p[..., -_FRAME:])
    return torch.cat([edge.flatten(2) for edge in edges], dim=2).transpose(1, 2)


def departures(images: torch.Tensor) -> torch.Tensor:
    """Return RGB distances from the background, (n, SIDE, SIDE)."""
    ground = frame(images).median(dim=1).values[:, :, None, None]
    return (images.float() - ground).square().sum(dim=1).sqrt()


def _nearest(colour: torch.Tensor) -> str:
    return _NAMES[int((_COLOURS - colour).square().sum(dim=1).argmin())]


class ShapeNet(torch.nn.Module):
    """(n, 1, 64, 64) departures, 0–1 → scores of ``JUDGED``."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48, 64)
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.out = torch.nn.Linear(64 * 16, len(JUDGED))

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            masks = F.relu(layer(masks))
        scores: torch.Tensor = self.out(masks.flatten(1))
        return scores


def _masks(images: torch.Tensor) -> torch.Tensor:
    """Return departures at half size, 0–1, shape centred and scaled."""
    far = departures(images)
    peak = far.flatten(1).quantile(0.99, dim=1).clamp(min=_APART)
    masks = F.avg_pool2d((far / peak[:, None, None]).clamp(0, 1)[:, None], 2)
    weight = masks.clamp(min=0.3) - 0.3
    total = weight.sum(dim=(2, 3), keepdim=True).clamp(min=1e-3)
    axis = torch.linspace(-1, 1, SIDE // 2)
    y = (weight * axis[:, None]).sum(dim=(2, 3), keepdim=True) / total
    x = (weight * axis[None, :]).sum(dim=(2, 3), keepdim=True) / total
    spread = (weight * ((axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2)).sum(
        dim=(2, 3), keepdim=True
    )
    size = (spread / total).sqrt().clamp(0.1, 0.6) * 2.0
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = size.flatten()
    theta[:, 0, 2], theta[:, 1, 2] = x.flatten(), y.flatten()
    grid = F.affine_grid(theta, list(masks.shape), align_corners=True)
    return F.grid_sample(masks, grid, align_corners=True)


class Judge:
    """The judge with ``train_judge``'s weights."""

    def __init__(self) -> None:
        self._net = ShapeNet()
        self._net.load_state_dict(load_file(WEIGHTS))
        self._net.eval()

    @torch.no_grad()
    def see(self, images: torch.Tensor) -> list[Seen]:
        """Recognize (n, 3, SIDE, SIDE) uint8."""
        shapes = self._net(_masks(images)).argmax(dim=1).tolist()
        grounds = frame(images).median(dim=1).values
        far = departures(images)
        seen = []
        for index, shape in enumerate(shapes):
            inside = far[index] > max(_APART, 0.6 * float(far[index].quantile(0.99)))
            inked = images[index].float()[:, inside]
            colour = inked.median(dim=1).values if inked.numel() else grounds[index]
            seen.append(Seen(_nearest(grounds[index]), _nearest(colour), JUDGED[shape]))
        return seen


def renders(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[Seen]]:
    """Return images (n, 3, SIDE, SIDE) uint8, shape indices (n,), and correct answers."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    truth = []
    for index in range(count):
        scene = random_scene(rng)
        shape = str(rng.choice(JUDGED))
        scene = type(scene)(shape, scene.colour, scene.background, scene.size, scene.place)
        pixels[index] = render(scene, rng)
        truth.append(Seen(scene.background, scene.colour, scene.shape))
    labels = torch.tensor([JUDGED.index(seen.shape) for seen in truth])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, truth


def train_judge(folder: Path, plan: TrainingPlan = PLAN) -> None:
    pool, labels, _ = renders(_POOL, seed=90)
    masks = torch.cat([_masks(part) for part in batches(pool, 200)])
    torch.manual_seed(91)
    net = ShapeNet()

    def loss(_: int) -> torch.Tensor:
        index = torch.randint(_POOL, (_BATCH,))
        batch = masks[index]
        soft = F.avg_pool2d(batch, 3, stride=1, padding=1)  # as soft as generated images
        batch = torch.where(torch.rand(_BATCH, 1, 1, 1) < 0.5, soft, batch)
        batch = batch + 0.06 * torch.rand(_BATCH, 1, 1, 1) * torch.randn_like(batch)
        return F.cross_entropy(net(batch), labels[index], label_smoothing=0.05)

    train("judge", folder, list(net.parameters()), loss, plan)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, WEIGHTS)
