"""Drawing on a 32 x 32 canvas of floats in [0, 1]: coverage, paint, noise, colours, backgrounds.

Everything is NumPy in float64, rounded once at the end, so that the bytes do not depend on the
version of a drawing library. Distances are signed, in pixels, negative inside.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from rmtllmf_jax.data.sources.embedded.task import SIZE

Plane = Float[np.ndarray, "h w"]
Canvas = Float[np.ndarray, "32 32 3"]
Numbers = float | Float[np.ndarray, "*shape"]

_GREY = np.array([0.299, 0.587, 0.114])
_PAIRS = 64


def local(
    x: float = SIZE / 2, y: float = SIZE / 2, angle: float = 0.0, samples: int = 1
) -> tuple[Plane, Plane]:
    """Return the pixels' coordinates (u to the right, v down) around a point, in pixels.

    `angle` rotates the drawing clockwise, in radians. With more than one of `samples` along each
    side of a pixel, the drawing is finer and `shrink` averages it.
    """
    places = (np.arange(SIZE * samples) + 0.5) / samples
    across, down = places[None, :] - x, places[:, None] - y
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * across + sine * down, cosine * down - sine * across


def shrink(
    drawing: Float[np.ndarray, "h w channels"], samples: int
) -> Float[np.ndarray, "32 32 channels"]:
    """Average the samples of each pixel."""
    return drawing.reshape(SIZE, samples, SIZE, samples, -1).mean(axis=(1, 3))


def sample(
    face: Float[np.ndarray, "rows columns channels"], across: Plane, down: Plane
) -> Float[np.ndarray, "h w channels"]:
    """Sample a face bilinearly at positions from 0 to 1; it is 0 outside."""
    rows, columns, channels = face.shape
    padded = np.zeros((rows + 2, columns + 2, channels))
    padded[1:-1, 1:-1] = face
    x = np.clip(across * columns + 0.5, 0.0, columns + 1.0)
    y = np.clip(down * rows + 0.5, 0.0, rows + 1.0)
    left, top = np.minimum(x.astype(int), columns), np.minimum(y.astype(int), rows)
    to_right, to_bottom = (x - left)[..., None], (y - top)[..., None]
    pixels = padded.reshape(-1, channels)
    corner = top * (columns + 2) + left
    upper = (1.0 - to_right) * pixels.take(corner, axis=0)
    upper += to_right * pixels.take(corner + 1, axis=0)
    corner += columns + 2
    lower = (1.0 - to_right) * pixels.take(corner, axis=0)
    lower += to_right * pixels.take(corner + 1, axis=0)
    return upper + to_bottom * (lower - upper)


def blur(canvas: Canvas, width: float) -> Canvas:
    """Blur with a Gaussian of a standard deviation in pixels; the edge is repeated."""
    apart = np.arange(SIZE)[:, None] - np.arange(-SIZE, 2 * SIZE)[None, :]
    weights = np.exp(-0.5 * (apart / max(width, 1e-3)) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    kernel = weights[:, SIZE : 2 * SIZE].copy()
    kernel[:, 0] += weights[:, :SIZE].sum(axis=1)
    kernel[:, -1] += weights[:, 2 * SIZE :].sum(axis=1)
    return (kernel @ canvas.transpose(2, 0, 1) @ kernel.T).transpose(1, 2, 0)


def coverage(distance: Plane) -> Plane:
    """Return the fraction of each pixel that is inside, from signed distances."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def polygon(u: Plane, v: Plane, corners: Float[np.ndarray, "n 2"]) -> Plane:
    """Return the signed distance to a simple polygon, by the even-odd rule for the sign."""
    ends = np.roll(corners, -1, axis=0)
    nearest = np.full(u.shape, np.inf)
    inside = np.zeros(u.shape, bool)
    for (x, y), (to_x, to_y) in zip(corners, ends, strict=True):
        edge_x, edge_y, across, down = to_x - x, to_y - y, u - x, v - y
        along = (across * edge_x + down * edge_y) / (edge_x**2 + edge_y**2)
        along = np.clip(along, 0.0, 1.0)
        square = (across - along * edge_x) ** 2 + (down - along * edge_y) ** 2
        nearest = np.minimum(nearest, square)
        if to_y != y:
            crosses = (y > v) != (to_y > v)
            inside ^= crosses & (across < down / edge_y * edge_x)
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)


def paint(canvas: Canvas, colour: Float[np.ndarray, "3"] | Canvas, alpha: Plane) -> Canvas:
    """Return the canvas with a colour, or another canvas, laid over it."""
    return canvas + alpha[..., None] * (colour - canvas)


def finish(canvas: Canvas, rng: np.random.Generator, noise: float) -> UInt8[np.ndarray, "32 32 3"]:
    """Add sensor noise of a standard deviation (in [0, 1]) and round to bytes."""
    noisy = canvas + noise * rng.standard_normal(canvas.shape)
    return np.rint(255.0 * np.clip(noisy, 0.0, 1.0)).astype(np.uint8)


def hsv(hue: Numbers, saturation: Numbers, value: Numbers) -> Float[np.ndarray, "*shape 3"]:
    """Return RGB in [0, 1] of a hue in turns (0 is red, 1/3 green), saturation and value."""
    hue, saturation, value = (np.asarray(part)[..., None] for part in (hue, saturation, value))
    place = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    return value - value * saturation * np.clip(np.minimum(place, 4.0 - place), 0.0, 1.0)


def any_colours(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 3"]:
    """Return RGB in [0, 1] of any hue, from pale to saturated and from dark to bright."""
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
