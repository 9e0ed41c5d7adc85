"""From an image file's bytes or pixels to a square of pixels."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.processor import RESAMPLES, Resample

Rule = Literal["crop", "squash", "exact"]
"""What is done to an image: a `Fit`, or nothing where all images have the size already."""

_RGB = "RGB, transparency on white"
_GROUP = 16  # images that a thread decodes at a time

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def resize_rule(rule: Rule, resample: Resample, resize_to: int | None = None) -> str:
    """Return a description of `decode_image`; change it whenever the pixels change.

    It is part of the cache key. What concerns only a few images (`pixels.Stored`) is not in it.
    """
    to, centre = "image_size", ""
    if resize_to is not None:
        to, centre = str(resize_to), "; centre crop, offsets rounded down"
    return {
        "crop": f"{_RGB}; {resample}, shorter side to {to}; centre crop, offsets rounded down",
        "squash": f"{_RGB}; {resample}, both sides to {to}{centre}",
        "exact": f"{_RGB}; every image has image_size already",
    }[rule]


_FILTERS = {name: Image.Resampling[name.upper()] for name in RESAMPLES}

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""Pillow also opens formats that run other programs (EPS); data sets do not need those."""


def decode_image(
    image: bytes | np.ndarray,
    image_size: int,
    origin: str,
    fit: Rule = "crop",
    resample: Resample = "bicubic",
    *,
    resize_to: int | None = None,
    bits: int | None = None,
) -> UInt8[np.ndarray, "s s 3"]:
    """Decode an image and make it a square of `image_size` pixels.

    `crop` is CLIP's preprocessing up to the normalisation: the shorter side becomes `image_size`
    and the centre is cut out, with the same pixels as `CLIPImageProcessorPil` of transformers
    (tests/test_data_decode.py), except for 16-bit grey, which it clips to white;
    torchvision's `CenterCrop` cuts one pixel later where 3, 7, 11, ... pixels are cut off in all.
    `squash` resizes both sides, whatever the proportions. `exact` does not resize.

    **Arguments:**

    - `resize_to`: the size to which sides are resized, at least `image_size`, if it differs; the
      centre is then always cut out.
    - `bits`: of 16-bit grey values, as in `read_rgb`.

    **Returns:** (image_size, image_size, 3), RGB, 0 to 255.

    **Raises:** `InputError` that begins with `origin` (see `read_rgb`); `WrongSize` for `exact`.
    """
    try:
        rgb, square = read_rgb(image, origin, bits), (image_size, image_size)
        width, height = rgb.size
        if fit == "exact":
            if rgb.size != square:
                seen = f"{width} x {height} pixels, expected {image_size} x {image_size}"
                raise WrongSize(f"{origin}: {seen}.")
            return np.asarray(rgb)
        side_to = image_size if resize_to is None else resize_to
        width = height = side_to
        if fit == "crop":
            shorter = min(rgb.size)
            width, height = (int(side_to * side / shorter) for side in rgb.size)
        resized = rgb.resize((width, height), _FILTERS[resample])
        left, top = (width - image_size) // 2, (height - image_size) // 2
        return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))
    except (ValueError, MemoryError, OverflowError) as error:  # a strip a million pixels long
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{origin}: cannot be resized to {image_size} pixels ({error})."
        ) from error


def read_rgb(image: bytes | np.ndarray, origin: str, bits: int | None = None) -> Image.Image:
    """Return an image in full size and RGB, from an image file's bytes or from its pixels.

    Pixels are uint8, (h, w, 3), (h, w, 1) or (h, w), or uint16 for grey. Transparency becomes
    white; the EXIF orientation is applied; 16-bit grey values, of which `bits` are used, become
    0 to 255. By default `bits` is what the image's own largest value needs (`bits_used`).

    **Raises:** `InputError` that begins with `origin` if the bytes are not a readable image or the
    array has another type or shape.
    """
    if isinstance(image, np.ndarray):
        return _from_pixels(image, origin, bits)
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            return _to_rgb(_upright(opened), bits)
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InputError(f"{origin}: not an image file of a known format ({known}).") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise InputError(f"{origin}: not a readable image ({error}).") from error


class WrongSize(InputError):
    """An image does not have the size expected of all images in its set."""


def are_pixels(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Whether an array is an image: (h, w, 3), (h, w, 1) or (h, w) uint8, the latter two uint16."""
    grey = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    colour = len(shape) == 3 and shape[2] == 3
    return (dtype == np.uint8 and (grey or colour)) or (dtype == np.uint16 and grey)


def _from_pixels(pixels: np.ndarray, origin: str, bits: int | None) -> Image.Image:
    if not are_pixels(pixels.dtype, pixels.shape) or 0 in pixels.shape:
        raise InputError(
            f"{origin}: expected uint8 pixels of shape (h, w, 3), (h, w, 1) or (h, w), or uint16 "
            f"of the latter two, got {pixels.dtype} {pixels.shape}."
        )
    plane = pixels if pixels.shape[2:] == (3,) else pixels.reshape(pixels.shape[:2])
    plane = _in_eight_bits(plane, bits) if plane.dtype == np.uint16 else plane
    return Image.fromarray(np.ascontiguousarray(plane)).convert("RGB")


def bits_used(largest: int) -> int:
    """Return how many bits grey values have in a 16-bit file: 8, 10, 12, 14 or 16.

    Scanners, microscopes and X-ray detectors store 10, 12 or 14 bits in 16-bit files.
    """
    return next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)


def is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey with 16 bits per pixel."""
    return image.mode.startswith("I;16")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8: 1 is upright, also used if it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged note, of which Pillow raises many types, turns nothing
        return 1
    return found if found in range(1, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # which turns TIFF files by itself
    if orientation(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    transparent = image.info.get("transparency")
    if is_deep(image):  # Pillow would clip these to white
        values = np.asarray(image)
        grey = np.where(values == transparent, 255, _in_eight_bits(values, bits))
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no agreed range")
    if transparent is None and "A" not in image.getbands() and "a" not in image.getbands():
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _in_eight_bits(values: np.ndarray, bits: int | None) -> UInt8[np.ndarray, "h w"]:
    """Return 16-bit grey (h, w) scaled to 0 to 255, by `bits` or by its largest value."""
    most = 2 ** (bits or bits_used(int(values.max()))) - 1
    return np.rint(np.minimum(values, most) * (255 / most)).astype(np.uint8)


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """Yield `work(item)` for each item in order, computed in threads.

    Pillow releases the interpreter lock. Only a bounded number of items is in memory at a time.
    """
    workers = os.cpu_count() or 1
    pending: deque[Future[list[_Out]]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        while group := list(islice(remaining, _GROUP)):
            pending.append(pool.submit(lambda each: [work(item) for item in each], group))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
