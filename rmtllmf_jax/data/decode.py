"""From the bytes of an image file to a square of pixels."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from rmtllmf_jax.common.errors import InputError

RESIZE_RULE = "RGB; bicubic, shorter side to image_size; centre crop (torchvision rounding)"
"""Goes into the key of the cache: change it whenever `decode_image` gives other pixels."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""Pillow also opens formats that run other programs (EPS); data sets need none of those."""


def decode_image(image_bytes: bytes, image_size: int, origin: str) -> UInt8[np.ndarray, "s s 3"]:
    """Decode an image, resize its shorter side to `image_size` and crop the centre.

    This is CLIP's preprocessing up to the normalisation (torchvision's `Resize(bicubic)` and
    `CenterCrop` on a Pillow image): transparency is dropped, the EXIF orientation is not applied.
    16-bit grey values keep their upper eight bits.

    **Returns:** (image_size, image_size, 3), RGB, 0 to 255.

    **Raises:** `InputError` that begins with `origin` if the bytes are not a readable image.
    """
    try:
        with Image.open(io.BytesIO(image_bytes), formats=FORMATS) as image:
            return np.asarray(_centre_square(_to_rgb(image), image_size))
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InputError(f"{origin}: not an image file of a known format ({known}).") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise InputError(f"{origin}: not a readable image ({error}).") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip these to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no agreed range")
    elif image.mode == "P":  # Pillow warns about palettes with transparency otherwise
        image = image.convert("RGBA")
    return image.convert("RGB")


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))
