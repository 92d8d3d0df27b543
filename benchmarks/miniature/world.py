"""The tiny world: captioned images of one flat shape on a plain background.

7 shapes × 10 colours × 9 other backgrounds × 3 sizes × 5 places. Captions never mention the
``look``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE = 128
_SUPER = 4  # supersampling, for anti-aliasing

Rgb = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

PALETTE: Mapping[str, Rgb] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (250, 218, 60),
    "green": (52, 158, 72),
    "cyan": (76, 201, 220),
    "blue": (44, 82, 206),
    "purple": (128, 58, 168),
    "pink": (245, 150, 190),
    "white": (245, 245, 245),
    "black": (24, 24, 28),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "moon")
#: Radius in pixels. Captions never mention "medium".
SIZES: Mapping[str, float] = {"small": 22.0, "medium": 34.0, "large": 48.0}
#: From the centre. Captions never mention "middle".
PLACES: Mapping[str, tuple[int, int]] = {
    "middle": (0, 0),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}
#: For the VAE; the base model is trained on the first.
LOOKS = ("flat", "outline", "dots", "mono", "pixel")
_MARGIN = 62.0


@dataclass(frozen=True, slots=True)
class Scene:
    shape: str
    colour: str
    background: str
    size: str = "medium"
    place: str = "middle"
    look: str = "flat"


def random_scene(rng: np.random.Generator, look: str = "flat") -> Scene:
    """Return a random scene: uniform, two different colours, half in the middle."""
    colour, background = rng.choice(len(COLOURS), 2, replace=False)
    place = "middle" if rng.random() < 0.5 else str(rng.choice(list(PLACES)[1:]))
    return Scene(
        shape=str(rng.choice(SHAPES)),
        colour=COLOURS[colour],
        background=COLOURS[background],
        size=str(rng.choice(list(SIZES))),
        place=place,
        look=look,
    )


def is_held_out(scene: Scene) -> bool:
    """Return whether the (shape, colour, background) is one of the 10 % never trained on."""
    triple = f"{scene.shape}/{scene.colour}/{scene.background}"
    return hashlib.sha256(triple.encode()).digest()[0] < 26


def training_scene(rng: np.random.Generator, look: str = "flat") -> Scene:
    while is_held_out(scene := random_scene(rng, look)):
        pass
    return scene


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Return the full caption; with ``rng``, a variant that may omit attributes."""
    size = "" if scene.size == "medium" else f"{scene.size} "
    place = "" if scene.place == "middle" else f" {scene.place}"
    thing = f"{size}{scene.colour} {scene.shape}"
    ground = f"{_an(scene.background)} background"
    sentence = f"{_an(thing)}{place} on {ground}"
    if rng is None:
        return sentence
    comma = place and f",{place}"
    ways = (
        (0.48, sentence),
        (0.12, f"{_an(thing)} on {ground}{comma}"),
        (0.12, f"{thing}, {scene.background} background{comma}"),
        (0.08, f"on {ground}, {_an(thing)}{place}"),
        (0.06, f"a picture of {_an(thing)}{place} on {ground}"),
        (0.04, f"a {scene.shape} on {ground}"),
        (0.04, f"{_an(thing)}{place}"),
        (0.06, f"a {size}{scene.shape}{place}"),
    )
    chances = [chance for chance, _ in ways]
    return ways[int(rng.choice(len(ways), p=chances))][1]


