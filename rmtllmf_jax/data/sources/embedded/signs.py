"""Traffic signs at an angle, in varying light, in front of blurred surroundings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from rmtllmf_jax.data.sources.embedded.canvas import (
    Canvas,
    Plane,
    any_colours,
    blur,
    cluttered,
    coverage,
    finish,
    hsv,
    local,
    paint,
    polygon,
    sample,
    shrink,
)
from rmtllmf_jax.data.sources.embedded.letters import letter_face
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

SIDES = (22.0, 29.0)  # smallest and largest side of a sign in pixels
SHIFT = 1.5  # largest distance from the centre along each side, in pixels
PERSPECTIVE = 0.05  # largest shift of each corner of a sign along each side, in its own sides
BLUR = (0.0, 0.6)  # range of the blur in pixels
BRIGHTNESS = (0.5, 1.1)  # range of the light, as a factor
HAZE = 0.2  # largest part of grey haze that is mixed in
THINGS = 3  # largest number of things in the background
NOISE = 0.04

_SAMPLES = 2


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Put a sign in front of a background, then change light, haze, focus and noise."""
    canvas = _surroundings(rng)
    across, down = _face_places(rng)
    seen = shrink(sample(sign_face(tuple(FACES)[item.label]), across, down), _SAMPLES)
    canvas = canvas * (1.0 - seen[..., 3:]) + seen[..., :3]
    canvas = canvas * rng.uniform(*BRIGHTNESS) * (0.9 + 0.2 * rng.random(3))
    haze = HAZE * rng.random()
    canvas = canvas + haze * (rng.uniform(0.3, 0.8) - canvas)
    return finish(blur(canvas, rng.uniform(*BLUR)), rng, NOISE)


def homography(
    corners: Float[np.ndarray, "4 2"], targets: Float[np.ndarray, "4 2"]
) -> Float[np.ndarray, "3 3"]:
    """Return the projective map H, with H_33 = 1, that takes four corners to their targets.

    Hartley and Zisserman, Multiple View Geometry (2004), section 4.1.
    """
    rows, values = [], []
    for (x, y), (s, t) in zip(corners, targets, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -s * x, -s * y], [0, 0, 0, x, y, 1, -t * x, -t * y]]
        values += [s, t]
    solved = np.linalg.solve(np.array(rows), np.array(values))
    return np.append(solved, 1.0).reshape(3, 3)


