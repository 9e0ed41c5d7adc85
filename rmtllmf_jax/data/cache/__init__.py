"""Images decoded once, then mapped from disk: `load_split`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int32, UInt8

from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.data.cache.build import decode_split
from rmtllmf_jax.data.cache.entry import FORMAT, Arrays, Entry
from rmtllmf_jax.data.cache.part import IMAGES, LABELS
from rmtllmf_jax.data.decode import OtherSize, Rule, resize_rule
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.models.processor import FITS, RESAMPLES, Fit, Resample


@dataclass(frozen=True)
class Images:
    """A split as arrays: `images` (n, s, s, 3) uint8 RGB, `labels` (n,) int32; both read-only.

    `images` is mapped from disk. `fingerprint` is a hash of the source's content, the class names,
    the requested image size and the resize rule: equal fingerprints mean equal pixels at that size,
    given the same Pillow and JPEG decoder.
    """

    images: UInt8[np.ndarray, "n s s 3"]
    labels: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]
    fingerprint: str


def load_split(
    source: Source,
    task: str,
    split: str,
    image_size: int,
    cache_dir: Path,
    *,
    fit: Fit = "crop",
    resample: Resample = "bicubic",
    native: int | None = None,
) -> Images:
    """Return a split of a task as `image_size` x `image_size` RGB pixels.

    The first call decodes every image (see `decode_image` for `fit` and `resample`) into
    `cache_dir/images/<fingerprint>`, later ones check every byte of that entry against its
    checksums and map it. A killed process leaves no incomplete entry, and the next call resumes; a
    damaged entry is built again, with a message; if several processes ask at once, one builds while
    the others wait.

    `native` is the side in pixels of the small squares that all images are expected to be. If they
    are, it is below `image_size` and `resample` is bicubic, images are kept and returned at that
    size: `models.images.resize` makes the same pixels of them on the device, and 32 pixels take a
    fiftieth of the space of 224.

    **Raises:** `InputError` if `image_size` < 1, if `fit` or `resample` is unknown, if the split is
    empty, if an image cannot be decoded or a label is not an index into the classes (the message
    names file and row), if the source changes meanwhile, or if `cache_dir` cannot be written.
    """
    require_at_least("image_size", image_size, 1)
    require_known("fit", fit, FITS)
    require_known("resample", resample, RESAMPLES)
    classes = source.classes(task)
    if source.size(task, split) < 1:
        raise InputError(f"task {task!r}: split {split!r} holds no images.")
    made_from = {"source": source.fingerprint(task, split), "classes": classes, "format": FORMAT}
    asked_for = {**made_from, "image_size": image_size, "resize": resize_rule(fit, resample)}
    # Of the requested size, so that it is independent of the size in which images are kept.
    fingerprint = content_hash(asked_for)
    if native is not None and native < image_size and resample == "bicubic":
        exact = resize_rule("exact", resample)
        as_stored = {**made_from, "image_size": native, "resize": exact}
        try:
            arrays = _entry(source, task, split, cache_dir, as_stored, "exact", resample)
            return Images(*arrays, classes, fingerprint)
        except OtherSize:
            pass  # not the set that its name suggests: kept at `image_size` like any other
    arrays = _entry(source, task, split, cache_dir, asked_for, fit, resample)
    return Images(*arrays, classes, fingerprint)


def _entry(
    source: Source,
    task: str,
    split: str,
    cache_dir: Path,
    made_from: dict[str, Any],
    rule: Rule,
    resample: Resample,
) -> Arrays:
    """Open an entry, or decode it first."""
    count, image_size = source.size(task, split), made_from["image_size"]
    entry = Entry(cache_dir / "images" / content_hash(made_from), count, image_size)
    arrays = entry.open()
    if arrays is None:
        with entry.locked():
            arrays = entry.open()  # built while this process waited?
            if arrays is None:
                if entry.folder.exists():
                    note(f"{entry.folder}: damaged; decoding {task} {split} again")
                about = {**made_from, "task": task, "split": split, "pillow": PIL.__version__}
                with entry.creating(about) as part:
                    decode_split(
                        source,
                        task,
                        split,
                        len(made_from["classes"]),
                        part.arrays[IMAGES],
                        part.arrays[LABELS],
                        fit=rule,
                        resample=resample,
                        start=part.rows,
                        save=part.save,
                    )
                    if source.fingerprint(task, split) != made_from["source"]:
                        raise InputError(f"task {task!r}, split {split!r}: changed while read.")
                arrays = entry.open()
    if arrays is None:
        raise InputError(f"{entry.folder}: could not be read back; is the disk failing?")
    return arrays