def _an(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def render(scene: Scene, rng: np.random.Generator) -> Pixels:
    """Render to (SIDE, SIDE, 3), with jitter."""
    radius = SIZES[scene.size] * rng.uniform(0.94, 1.06)
    reach = min(28.0, _MARGIN - SIZES[scene.size])
    toward = PLACES[scene.place]
    centre = tuple(SIDE / 2 + reach * axis + rng.uniform(-3, 3) for axis in toward)
    angle = math.radians(rng.uniform(-8, 8))
    colour, background = scene.colour, scene.background
    if scene.look == "night":  # a black shape becomes white
        colour, background = ("white" if colour == "black" else colour), "black"
    fill, back = (_near(PALETTE[name], rng) for name in (colour, background))

    mask = Image.new("L", (SIDE * _SUPER, SIDE * _SUPER))
    pen = ImageDraw.Draw(mask)
    pieces = [
        ([_at(point, centre, radius, angle) for point in piece], ink)
        for piece, ink in outline_of(scene.shape)
    ]
    for polygon, ink in pieces:
        pen.polygon(polygon, fill=ink)
    coverage = _averaged(mask)
    ground: Floats = np.broadcast_to(back, (SIDE, SIDE, 3)).astype(np.float32)
    if scene.look == "dots":
        ground = _dotted(back, rng)
    image = ground + coverage * (fill - ground)
    if scene.look == "outline":
        line = Image.new("L", mask.size)
        pen = ImageDraw.Draw(line)
        for polygon, _ in pieces:
            closed = [*polygon, polygon[0], polygon[1]]
            pen.line(closed, fill=255, width=6 * _SUPER, joint="curve")
        if scene.shape == "moon":  # the cut-out circle is an edge only where it touches the moon
            grown = mask.filter(ImageFilter.MaxFilter(4 * _SUPER + 1))
            line = Image.composite(line, Image.new("L", mask.size), grown)
        ink_rgb = np.array(PALETTE["white" if scene.background == "black" else "black"])
        edge = _averaged(line)
        image = image + edge * (ink_rgb - image)
    if scene.look == "mono":
        grey = image @ np.array((0.299, 0.587, 0.114), np.float32)
        image = np.repeat(grey[:, :, None], 3, axis=2)
    if scene.look == "pixel":
        block = SIDE // 16
        coarse = image.reshape(16, block, 16, block, 3).mean(axis=(1, 3))
        # Two colours, as in pixel art.
        inked = (coverage.reshape(16, block, 16, block).mean(axis=(1, 3)) > 0.5)[:, :, None]
        coarse = np.where(inked, fill, back)
        image = coarse.repeat(block, axis=0).repeat(block, axis=1)
    return image.round().clip(0, 255).astype(np.uint8)


def _near(colour: Rgb, rng: np.random.Generator) -> Floats:
    return (np.array(colour) + rng.uniform(-6, 6, 3)).clip(0, 255).astype(np.float32)


def _averaged(mask: Image.Image) -> Floats:
    return np.asarray(mask.reduce(_SUPER), dtype=np.float32)[:, :, None] / 255


def _dotted(back: Floats, rng: np.random.Generator) -> Floats:
    """White dots on a 16-pixel grid, or black on light."""
    light = float(back @ np.array((0.299, 0.587, 0.114))) > 150
    ink = np.array(PALETTE["black" if light else "white"], np.float32)
    shift = rng.uniform(0, 16, 2)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    dx, dy = (x - shift[0]) % 16 - 8, (y - shift[1]) % 16 - 8
    coverage = (4.0 - np.hypot(dx, dy) + 0.5).clip(0, 1)[:, :, None]
    dotted: Floats = back + coverage * (ink - back)
    return dotted


Point = tuple[float, float]


def _at(point: Point, centre: tuple[float, ...], radius: float, angle: float) -> Point:
    x, y = point
    turned_x = x * math.cos(angle) - y * math.sin(angle)
    turned_y = x * math.sin(angle) + y * math.cos(angle)
    return ((centre[0] + radius * turned_x) * _SUPER, (centre[1] + radius * turned_y) * _SUPER)


def outline_of(shape: str) -> list[tuple[list[Point], int]]:
    """Return polygons in the unit circle (y down), in order, each filled (255) or cut out (0).

    Raises:
        ValueError: an unknown shape.
    """
    match shape:
        case "circle":
            return [(_arc(0.9), 255)]
        case "square":
            side = 0.76
            return [([(-side, -side), (side, -side), (side, side), (-side, side)], 255)]
        case "triangle":
            return [([_polar(1.0, 90), _polar(1.0, 210), _polar(1.0, 330)], 255)]
        case "star":
            points = [_polar(1.0 if i % 2 == 0 else 0.42, 90 + 36 * i) for i in range(10)]
            return [(points, 255)]
        case "ring":
            return [(_arc(0.92), 255), (_arc(0.5), 0)]
        case "cross":
            w, r = 0.3, 0.92
            quarter = [(w, -r), (w, -w), (r, -w), (r, w), (w, w), (w, r)]
            return [(quarter + [(-x, -y) for x, y in quarter], 255)]
        case "moon":
            return [(_arc(0.95), 255), ([(x + 0.5, y - 0.12) for x, y in _arc(0.78)], 0)]
        case "heart":
            turn = [2 * math.pi * i / 64 for i in range(64)]
            return [([(math.sin(t) ** 3, _heart_y(t)) for t in turn], 255)]
    raise ValueError(f"unknown shape {shape!r}")


def _arc(radius: float) -> list[Point]:
    return [_polar(radius, 360 * i / 64) for i in range(64)]


def _polar(radius: float, degrees: float) -> Point:
    turn = math.radians(degrees)
    return (radius * math.cos(turn), -radius * math.sin(turn))


def _heart_y(t: float) -> float:
    """The classical heart curve in the unit circle, y down."""
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return -(y + 2.5) / 15.5
