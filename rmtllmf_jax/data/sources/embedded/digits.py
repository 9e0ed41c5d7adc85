"""Handwritten digits: scikit-learn's scans of 8 x 8 pixels in other inks, places and sizes."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from rmtllmf_jax.data.sources.embedded.canvas import cluttered, finish, paint, two_colours
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

CONTRAST = 0.7  # least difference in brightness between ink and paper
LIGHT = 1.0  # chance that the ink is lighter than the paper
CLUTTER = 0.05
NOISE = 0.02
SIDES = (30, 32)  # smallest and largest side of a digit in pixels; its position is free

TRAIN_SCANS = 120  # scans of each class that train may use; there are 174 to 183

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@cache
def digit_rows(split: str) -> tuple[Int64[np.ndarray, " n"], ...]:
    """Return the rows of `load_digits` that a split may use, class by class.

    The same for every seed. Neighbouring rows are often by the same writer, so the first rows of a
    class go to train and the last to test.
    """
    _, labels = _scans()
    members = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
    return tuple(each[:TRAIN_SCANS] if split == "train" else each[TRAIN_SCANS:] for each in members)


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Draw a scan, each one once, in some ink on some paper."""
    scans, _ = _scans()
    scan = Image.fromarray(scans[digit_rows(item.split)[item.label][item.number]])
    side = int(rng.integers(SIDES[0], SIDES[1] + 1))
    left, top = (int(rng.integers(0, SIZE - side + 1)) for _ in range(2))
    ink = Image.new("L", (SIZE, SIZE))
    ink.paste(scan.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    paper, colour = two_colours(rng, CONTRAST, LIGHT)
    canvas = paint(cluttered(rng, paper, CLUTTER), colour, np.asarray(ink) / 255.0)
    return finish(canvas, rng, NOISE)


@cache
def _scans() -> tuple[UInt8[np.ndarray, "n 8 8"], Int64[np.ndarray, " n"]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans: Float[np.ndarray, "n 8 8"] = digits.images / 16.0
    return np.rint(255.0 * scans).astype(np.uint8), digits.target.astype(np.int64)


TASK = EmbeddedTask(
    name="digits",
    description=(
        "Real: digits written by hand (Optical Recognition of Handwritten Digits, E. Alpaydin and "
        "C. Kaynak, 1998; the 1,797 scans of 8 x 8 pixels in scikit-learn's load_digits), scaled "
        "up; ink, paper, place and size are drawn. Train and test use different scans."
    ),
    real=True,
    classes=CLASSES,
    licence="CC BY 4.0 (UCI Machine Learning Repository)",
    draw=draw,
)
