"""What a generated scene is made of, how one is drawn, and how a scene is drawn as pixels.

A scene is a small picture (96 x 96, or larger) with four to eight flat objects on a textured background. Difficulty, in
[0, 1], lowers the contrast of the objects, shrinks them, and strengthens the texture behind them, so that perception,
not only reasoning, decides the answer.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from sparring.types import Box

SIZE = 96
"""Height and width of a scene in pixels."""
GRID = 10
"""Coordinates in the model's descriptions are cells 0 to GRID - 1 across and down."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.18),
    "orange": (0.93, 0.52, 0.12),
    "yellow": (0.90, 0.84, 0.20),
    "green": (0.20, 0.66, 0.26),
    "blue": (0.16, 0.36, 0.86),
    "purple": (0.56, 0.22, 0.74),
    "pink": (0.94, 0.50, 0.70),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "ring")
TEXTURES: tuple[str, ...] = ("plain", "gradient", "clouds", "bands")
UNSEEN_TEXTURES: tuple[str, ...] = ("checks", "rays")
"""Backgrounds of the out-of-distribution split only."""
UNSEEN_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {("red", "ring"), ("yellow", "cross"), ("green", "square"), ("purple", "circle"), ("pink", "triangle")}
)
"""Pairs of colour and shape that appear in the out-of-distribution split only."""

_OVERSAMPLING = 4
_REACH = {"circle": 1.0, "ring": 1.0, "square": 1.16, "triangle": 1.22, "cross": 1.05}
"""How far a shape's furthest corner is from its centre, in radii."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene; lengths in pixels, angle in degrees."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]
    """The colour it is painted in, in [0, 1]: its named colour, jittered and faded towards the background."""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def column(self) -> int:
        """Cell across, 0 (left) to GRID - 1."""
        return int(self.x * GRID / SIZE)

    @property
    def row(self) -> int:
        """Cell down, 0 (top) to GRID - 1."""
        return int(self.y * GRID / SIZE)

    @property
    def box(self) -> Box:
        """Around every pixel that it touches, cut off at the edge of the picture."""
        return self.box_on(SIZE)

    def box_on(self, canvas: int) -> Box:
        """``box`` in the picture that ``render`` draws on such a canvas."""
        moved, reach = self.moved_to(canvas), _REACH[self.shape] * self.radius + 1
        return Box(
            left=max(0.0, moved.x - reach),
            top=max(0.0, moved.y - reach),
            right=min(float(canvas), moved.x + reach),
            bottom=min(float(canvas), moved.y + reach),
            label=self.name,
        )

    def moved_to(self, canvas: int) -> Thing:
        """The object at its place on a canvas of another side, as large as before: its cell stays the same."""
        return replace(self, x=self.x * canvas / SIZE, y=self.y * canvas / SIZE)


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows: the oracle that every answer is computed from."""

    things: tuple[Thing, ...]
    texture: str
    base_rgb: tuple[float, float, float]
    texture_strength: float
    texture_seed: int
    difficulty: float

    @property
    def fingerprint(self) -> int:
        """A stable number of what is where; splits are cut by it, so that no scene can be in two of them."""
        content = ";".join(
            f"{t.name},{t.column},{t.row}" for t in sorted(self.things, key=lambda t: (t.row, t.column, t.name))
        )
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")

    @property
    def in_reading_order(self) -> tuple[Thing, ...]:
        """The objects from top to bottom, left to right within a row of cells."""
        return tuple(sorted(self.things, key=lambda t: (t.row, t.column, t.x)))


def draw_scene(
    rng: np.random.Generator, *, difficulty: float, num_things: tuple[int, int] = (4, 6), unseen: bool = False
) -> Scene:
    """Draw a scene at random.

    Args:
        rng: the only source of randomness.
        difficulty: 0 (large, vivid objects on calm ground) to 1.
        num_things: fewest and most objects, both included.
        unseen: draw textures and colour-shape pairs of the out-of-distribution split.
    """
    base_value = rng.uniform(0.35, 0.65)
    base_rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.15), base_value)
    contrast = max(0.1, 1.0 - difficulty * rng.uniform(0.715, 1.105))
    wanted = int(rng.integers(num_things[0], num_things[1] + 1))
    things: list[Thing] = []
    for _ in range(60):
        if len(things) == wanted:
            break
        radius = max(3.0, rng.uniform(8.0, 10.5) - difficulty * rng.uniform(2.6, 6.5))
        x, y = rng.uniform(radius + 1, SIZE - radius - 1, size=2)
        if any(math.hypot(x - t.x, y - t.y) < radius + t.radius + 3 for t in things):
            continue
        colour, shape = _draw_kind(rng, things, unseen)
        rgb = _paint(rng, colour, base_rgb, contrast)
        things.append(Thing(colour, shape, float(x), float(y), float(radius), float(rng.uniform(-12, 12)), rgb))
    textures = UNSEEN_TEXTURES if unseen else TEXTURES
    return Scene(
        things=tuple(things),
        texture=str(rng.choice(textures)),
        base_rgb=base_rgb,
        texture_strength=float(0.03 + difficulty * rng.uniform(0.026, 0.117)),
        texture_seed=int(rng.integers(2**31)),
        difficulty=difficulty,
    )


