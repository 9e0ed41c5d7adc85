"""How the images of a split are stored, if it matters: turned, or grey with more than 8 bits."""

from __future__ import annotations

import io
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, read_json, write_json
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.decode import FORMATS, bits_used, in_threads, is_deep, orientation
from rmtllmf_jax.data.entries import using
from rmtllmf_jax.data.source import Source

_VERSION = 1
# Notes that may turn an image, so that others need not be decoded to see that they have none.
_NOTES = re.compile(rb"[Ee][Xx][Ii][Ff]|adobe\.xmp|tiff:Orientation")
_TIFF = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Stored:
    """How many images of a split are turned, how many are 16-bit grey, and their largest value."""

    turned: int
    deep: int
    largest: int

    @property
    def bits(self) -> int | None:
        """The bits that 16-bit grey values use, the same for all images of the split."""
        return bits_used(self.largest) if self.deep else None

    @property
    def key(self) -> dict[str, Any]:
        """The contribution to the cache key: nothing, for ordinary images."""
        said: dict[str, Any] = {"orientation": "upright"} if self.turned else {}
        return said | ({} if self.bits is None else {"grey": f"{self.bits} bits"})


EIGHT_BITS = Stored(0, 0, 0)
"""An image like most: upright, and with up to 8 bits per channel."""


def stored_pixels(
    source: Source, task: str, split: str, cache_dir: Path, fingerprint: str
) -> Stored:
    """Return how the images of a split are stored; examined once, then noted in the cache.

    `fingerprint` is that of the split.

    Images that cannot be read are ignored here: decoding reports them.

    **Raises:** `InputError` that names file and row if the source cannot be read, or if `cache_dir`
    cannot be written.
    """
    key = content_hash({"source": fingerprint, "version": _VERSION})
    path = cache_dir / "pixels" / f"{key}.json"
    try:
        return Stored(**read_json(path))
    except (InputError, TypeError):
        pass
    total = source.size(task, split)
    turned = deep = largest = 0
    with progress_bar(f"looking at {task} {split}", total) as advance:
        images = (example.image for example in source.examples(task, split))
        for seen in in_threads(look_at, images):
            turned += seen.turned
            deep += seen.deep
            largest = max(largest, seen.largest)
            advance(1)
    found = Stored(turned, deep, largest)
    with using(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))
    return found


def look_at(image: bytes | np.ndarray) -> Stored:
    """Return how one image is stored: counts of 0 or 1."""
    if isinstance(image, np.ndarray):
        deep = image.dtype == np.uint16 and image.size > 0
        return Stored(0, 1, int(image.max())) if deep else EIGHT_BITS
    noted = image.startswith(_TIFF) or _NOTES.search(image) is not None
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            turned = noted and orientation(opened) != 1
            largest = int(np.asarray(opened).max()) if is_deep(opened) else 0
            return Stored(int(turned), int(is_deep(opened)), largest)
    except Exception:  # Pillow's decoders raise many types on damaged files
        return EIGHT_BITS
