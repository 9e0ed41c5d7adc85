"""Plane shapes anywhere, turned, in any colour, over clutter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from rmtllmf_jax.data.sources.embedded.canvas import (
    Plane,
    any_colours,
    cluttered,
    coverage,
    finish,
    local,
    paint,
    polygon,
    two_colours,
)
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

CONTRAST = 0.5  # least difference in brightness between shape and background
LIGHT = 1.0  # chance that a shape is lighter than the background
CLUTTER = 0.1
SCRAPS = 1  # largest number of small scraps of other colours behind the shape
NOISE = 0.04
RADII = (12.0, 14.0)  # smallest and largest radius of a shape in pixels
TURN = 0.2  # largest turn either way, in radians


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Draw one shape over scraps of other colours."""
    below, colour = two_colours(rng, CONTRAST, LIGHT)
    canvas = cluttered(rng, below, CLUTTER)
    for scrap_colour in any_colours(rng, int(rng.integers(SCRAPS + 1))):
        x, y = SIZE * rng.random(2)
        u, v = local(x, y, rng.uniform(0, np.pi))
        scrap = np.maximum(np.abs(u) - rng.uniform(1, 4), np.abs(v) - rng.uniform(1, 2))
        canvas = paint(canvas, below + 0.4 * (scrap_colour - below), coverage(scrap))
    radius = rng.uniform(*RADII)
    x, y = SIZE / 2 + (SIZE / 2 - radius) * rng.uniform(-1, 1, 2)
    u, v = local(x, y, TURN * rng.uniform(-1, 1))
    distance = radius * tuple(SHAPES.values())[item.label](u / radius, v / radius)
    return finish(paint(canvas, colour, coverage(distance)), rng, NOISE)


def _regular(corners: int, inner: float = 1.0) -> Float[np.ndarray, "n 2"]:
    """Return corners on the unit circle, with others at the radius `inner` in between."""
    count = corners if inner == 1.0 else 2 * corners
    angles = 2 * np.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=-1)


def _heart(u: Plane, v: Plane) -> Plane:
    angles = 2 * np.pi * np.arange(32) / 32
    x = 16 * np.sin(angles) ** 3
    y = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return polygon(u, v, np.stack([x, -y], axis=-1) / 16.0)


def _of(corners: Float[np.ndarray, "n 2"]) -> Callable[[Plane, Plane], Plane]:
    return lambda u, v: polygon(u, v, corners)


_CROSS = [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1]]
_CROSS += [[1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]]
_ARROW = [[0, -10], [8, -1], [3, -1], [3, 10], [-3, 10], [-3, -1], [-8, -1]]

SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.9,
    "square": _of(0.75 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])),
    "triangle": _of(_regular(3)),
    "star": _of(_regular(5, 0.4)),
    "cross": _of(np.array(_CROSS) / 3.0),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.2,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 1.0, 0.8 - np.hypot(u - 0.5, v)),
    "semicircle": lambda u, v: np.maximum(np.hypot(u, v + 0.4) - 1.0, -v - 0.4),
    "heart": _heart,
    "arrow": _of(np.array(_ARROW) / 10.0),
}
"""Class name and signed distance in coordinates where the shape fits into the unit circle."""

TASK = EmbeddedTask(
    name="shapes",
    description=("Rendered: ten plane shapes of random colour, place, turn and size over clutter."),
    classes=tuple(SHAPES),
    draw=draw,
)
