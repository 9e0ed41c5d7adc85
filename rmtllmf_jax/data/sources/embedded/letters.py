"""Letters in the fonts that matplotlib carries."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.sources.embedded.canvas import (
    Plane,
    cluttered,
    finish,
    local,
    paint,
    sample,
    shrink,
    two_colours,
)
from rmtllmf_jax.data.sources.embedded.task import SIZE, EmbeddedTask, Item

CONTRAST = 0.6  # least difference in brightness between letter and background
LIGHT = 1.0  # chance that the letter is lighter than the background
CLUTTER = 0.06
NOISE = 0.03
HEIGHTS = (24.0, 28.0)  # smallest and largest height of a letter in pixels
SHIFT = 1.0  # largest distance from the centre along each side, in pixels
TURN = 0.06  # largest turn either way, in radians
SLANT = 0.08  # largest slant either way, in pixels to the side for each pixel down

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
"""The fonts of both splits."""
UNSEEN_FONTS = ("DejaVuSerif-Bold.ttf", "cmr10.ttf")  # fonts of test images only

LETTERS = "ABDEFGHKMNPRSTXZ"

_FACE = 64  # side of the face that is sampled, in pixels
_SAMPLES = 2


def draw(item: Item, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
    """Draw a letter, turned, slanted and shifted, on a cluttered background."""
    fonts = FONTS if item.split == "train" else FONTS + UNSEEN_FONTS
    face = letter_face(LETTERS[item.label], fonts[rng.integers(len(fonts))])
    height = rng.uniform(*HEIGHTS)
    x, y = SIZE / 2 + SHIFT * rng.uniform(-1, 1, 2)
    u, v = local(x, y, TURN * rng.uniform(-1, 1), _SAMPLES)
    u = u + SLANT * rng.uniform(-1, 1) * v
    ink = shrink(sample(face[..., None], u / height + 0.5, v / height + 0.5), _SAMPLES)
    paper, colour = two_colours(rng, CONTRAST, LIGHT)
    canvas = paint(cluttered(rng, paper, CLUTTER), colour, ink[..., 0])
    return finish(canvas, rng, NOISE)


@cache
def letter_face(letter: str, font: str) -> Plane:
    """Return a letter as large as a square of 64 x 64 allows, 1 where there is ink."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", font)
    try:
        face = ImageFont.truetype(str(path), 2 * _FACE, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise InputError(
            f"the embedded tasks need the font {font} of the package matplotlib "
            f"({path}: {error}). Install it again: pip install 'matplotlib>=3.9'."
        ) from error
    sheet = Image.new("L", (6 * _FACE, 6 * _FACE))
    ImageDraw.Draw(sheet).text((_FACE, _FACE), letter, fill=255, font=face)
    ink = sheet.crop(sheet.getbbox())
    larger = max(ink.size)
    width, height = (max(1, round(_FACE * side / larger)) for side in ink.size)
    square = Image.new("L", (_FACE, _FACE))
    small = ink.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(small, ((_FACE - width) // 2, (_FACE - height) // 2))
    return np.asarray(square) / 255.0


TASK = EmbeddedTask(
    name="letters",
    description=(
        "Rendered: capital letters in ten fonts of matplotlib's package, turned, slanted, shifted "
        "and coloured at random. Two of the fonts are in test only."
    ),
    classes=tuple(f"letter {letter.lower()}" for letter in LETTERS),
    licence="drawn here; fonts: DejaVu (Bitstream Vera), STIX and BaKoMa, free to use",
    draw=draw,
)
