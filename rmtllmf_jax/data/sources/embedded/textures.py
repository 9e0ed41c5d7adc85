"""Regular textures of two colours, with random period, phase, rotation and contrast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from rmtllmf_jax.data.sources.embedded.canvas import (
    Plane,
    cluttered,
    finish,
    local,
    smooth,
    two_colours,
)
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

CONTRAST = 0.5  # least difference in brightness between the two colours
CLUTTER = 0.08
NOISE = 0.04
PERIODS = (8.0, 12.0)  # smallest and largest period in pixels
TURN = 0.1  # largest turn either way, in radians


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Mix two cluttered colours with a texture."""
    period = rng.uniform(*PERIODS)
    x, y = SIZE / 2 + SIZE / 4 * rng.uniform(-1, 1, 2)
    u, v = local(x, y, TURN * rng.uniform(-1, 1))
    level = tuple(TEXTURES.values())[item.label](u / period, v / period, rng)
    share = 0.5 + 0.5 * np.tanh(3.0 * level)
    first, second = (cluttered(rng, colour, CLUTTER) for colour in two_colours(rng, CONTRAST))
    return finish(second + share[..., None] * (first - second), rng, NOISE)


def _wave(x: Plane) -> Plane:
    return np.sin(2 * np.pi * x)


def _dots(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    row = np.floor(v)
    return 6.0 * (0.3 - np.hypot(u + row % 2 / 2 - np.rint(u + row % 2 / 2), v - row - 0.5))


def _bricks(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    row = np.floor(v)
    joint = np.abs(u / 2 + row % 2 / 2 - np.rint(u / 2 + row % 2 / 2)) * 2
    return 6.0 * (0.1 - np.minimum(np.abs(v - np.rint(v)), joint))


def _spots(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    field = smooth(rng, int(rng.integers(5, 10)))[..., 0]
    return 4.0 * (field - np.median(field))


TEXTURES: dict[str, Callable[[Plane, Plane, np.random.Generator], Plane]] = {
    "horizontal stripes": lambda u, v, rng: _wave(v),
    "vertical stripes": lambda u, v, rng: _wave(u),
    "diagonal stripes": lambda u, v, rng: _wave(
        (u + (1.0 if rng.random() < 0.5 else -1.0) * v) / np.sqrt(2)
    ),
    "checkerboard": lambda u, v, rng: 2.0 * _wave(u / 1.5) * _wave(v / 1.5),
    "polka dots": _dots,
    "waves": lambda u, v, rng: _wave(v + 0.3 * _wave(u / 1.5)),
    "diamonds": lambda u, v, rng: 2.0 * _wave((u + 0.6 * v) / 1.5) * _wave((u - 0.6 * v) / 1.5),
    "grid": lambda u, v, rng: (
        6.0 * (0.12 - np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v))))
    ),
    "bricks": _bricks,
    "concentric rings": lambda u, v, rng: _wave(np.hypot(u, v)),
    "rays": lambda u, v, rng: np.sin(
        rng.integers(6, 11) * np.arctan2(v, u) + rng.uniform(0, 2 * np.pi)
    ),
    "camouflage": _spots,
}
"""Class name and level, about -1 to 1, over coordinates in periods."""

TASK = EmbeddedTask(
    name="textures",
    description=(
        "Rendered: twelve textures of two random colours with random period, phase, turn and "
        "contrast."
    ),
    classes=tuple(TEXTURES),
    draw=draw,
)
