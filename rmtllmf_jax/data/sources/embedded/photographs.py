"""Which photograph does this piece come from? Twelve photographs from scikit-image's package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.extras import needed_by
from rmtllmf_jax.data.sources.embedded.canvas import brightness, finish
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

CELLS = 4  # A photograph is cut into CELLS x CELLS cells; every piece lies within one of them
TEST_CELLS = ((0, 1), (1, 3), (2, 0), (3, 2))
"""Row and column of the cells that test pieces come from, for every seed: a quarter."""
SMALLEST = 0.9  # smallest side of a piece, in sides of its cell; the largest is 1
CHOICE = 3  # of this many random pieces the one with the most contrast is taken, to avoid plain sky
EXPOSURE = 0.08  # largest change of brightness (added) and of contrast (times 1 +- this)
FADING = 0.15  # colours fade towards grey by a random part of this
NOISE = 0.02

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick pavement": "brick.png",
    "photographer": "camera.png",
    "cat": "chelsea.png",
    "cup of coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "tissue": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "printed page": "page.png",
}
"""Class name and file. PNG only: the pixels of a JPEG depend on the decoder."""

Box = tuple[int, int, int, int]


def cell_boxes(width: int, height: int, split: str) -> tuple[Box, ...]:
    """Return the cells of a split as (left, top, right, bottom); both splits cover all."""
    cells = ((row, column) for row in range(CELLS) for column in range(CELLS))
    return tuple(
        (
            column * width // CELLS,
            row * height // CELLS,
            (column + 1) * width // CELLS,
            (row + 1) * height // CELLS,
        )
        for row, column in cells
        if ((row, column) in TEST_CELLS) == (split == "test")
    )


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Cut a square piece out of the photograph of a class and change its exposure."""
    photograph = _photograph(tuple(PHOTOGRAPHS.values())[item.label])
    pieces = [_piece(photograph, item.split, rng) for _ in range(CHOICE)]
    piece = max(pieces, key=lambda each: float(brightness(each).std()))
    grey = brightness(piece)[..., None]
    piece = piece + FADING * rng.random() * (grey - piece)
    contrast, shift = 1.0 + EXPOSURE * rng.uniform(-1, 1), EXPOSURE * rng.uniform(-1, 1)
    return finish(0.5 + contrast * (piece - 0.5) + shift, rng, NOISE)


def _piece(photograph: Image.Image, split: str, rng: np.random.Generator) -> np.ndarray:
    boxes = cell_boxes(*photograph.size, split)
    left, top, right, bottom = boxes[rng.integers(len(boxes))]
    longest = min(right - left, bottom - top)
    side = int(rng.integers(int(SMALLEST * longest), longest + 1))
    left += int(rng.integers(0, right - left - side + 1))
    top += int(rng.integers(0, bottom - top - side + 1))
    # Cropped first: `resize(box=...)` would look at pixels outside the box.
    cropped = photograph.crop((left, top, left + side, top + side))
    return np.asarray(cropped.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255.0


@cache
def _photograph(name: str) -> Image.Image:
    try:
        with needed_by("the embedded task 'photographs'"):
            path = files("skimage") / "data" / name
        with path.open("rb") as file, Image.open(file) as opened:
            return opened.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(
            f"the embedded task 'photographs' needs {name} of the package scikit-image "
            f"({error}). Install it again: pip install 'scikit-image>=0.25'."
        ) from error


TASK = EmbeddedTask(
    name="photographs",
    description=(
        "Real: square pieces of twelve photographs in scikit-image's package; the class is the "
        "photograph. Exposure, fading and noise are drawn. Train and test pieces come from "
        "different cells of a 4 x 4 grid over each photograph, so that they share no pixel."
    ),
    real=True,
    classes=tuple(PHOTOGRAPHS),
    licence=(
        "read from the installed scikit-image, whose documentation says public domain, CC0 or no "
        "known copyright restrictions; motorcycle: Middlebury stereo benchmark 2014; moon and "
        "printed page: nothing beyond the package's BSD licence"
    ),
    draw=draw,
)