def _face_places(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Return the position on the face, from 0 to 1, of each sample of the picture."""
    side = rng.uniform(*SIDES)
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    moved = square - 0.5 + PERSPECTIVE * rng.uniform(-1, 1, (4, 2))
    centre = SHIFT * rng.uniform(-1, 1, 2)
    to_face = homography(side * moved + centre, square)
    u, v = local(samples=_SAMPLES)
    across, down, depth = np.einsum("ij,jyx->iyx", to_face, np.stack([u, v, np.ones_like(u)]))
    return across / depth, down / depth


def _surroundings(rng: np.random.Generator) -> Canvas:
    """Return a sky over a ground with blurred objects in front."""
    sky = cluttered(rng, hsv(0.58, rng.uniform(0, 0.5), rng.uniform(0.5, 1)), 0.2)
    ground = cluttered(rng, hsv(rng.uniform(0.08, 0.4), rng.uniform(0, 0.6), rng.random()), 0.4)
    _, below = local(SIZE / 2, rng.uniform(-4, 36), rng.uniform(-0.2, 0.2))
    canvas = paint(sky, ground, coverage(-below))
    for colour in any_colours(rng, int(rng.integers(THINGS + 1))):
        x, y = SIZE * rng.random(2)
        u, v = local(x, y, 0.2 * rng.uniform(-1, 1))
        thing = np.maximum(np.abs(u) - rng.uniform(1, 6), np.abs(v) - rng.uniform(2, 14))
        canvas = paint(canvas, colour, coverage(thing) * rng.uniform(0.4, 1))
    return blur(canvas, rng.uniform(0.5, 1.5))


# Faces, flat and from the front, with transparency around them

SIDE = 64  # side of a face in pixels

Face = Float[np.ndarray, "64 64 4"]
"""RGB times opacity, and opacity, in [0, 1]."""

Layers = list[tuple[tuple[float, float, float], Plane]]
"""From the bottom: colours and the signed distances of their areas."""

RED, BLUE, YELLOW = (0.78, 0.08, 0.12), (0.05, 0.3, 0.7), (0.98, 0.8, 0.1)
WHITE, BLACK = (0.97, 0.97, 0.97), (0.05, 0.05, 0.05)

_FONT = "DejaVuSans-Bold.ttf"
_PIXEL = 2.0 / SIDE  # in the coordinates of a face, which go from -1 to 1

_V, _U = (np.mgrid[:SIDE, :SIDE] + 0.5) * _PIXEL - 1.0

_ARROW = np.array([[0, -6], [5, -1], [2, -1], [2, 6], [-2, 6], [-2, -1], [-5, -1]]) / 10.0
_DANGER = np.array([[0.0, -0.95], [1.0, 0.8], [-1.0, 0.8]])
_DIAMOND = np.array([[0.0, -0.98], [0.98, 0.0], [0.0, 0.98], [-0.98, 0.0]])
_ANGLES = np.pi * (np.arange(8) + 0.5) / 4
_OCTAGON = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)


@cache
def sign_face(name: str) -> Face:
    """Return the face of a class."""
    layers = FACES[name]()
    face = np.zeros((SIDE, SIDE, 4))
    for colour, distance in layers:
        alpha = coverage(distance / _PIXEL)[..., None]
        face = face * (1.0 - alpha) + alpha * np.array([*colour, 1.0])
    return face


def _disc(radius: float) -> Plane:
    return np.hypot(_U, _V) - radius


def _bar(wide: float, high: float, x: float = 0.0, y: float = 0.0) -> Plane:
    return np.maximum(np.abs(_U - x) - wide, np.abs(_V - y) - high)


def _shape(corners: Float[np.ndarray, "n 2"], size: float = 1.0, y: float = 0.0) -> Plane:
    return polygon(_U, _V - y, size * corners)


def _text(text: str, height: float, width: float) -> Plane:
    """Return letters side by side as a distance (exact only near their edges)."""
    ink = np.zeros((SIDE, SIDE))
    step = width / len(text)
    for place, letter in enumerate(text):
        face = letter_face(letter, _FONT)
        x = -width / 2 + (place + 0.5) * step
        across, down = (_U - x) / height + 0.5, _V / height + 0.5
        inside = (across >= 0) & (across < 1) & (down >= 0) & (down < 1)
        column = np.clip((across * face.shape[1]).astype(int), 0, face.shape[1] - 1)
        row = np.clip((down * face.shape[0]).astype(int), 0, face.shape[0] - 1)
        ink = np.maximum(ink, np.where(inside, face[row, column], 0.0))
    return (0.5 - ink) * _PIXEL


def _arrow(angle: float) -> Plane:
    cosine, sine = np.cos(angle), np.sin(angle)
    return polygon(cosine * _U + sine * _V, cosine * _V - sine * _U, 1.1 * _ARROW)


def _limit(text: str) -> Callable[[], Layers]:
    return lambda: [(RED, _disc(0.98)), (WHITE, _disc(0.74)), (BLACK, _text(text, 0.8, 1.05))]


def _order(angle: float) -> Callable[[], Layers]:
    return lambda: [(WHITE, _disc(0.98)), (BLUE, _disc(0.9)), (WHITE, _arrow(angle))]


FACES: dict[str, Callable[[], Layers]] = {
    "stop sign": lambda: [
        (WHITE, _shape(_OCTAGON)),
        (RED, _shape(_OCTAGON, 0.92)),
        (WHITE, _text("STOP", 0.55, 1.6)),
    ],
    "give way sign": lambda: [(RED, _shape(-_DANGER)), (WHITE, _shape(-_DANGER, 0.6, -0.05))],
    "no entry sign": lambda: [
        (WHITE, _disc(0.98)),
        (RED, _disc(0.92)),
        (WHITE, _bar(0.68, 0.17)),
    ],
    "no vehicles sign": lambda: [(RED, _disc(0.98)), (WHITE, _disc(0.7))],
    "speed limit 30 sign": _limit("30"),
    "speed limit 50 sign": _limit("50"),
    "speed limit 80 sign": _limit("80"),
    "danger sign": lambda: [
        (RED, _shape(_DANGER)),
        (WHITE, _shape(_DANGER, 0.66, 0.1)),
        (BLACK, np.minimum(_bar(0.09, 0.24, y=0.1), np.hypot(_U, _V - 0.48) - 0.1)),
    ],
    "priority road sign": lambda: [
        (BLACK, _shape(_DIAMOND)),
        (WHITE, _shape(_DIAMOND, 0.94)),
        (YELLOW, _shape(_DIAMOND, 0.68)),
    ],
    "end of limits sign": lambda: [
        (BLACK, _disc(0.98)),
        (WHITE, _disc(0.88)),
        (
            BLACK,
            np.maximum(np.abs(np.abs(_U + _V) / np.sqrt(2) - 0.14) - 0.07, _disc(0.88)),
        ),
    ],
    "turn left sign": _order(-np.pi / 2),
    "turn right sign": _order(np.pi / 2),
    "straight ahead sign": _order(0.0),
}
"""Class name and the layers of its face."""

TASK = EmbeddedTask(
    name="signs",
    description=(
        "Rendered: thirteen traffic signs in random perspective, light, haze and focus before "
        "rendered surroundings."
    ),
    classes=tuple(FACES),
    licence="drawn here (Apache-2.0); letters in DejaVu Sans",
    draw=draw,
)
