"""Which colour covers most of the picture? Noisy fields with gradients and other colours."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from rmtllmf_jax.data.sources.embedded.canvas import Canvas, finish, hsv, paint, smooth
from rmtllmf_jax.data.sources.embedded.task import EmbeddedTask, Item

SHARES = (0.25, 0.45)  # smallest and largest part of the picture that another colour covers
HUE = 0.02  # largest shift of the hue, in turns
GRADIENT = 0.25  # largest change of brightness across the picture
NOISE = 0.12

Range = tuple[float, float]

COLOURS: dict[str, tuple[float, Range, Range]] = {
    "red": (0.0, (0.75, 1.0), (0.65, 1.0)),
    "orange": (0.08, (0.8, 1.0), (0.85, 1.0)),
    "yellow": (0.155, (0.7, 1.0), (0.85, 1.0)),
    "green": (0.35, (0.6, 1.0), (0.4, 0.85)),
    "turquoise": (0.48, (0.6, 0.95), (0.65, 0.95)),
    "blue": (0.62, (0.7, 1.0), (0.55, 1.0)),
    "purple": (0.77, (0.6, 1.0), (0.4, 0.8)),
    "pink": (0.93, (0.25, 0.5), (0.85, 1.0)),
    "brown": (0.065, (0.55, 0.85), (0.3, 0.5)),
    "black": (0.5, (0.0, 0.1), (0.0, 0.15)),
    "grey": (0.5, (0.0, 0.1), (0.4, 0.6)),
    "white": (0.5, (0.0, 0.06), (0.9, 1.0)),
}
"""Class name, hue in turns, and the ranges of saturation and value."""


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Draw a field of the class's colour with patches of another one."""
    others = [label for label in range(len(COLOURS)) if label != item.label]
    other = others[rng.integers(len(others))]
    patches = smooth(rng, 4)[..., 0]
    edge = np.quantile(patches, 1.0 - rng.uniform(*SHARES))
    alpha = np.clip(0.5 + 12.0 * (patches - edge), 0.0, 1.0)
    return finish(paint(_field(item.label, rng), _field(other, rng), alpha), rng, NOISE)


def _field(label: int, rng: np.random.Generator) -> Canvas:
    hue, saturation, value = tuple(COLOURS.values())[label]
    shifted = hue + HUE * rng.uniform(-1, 1)
    colour = hsv(shifted, rng.uniform(*saturation), rng.uniform(*value))
    return colour * (1.0 - GRADIENT * rng.random() * smooth(rng, 2))


TASK = EmbeddedTask(
    name="colours",
    description=(
        "Rendered: noisy fields with gradients and patches of a second colour; the class is the "
        "colour that covers most."
    ),
    classes=tuple(COLOURS),
    draw=draw,
)
