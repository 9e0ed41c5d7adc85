"""Faces of traffic signs, flat and from the front, with transparency around them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.data.sources.embedded.canvas import Plane, coverage, polygon
from rmtllmf_jax.data.sources.embedded.letters import letter_face

SIDE = 64
"""Side of a face in pixels."""

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


def _stop() -> Layers:
    text = (WHITE, _text("STOP", 0.55, 1.6))
    return [(WHITE, _shape(_OCTAGON)), (RED, _shape(_OCTAGON, 0.92)), text]


def _give_way() -> Layers:
    return [(RED, _shape(-_DANGER)), (WHITE, _shape(-_DANGER, 0.6, -0.05))]


def _no_entry() -> Layers:
    return [(WHITE, _disc(0.98)), (RED, _disc(0.92)), (WHITE, _bar(0.68, 0.17))]


def _no_vehicles() -> Layers:
    return [(RED, _disc(0.98)), (WHITE, _disc(0.7))]


def _danger() -> Layers:
    mark = np.minimum(_bar(0.09, 0.24, y=0.1), np.hypot(_U, _V - 0.48) - 0.1)
    return [(RED, _shape(_DANGER)), (WHITE, _shape(_DANGER, 0.66, 0.1)), (BLACK, mark)]


def _priority() -> Layers:
    inner = (YELLOW, _shape(_DIAMOND, 0.68))
    return [(BLACK, _shape(_DIAMOND)), (WHITE, _shape(_DIAMOND, 0.94)), inner]


def _end_of_limits() -> Layers:
    stripes = np.abs(np.abs(_U + _V) / np.sqrt(2) - 0.14) - 0.07
    band = np.maximum(stripes, _disc(0.88))
    return [(BLACK, _disc(0.98)), (WHITE, _disc(0.88)), (BLACK, band)]


FACES: dict[str, Callable[[], Layers]] = {
    "stop sign": _stop,
    "give way sign": _give_way,
    "no entry sign": _no_entry,
    "no vehicles sign": _no_vehicles,
    "speed limit 30 sign": _limit("30"),
    "speed limit 50 sign": _limit("50"),
    "speed limit 80 sign": _limit("80"),
    "danger sign": _danger,
    "priority road sign": _priority,
    "end of limits sign": _end_of_limits,
    "turn left sign": _order(-np.pi / 2),
    "turn right sign": _order(np.pi / 2),
    "straight ahead sign": _order(0.0),
}
"""Class name and the layers of its face."""