def _draw_kind(rng: np.random.Generator, things: list[Thing], unseen: bool) -> tuple[str, str]:
    """Colour and shape; half of the time shared with an object already there, so that counts and look-alikes occur."""
    while True:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        if things and rng.uniform() < 0.5:
            other = things[int(rng.integers(len(things)))]
            if rng.uniform() < 0.5:
                colour = other.colour
            else:
                shape = other.shape
        if unseen or (colour, shape) not in UNSEEN_PAIRS:
            return colour, shape


def _paint(
    rng: np.random.Generator, colour: str, base_rgb: tuple[float, float, float], contrast: float
) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*COLOURS[colour])
    hue = (hue + rng.normal(0.0, 0.012)) % 1.0
    value = min(1.0, max(0.0, value + rng.uniform(-0.05, 0.05)))
    full = colorsys.hsv_to_rgb(hue, saturation, value)
    red, green, blue = (base + contrast * (channel - base) for base, channel in zip(base_rgb, full, strict=True))
    return red, green, blue


def render(scene: Scene, *, grain: float = 0.0, canvas: int = SIZE) -> Tensor:
    """The picture of a scene: uint8, shape (3, canvas, canvas).

    Args:
        grain: standard deviation of the noise of the camera, in [0, 1] pixel units, >= 0.
        canvas: side of the picture in pixels, >= SIZE. Objects keep their size and move apart, so that every answer
            stays what it was.
    """
    ground = np.asarray(scene.base_rgb)[None, None] + scene.texture_strength * _texture(scene, canvas)[..., None]
    picture = Image.fromarray((np.clip(ground, 0, 1) * 255).round().astype(np.uint8), "RGB")
    for thing in scene.things:
        draw_thing(picture, thing.moved_to(canvas))
    pixels = np.array(picture)
    if grain:
        noise = np.random.default_rng((scene.texture_seed, 1)).normal(0.0, 255 * grain, pixels.shape)
        pixels = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _texture(scene: Scene, canvas: int) -> NDArray[np.float64]:
    """A pattern around 0, mostly in [-1, 1], shape (canvas, canvas).

    Nothing in it is finer than about four pixels: to a model trained on these, pixel noise stays foreign.
    """
    rng = np.random.default_rng(scene.texture_seed)
    y, x = np.mgrid[0:canvas, 0:canvas] / canvas - 0.5
    angle, phase = rng.uniform(0, 2 * math.pi, size=2)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    match scene.texture:
        case "plain":
            return np.zeros((canvas, canvas))
        case "gradient":
            return 2 * along
        case "clouds":
            cells = int(rng.integers(5, 17))
            coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
            return np.asarray(
                Image.fromarray(coarse, "F").resize((canvas, canvas), Image.Resampling.BICUBIC), np.float64
            )
        case "bands":
            return np.sin(2 * math.pi * rng.uniform(2, 8) * along + phase)
        case "checks":
            frequency = rng.uniform(3, 7)
            return np.sign(np.sin(2 * math.pi * frequency * along + phase) * np.sin(2 * math.pi * frequency * across))
        case "rays":
            return np.sin(rng.integers(6, 13) * np.arctan2(y - rng.uniform(-0.5, 0.5), x - rng.uniform(-0.5, 0.5)))
    raise ValueError(f"unknown texture {scene.texture!r}: one of {TEXTURES + UNSEEN_TEXTURES}")


def draw_thing(picture: Image.Image, thing: Thing) -> None:
    """Paint an object onto an RGB picture, with smooth edges; ``x``, ``y`` and ``radius`` in the picture's pixels."""
    mask, (left, top) = mask_of(thing)
    colour = tuple(round(255 * channel) for channel in thing.rgb)
    picture.paste(colour, (left, top, left + mask.width, top + mask.height), mask)


def mask_of(thing: Thing) -> tuple[Image.Image, tuple[int, int]]:
    """How far an object fills each pixel around it, 0 to 255 (mode L), and where the mask's left top corner lies."""
    left, top = math.floor(thing.x - thing.radius) - 1, math.floor(thing.y - thing.radius) - 1
    side = math.ceil(2 * thing.radius) + 4
    mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    _draw_shape(
        ImageDraw.Draw(mask),
        thing.shape,
        ((thing.x - left) * _OVERSAMPLING, (thing.y - top) * _OVERSAMPLING),
        thing.radius * _OVERSAMPLING,
        math.radians(thing.angle),
    )
    return mask.reduce(_OVERSAMPLING), (left, top)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float, angle: float
) -> None:
    x, y = centre

    def polygon(corners: list[tuple[float, float]]) -> None:
        """Corners in units of the radius, turned by the angle."""
        cos, sin = math.cos(angle), math.sin(angle)
        draw.polygon(
            [(x + radius * (u * cos - v * sin), y + radius * (u * sin + v * cos)) for u, v in corners], fill=255
        )

    match shape:
        case "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        case "ring":
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius), outline=255, width=max(1, round(radius * 0.4))
            )
        case "square":
            polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])
        case "triangle":
            polygon([(0, -1), (0.95, 0.75), (-0.95, 0.75)])
        case "cross":
            polygon([(-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)])
            polygon([(-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)])
        case _:
            raise ValueError(f"unknown shape {shape!r}: one of {SHAPES}")
