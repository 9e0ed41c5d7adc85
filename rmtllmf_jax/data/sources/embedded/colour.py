"""Random colours and backgrounds that rendered tasks share."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.data.sources.embedded.canvas import Canvas
from rmtllmf_jax.data.sources.embedded.task import SIZE

_GREY = np.array([0.299, 0.587, 0.114])
_PAIRS = 64

Numbers = float | Float[np.ndarray, "*shape"]


def hsv(hue: Numbers, saturation: Numbers, value: Numbers) -> Float[np.ndarray, "*shape 3"]:
    """Return RGB in [0, 1] of a hue in turns (0 is red, 1/3 green), saturation and value."""
    hue, saturation, value = (np.asarray(part)[..., None] for part in (hue, saturation, value))
    place = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    return value - value * saturation * np.clip(np.minimum(place, 4.0 - place), 0.0, 1.0)


def any_colours(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 3"]:
    """Return RGB in [0, 1], every hue, from pale to full and from dark to bright."""
    hue, saturation, value = rng.random((3, count))
    return hsv(hue, saturation, 0.15 + 0.85 * value)


def brightness(colour: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape"]:
    """Return the luma of RGB (Rec. 601)."""
    return np.asarray(colour @ _GREY)


def two_colours(
    rng: np.random.Generator, contrast: float, light: float = 0.5
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Return the colours of a background and of its foreground.

    They differ in brightness by at least `contrast`, which must be below 0.8; `light` is the
    probability that the background is the darker one.
    """
    pairs = any_colours(rng, 2 * _PAIRS).reshape(_PAIRS, 2, 3)
    pairs[-1] = [[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]]  # in case no other pair has the contrast
    apart = brightness(pairs[:, 1]) - brightness(pairs[:, 0])
    chosen = int(np.argmax(np.abs(apart) >= contrast))
    first, second = pairs[chosen]
    dark, bright = (first, second) if apart[chosen] > 0 else (second, first)
    return (dark, bright) if rng.random() < light else (bright, dark)


def smooth(
    rng: np.random.Generator, cells: int, count: int = 1
) -> Float[np.ndarray, "32 32 count"]:
    """Return smooth random fields in [0, 1]: `cells` + 1 values per side, interpolated."""
    weights = _interpolation(cells)
    fields = weights @ rng.random((count, cells + 1, cells + 1)) @ weights.T
    return fields.transpose(1, 2, 0)


def cluttered(rng: np.random.Generator, base: Float[np.ndarray, "3"], amount: float) -> Canvas:
    """Return a background around a colour: smooth patches and a gradient in brightness and hue.

    `amount` is the largest deviation of patches from the colour, in [0, 1].
    """
    grey = smooth(rng, 3) + 0.5 * smooth(rng, 8) - 0.75
    tint = smooth(rng, 2, 3) - 0.5
    return np.clip(base + amount * (grey + 0.5 * tint), 0.0, 1.0)


@cache
def _interpolation(cells: int) -> Float[np.ndarray, "32 values"]:
    """Return the weights of `cells` + 1 values on a line at each pixel (Perlin's smoothstep)."""
    places = np.linspace(0.0, cells, SIZE)
    left = np.minimum(places.astype(int), cells - 1)
    part = places - left
    part = part * part * (3.0 - 2.0 * part)
    weights = np.zeros((SIZE, cells + 1))
    weights[np.arange(SIZE), left] = 1.0 - part
    weights[np.arange(SIZE), left + 1] = part
    return weights
