"""Reads and decodes every image of a split once: labels, sizes, hashes, and what is broken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt64
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.decode import in_threads, read_rgb
from rmtllmf_jax.data.pixels import EIGHT_BITS, Stored, look_at
from rmtllmf_jax.data.source import Example, Source

_SIDE = 16  # side of the grey image behind a perceptual hash

HASH_BITS = _SIDE**2
"""Length of a perceptual hash."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One image: where it came from and what it is.

    `digest` is equal for images of equal size and pixels (RGB), however they were encoded; it is
    empty if the image could not be decoded, and `fault` says why. `stored` says whether it is
    turned, or grey with 16 bits. `perceptual` is the 256-bit `perceptual_hash`, `None` unless
    requested.
    """

    label: int
    origin: str
    digest: bytes = b""
    height: int = 0
    width: int = 0
    perceptual: UInt64[np.ndarray, "4"] | None = None
    fault: str = ""
    stored: Stored = EIGHT_BITS


@dataclass(frozen=True)
class Scan:
    """A split: its images in order, the number announced by the source, and why reading stopped."""

    images: tuple[Seen, ...]
    announced: int | None
    stopped: str

    @cached_property
    def readable(self) -> tuple[Seen, ...]:
        """The images that could be decoded."""
        return tuple(image for image in self.images if not image.fault)


def scan_split(source: Source, task: str, split: str, *, perceptual: bool) -> Scan:
    """Read a split to its end, or until the source fails; raises nothing about its content."""
    announced, uncounted, stopped = None, "", ""
    try:
        announced = source.size(task, split)
    except InputError as error:
        uncounted = str(error)  # of several shards, those before a broken one can be read

    def examples() -> Iterator[Example]:
        nonlocal stopped
        try:
            yield from source.examples(task, split)
        except InputError as error:
            stopped = str(error)  # what comes before an error is kept

    images: list[Seen] = []
    with progress_bar(f"checking {task} {split}", announced or 0) as advance:
        for seen in in_threads(lambda each: _look_at(each, perceptual), examples()):
            images.append(seen)
            advance(1)
    return Scan(tuple(images), announced, uncounted or stopped)


def _look_at(example: Example, perceptual: bool) -> Seen:
    try:
        image = read_rgb(example.image, example.origin)
    except InputError as error:
        return Seen(example.label, example.origin, fault=str(error))
    size = f"{image.width} {image.height} ".encode()
    digest = hashlib.blake2b(size + image.tobytes(), digest_size=16).digest()
    bits = perceptual_hash(image) if perceptual else None
    size_of = image.height, image.width
    stored = look_at(example.image)
    return Seen(example.label, example.origin, digest, *size_of, bits, stored=stored)


def perceptual_hash(image: Image.Image) -> UInt64[np.ndarray, "4"]:
    """Return 256 bits that change little when an image is scaled or compressed (dHash).

    Bit (y, x) says whether pixel (y, x + 1) of the grey image, 17 x 16 pixels, is brighter than
    pixel (y, x).
    """
    grey = image.convert("L")
    small = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS))
    return np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)
