"""How many pips? Dice of one to nine, turned and shifted, in any two colours."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from rmtllmf_jax.data.sources.embedded.canvas import (
    any_colours,
    cluttered,
    coverage,
    finish,
    local,
    paint,
    two_colours,
)
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

CONTRAST = 0.55  # least difference in brightness between pips and die
LIGHT = 1.0  # chance that the pips are lighter than the die
CLUTTER = 0.1
NOISE = 0.04
HALVES = (13.0, 14.5)  # smallest and largest half of a die's side in pixels
PIPS = (0.17, 0.22)  # smallest and largest radius of a pip, in halves of the die's side
SHIFT = 1.0  # largest distance of the die from the centre along each side, in pixels
TURN = 0.1  # largest turn either way, in radians

_APART = 0.58  # between neighbouring pips, in halves of the die's side

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FACES = ("5", "19", "159", "1379", "13579", "134679", "1345679", "12346789", "123456789")
"""Where each face has pips, as on the number pad of a telephone."""


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Draw a die from above; two and three lie on either diagonal, six along either side."""
    half = rng.uniform(*HALVES)
    x, y = SIZE / 2 + SHIFT * rng.uniform(-1, 1, 2)
    u, v = local(x, y, TURN * rng.uniform(-1, 1) + np.pi / 2 * rng.integers(4))
    die, pips = two_colours(rng, CONTRAST, LIGHT)
    canvas = cluttered(rng, any_colours(rng, 1)[0], CLUTTER)
    side = np.maximum(np.abs(u), np.abs(v)) - half
    canvas = paint(canvas, cluttered(rng, die, CLUTTER), coverage(side))
    radius, apart = half * rng.uniform(*PIPS), half * _APART
    for place in _FACES[item.label]:
        row, column = divmod(int(place) - 1, 3)
        away = np.hypot(u - apart * (column - 1), v - apart * (row - 1))
        canvas = paint(canvas, pips, coverage(away - radius))
    return finish(canvas, rng, NOISE)


TASK = EmbeddedTask(
    name="counts",
    description=(
        "Rendered: dice with one to nine pips, turned and shifted, in random colours; the class is "
        "the number."
    ),
    classes=tuple(f"die showing {number}" for number in _NUMBERS),
    draw=draw,
)
