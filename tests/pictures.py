"""Random images and their files, for tests of the data."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def noise(seed: int, *shape: int) -> np.ndarray:
    """Return uint8 noise of a shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return an image as a file's bytes."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """Return the pixels of an image file's bytes, RGB."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
