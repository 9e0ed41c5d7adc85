"""Image preprocessing on the device: resize as Pillow does, crop and normalise as CLIP does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from rmtllmf_jax.common.errors import require_at_least, require_known
from rmtllmf_jax.models.processor import FITS

_FRACTION_BITS = 22  # of Pillow's fixed-point weights
_DIGITS = 3
_DIGIT_BITS = 8


def cubic(x: Float[np.ndarray, "..."], a: float) -> Float[np.ndarray, "..."]:
    """Return Keys' cubic kernel; a is -0.5 in Pillow's bicubic filter and -0.75 in torch's."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _weights(old: int, new: int) -> Int[np.ndarray, "new old"]:
    """Return Pillow's weights of every old pixel in every new one, in units of 2^-22.

    The kernel is stretched by `old / new` when the image shrinks, which is the antialiasing; the
    weights that fall inside the image are normalised to sum 1, then rounded away from zero.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    pixels = np.arange(old)[None]
    first = np.floor(centres - 2 * stretch + 0.5)
    end = np.floor(centres + 2 * stretch + 0.5)
    inside = (pixels >= first) & (pixels < end)
    weights = np.where(inside, cubic((pixels - centres + 0.5) / stretch, -0.5), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = weights * 2**_FRACTION_BITS
    return np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int32)


def _digits(weights: Int[np.ndarray, "new old"]) -> Float[np.ndarray, "digits new old"]:
    """Split whole numbers into three digits of base 256 in -128..127, the lowest first.

    Eight bits are exact in bfloat16 and TF32, and so are their products with grey levels in the
    float32 sums of a matrix unit: the default precision of every device loses nothing.
    """
    base, half = 2**_DIGIT_BITS, 2 ** (_DIGIT_BITS - 1)
    digits, rest = [], weights
    for _ in range(_DIGITS):
        digits.append((rest + half) % base - half)
        rest = (rest - digits[-1]) // base
    assert not rest.any()  # a normalised cubic weight is below 1.2, that is 2^23 - 2^15 units
    return np.stack(digits).astype(np.float32)


def _pass(
    images: UInt8[Array, "batch rows columns channels"],
    axis: int,
    new: int,
    start: int,
    size: int,
) -> UInt8[Array, "batch new_rows new_columns channels"]:
    """Resize one axis to `new` pixels and return `size` of them from `start` on."""
    old = images.shape[axis]
    if old == new:
        return jax.lax.slice_in_dim(images, start, start + size, axis=axis)
    digits = _digits(_weights(old, new)[start : start + size])
    spec = {1: "drh,bhwc->dbrwc", 2: "drw,bhwc->dbhrc"}[axis]
    sums = jnp.einsum(spec, digits, images.astype(jnp.float32)).astype(jnp.int32)
    total = sums[0] + (sums[1] << _DIGIT_BITS) + (sums[2] << 2 * _DIGIT_BITS)
    rounded = (total + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS
    return jnp.clip(rounded, 0, 255).astype(jnp.uint8)


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width in pixels once the shorter side has `size`, before the crop.

    The longer side is rounded down, as `CLIPImageProcessorPil` does.
    """
    shorter = min(height, width)
    return int(size * height / shorter), int(size * width / shorter)


def _rows_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Return whether Pillow resizes the rows' axis (height) before the columns'.

    Since Pillow 13 it does so if the height shrinks by more than twice as many pixels as the width;
    older versions never do. The order matters, as grey levels are rounded in between.
    """
    return old[0] - new[0] > max(0, 2 * (old[1] - new[1]))


@partial(jax.jit, static_argnames=("size", "fit"))
def resize(
    images: UInt8[Array, "batch height width channels"], size: int, fit: str = "crop"
) -> UInt8[Array, "batch {size} {size} channels"]:
    """Return images as squares of `size` pixels: bicubic, antialiased, bitwise equal to Pillow's.

    Pillow's two passes, each rounded to 8 bits, with its 22-bit weights, as products of small
    whole numbers. In tests/parity/test_preprocessing.py no pixel differs from Pillow 13 or
    `CLIPImageProcessorPil`, enlarged or reduced; `jax.image.resize(cubic)` differs by up to .7 grey
    levels on average and 25 at most. Older versions of Pillow differ only for tall images, where
    they take the passes in the other order. Pixels that the crop drops are not computed; images
    that already have the size are returned unchanged. Exact unless a side shrinks a hundredfold.

    **Arguments:**

    - `images`: grey levels 0..255, all with the same height and width.
    - `size`: height and width of the result in pixels.
    - `fit`: `"crop"` resizes the shorter side to `size` and takes the centre, which is CLIP's own
      preprocessing; `"squash"` resizes both sides to `size`, whatever the aspect ratio.

    **Raises:** `InputError` for an unknown fit or a size below one.
    """
    require_known("fit", fit, FITS)
    require_at_least("size", size, 1)
    old = images.shape[1], images.shape[2]
    new = (size, size) if fit == "squash" else resized_shape(*old, size)
    for axis in (1, 2) if _rows_first(old, new) else (2, 1):
        side = new[axis - 1]
        images = _pass(images, axis, side, (side - size) // 2, size)
    return images


def normalise(
    images: UInt8[Array, "*batch height width channels"],
    mean: Float[Array, " channels"] | Sequence[float],
    std: Float[Array, " channels"] | Sequence[float],
) -> Float[Array, "*batch height width channels"]:
    """Return ``(images / 255 - mean) / std`` in float32; mean and std are of images in 0..1."""
    scaled = images.astype(jnp.float32) / 255
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
