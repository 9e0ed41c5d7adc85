"""Reads and decodes every image of a split once: labels, sizes, hashes, and what is broken."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import UInt64
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import Advance, progress_bar
from rmtllmf_jax.data.decode import read_rgb
from rmtllmf_jax.data.source import Example, Source

_GROUP = 16  # images that a thread decodes at a time
_SIDE = 16  # side of the grey image behind a perceptual hash

HASH_BITS = _SIDE**2
"""Length of a perceptual hash."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One image: where it came from and what it is.

    `digest` is equal for images of equal size and pixels (RGB), however they were encoded; it is
    empty where the image could not be decoded, and `fault` says why.
    `perceptual` is the 256-bit `perceptual_hash`, `None` unless requested.
    """

    label: int
    origin: str
    digest: bytes = b""
    height: int = 0
    width: int = 0
    perceptual: UInt64[np.ndarray, "4"] | None = None
    fault: str = ""


@dataclass(frozen=True)
class Scan:
    """A split: its images in order, how many the source announced, and why reading stopped."""

    images: tuple[Seen, ...]
    announced: int | None
    stopped: str

    @property
    def readable(self) -> tuple[Seen, ...]:
        """The images that could be decoded."""
        return tuple(image for image in self.images if not image.fault)


def scan_split(source: Source, task: str, split: str, *, perceptual: bool) -> Scan:
    """Read a split to its end, or to where the source fails; raises nothing about its content.

    Decoding is threaded, as Pillow releases the interpreter lock.
    """
    announced, uncounted = None, ""
    try:
        announced = source.size(task, split)
    except InputError as error:
        uncounted = str(error)  # of several shards, those before a broken one can be read
    images: list[Seen] = []
    with (
        progress_bar(f"checking {task} {split}", announced or 0) as advance,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        stopped = _read(source, task, split, images, pool, advance, perceptual)
    return Scan(tuple(images), announced, uncounted or stopped)


def _read(
    source: Source,
    task: str,
    split: str,
    images: list[Seen],
    pool: ThreadPoolExecutor,
    advance: Advance,
    perceptual: bool,
) -> str:
    """Append all images to `images` and return why reading stopped early, if it did."""
    pending: deque[Future[list[Seen]]] = deque()
    stopped = ""

    def finish() -> None:
        group = pending.popleft().result()
        images.extend(group)
        advance(len(group))

    examples: Iterator[Example] = iter(())
    try:
        examples = source.examples(task, split)
    except InputError as error:
        stopped = str(error)
    while not stopped:
        group: list[Example] = []
        try:
            for example in islice(examples, _GROUP):
                group.append(example)  # what comes before an error is kept
        except InputError as error:
            stopped = str(error)
        if not group:
            break
        pending.append(pool.submit(_look_at_all, group, perceptual))
        if len(pending) > 2 * (os.cpu_count() or 1):
            finish()
    while pending:
        finish()
    return stopped


def _look_at_all(examples: list[Example], perceptual: bool) -> list[Seen]:
    return [_look_at(example, perceptual) for example in examples]


def _look_at(example: Example, perceptual: bool) -> Seen:
    try:
        image = read_rgb(example.image, example.origin)
    except InputError as error:
        return Seen(example.label, example.origin, fault=str(error))
    size = f"{image.width} {image.height} ".encode()
    digest = hashlib.blake2b(size + image.tobytes(), digest_size=16).digest()
    bits = perceptual_hash(image) if perceptual else None
    return Seen(example.label, example.origin, digest, image.height, image.width, bits)


def perceptual_hash(image: Image.Image) -> UInt64[np.ndarray, "4"]:
    """Return 256 bits that change little when an image is scaled or compressed (dHash).

    Bit (y, x) says whether pixel (y, x + 1) of the grey image, 17 x 16 pixels, is brighter than
    pixel (y, x).
    """
    grey = image.convert("L")
    small = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS))
    return np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)
