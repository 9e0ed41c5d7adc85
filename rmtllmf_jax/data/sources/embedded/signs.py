"""Traffic signs at an angle, in varying light, in front of blurred surroundings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from rmtllmf_jax.data.sources.embedded.canvas import (
    Canvas,
    Plane,
    blur,
    coverage,
    finish,
    local,
    paint,
    sample,
    shrink,
)
from rmtllmf_jax.data.sources.embedded.colour import any_colours, cluttered, hsv
from rmtllmf_jax.data.sources.embedded.sign_faces import FACES, sign_face
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

SIDES = (22.0, 29.0)
"""Smallest and largest side of a sign in pixels."""
SHIFT = 1.5
"""Largest distance from the centre along each side, in pixels."""
PERSPECTIVE = 0.05
"""Largest shift of each corner of a sign along each side, in its own sides."""
BLUR = (0.0, 0.6)
"""Range of the blur in pixels."""
BRIGHTNESS = (0.5, 1.1)
"""Range of the light, as a factor."""
HAZE = 0.2
"""Largest part of grey haze that is mixed in."""
THINGS = 3
"""Largest number of things in the background."""
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


TASK = EmbeddedTask(
    name="signs",
    description=(
        "Rendered: thirteen traffic signs in random perspective, light, haze and focus before "
        "rendered surroundings."
    ),
    real=False,
    classes=tuple(FACES),
    licence="drawn here (Apache-2.0); letters in DejaVu Sans",
    draw=draw,
)
