"""Images decoded once, then mapped from disk: `load_split`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int32, UInt8

from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import note, progress_bar
from rmtllmf_jax.data.decode import WrongSize, decode_image, in_threads, resize_rule
from rmtllmf_jax.data.entries import Arrays, allocated, stored
from rmtllmf_jax.data.pixels import stored_pixels
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.models.processor import FITS, RESAMPLES, Fit, Resample

FORMAT = 1
"""Version of the layout on disk; part of the cache key."""

_IMAGES, _LABELS = "images.npy", "labels.npy"

Decode = Callable[[bytes | np.ndarray, int, str], UInt8[np.ndarray, "s s 3"]]
"""`decode_image` with its options: of an image, the size and the origin."""

_UNLABELLED = " A split without labels? Then take another one, with --test-split validation."

_Arrays = tuple[UInt8[np.ndarray, "n s s 3"], Int32[np.ndarray, " n"]]


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
    resize_to: int | None = None,
    native: int | None = None,
    skip_unreadable: int = 0,
) -> Images:
    """Return a split of a task as `image_size` x `image_size` RGB pixels.

    The first call decodes every image (see `decode_image` for `fit`, `resample` and `resize_to`)
    into `cache_dir/images/<fingerprint>`; later ones check every byte of that entry against its
    checksums and map it. A killed process leaves no incomplete entry, and the next call starts the
    split again; a damaged entry is built again, with a message; if several processes ask at once,
    one builds while the others wait.

    `native` is the side in pixels of the small squares that all images are expected to be. If they
    are, `native` is below `image_size` and `resample` is bicubic, images are kept and returned at
    that size: `models.images.resize` makes the same pixels from them on the device, and 32 pixels
    take a fiftieth of the space of 224.

    `skip_unreadable` is the number of images that may be left out because they cannot be decoded; a
    message says which. It is part of the fingerprint.

    **Raises:** `InputError` if `image_size` < 1, if `fit` or `resample` is unknown, if the split is
    empty, if more images cannot be decoded than may be left out, if a label is not an index into
    the classes (the message names file and row), if the source changes meanwhile, or if `cache_dir`
    cannot be written.
    """
    require_at_least("image_size", image_size, 1)
    require_known("fit", fit, FITS)
    require_known("resample", resample, RESAMPLES)
    classes = source.classes(task)
    if source.size(task, split) < 1:
        raise InputError(f"task {task!r}: split {split!r} holds no images.")
    content = source.fingerprint(task, split)
    pixels = stored_pixels(source, task, split, cache_dir, content)
    made_from: dict[str, Any] = {"source": content, "classes": classes, "format": FORMAT}
    made_from |= pixels.key
    if skip_unreadable:
        made_from["skip_unreadable"] = skip_unreadable
    rule = resize_rule(fit, resample, resize_to)
    asked_for = {**made_from, "image_size": image_size, "resize": rule}
    # Of the requested size, so that it is independent of the size in which images are kept.
    fingerprint = content_hash(asked_for)
    decode = partial(decode_image, resample=resample, bits=pixels.bits)
    small = native is not None and native < image_size and resample == "bicubic"
    if small and resize_to is None:
        exact = resize_rule("exact", resample)
        as_stored = {**made_from, "image_size": native, "resize": exact}
        try:
            arrays = _entry(source, task, split, cache_dir, as_stored, partial(decode, fit="exact"))
            return Images(*arrays, classes, fingerprint)
        except WrongSize:
            pass  # not the set that its name suggests: kept at `image_size` like any other
    sized = partial(decode, fit=fit, resize_to=resize_to)
    arrays = _entry(source, task, split, cache_dir, asked_for, sized)
    return Images(*arrays, classes, fingerprint)


def _entry(
    source: Source,
    task: str,
    split: str,
    cache_dir: Path,
    made_from: dict[str, Any],
    decode: Decode,
) -> _Arrays:
    """Open an entry, or decode it first."""
    side, count = made_from["image_size"], source.size(task, split)

    def build(part: Path) -> tuple[Arrays, dict[str, Any]]:
        images = allocated(part / _IMAGES, (count, side, side, 3), np.uint8)
        labels = allocated(part / _LABELS, (count,), np.int32)
        classes = len(made_from["classes"])
        left_out = decode_split(
            source,
            task,
            split,
            classes,
            images,
            labels,
            decode=decode,
            skip=made_from.get("skip_unreadable", 0),
        )
        if source.fingerprint(task, split) != made_from["source"]:
            raise InputError(f"task {task!r}, split {split!r}: changed while read.")
        about = {"task": task, "split": split, "pillow": PIL.__version__, "count": count}
        if left_out:
            note(f"{task} {split}: {len(left_out)} images left out: {'; '.join(left_out)}")
            about |= {"left_out": left_out}
            return _without(part, len(left_out)), about
        return {_IMAGES: images, _LABELS: labels}, about

    folder = cache_dir / "images" / content_hash(made_from)
    arrays = stored(folder, made_from, build, f"decoding {task} {split}")
    return arrays[_IMAGES], arrays[_LABELS]


def _without(part: Path, rows: int) -> Arrays:
    """Remove the last rows from the arrays of an entry that is being built."""
    short: Arrays = {}
    for name in (_IMAGES, _LABELS):
        whole = np.load(part / name, mmap_mode="r")
        kept = whole[: len(whole) - rows]
        short[name] = allocated(part / f"short-{name}", kept.shape, kept.dtype.type)
        short[name][:] = kept
        os.replace(part / f"short-{name}", part / name)
    return short


def decode_split(
    source: Source,
    task: str,
    split: str,
    classes: int,
    images: UInt8[np.ndarray, "n s s 3"],
    labels: Int32[np.ndarray, " n"],
    *,
    decode: Decode = decode_image,
    skip: int = 0,
) -> list[str]:
    """Fill `images` (RGB, 0 to 255) and `labels` with a split, in the order of the source.

    Up to `skip` images that cannot be decoded are left out; as many rows at the end stay empty.

    **Returns:** the messages about the images left out.

    **Raises:** `InputError` if an image cannot be decoded or a label is not in 0..classes-1 (the
    message begins with the image's origin), or if the source yields more or fewer than n images.
    """
    count, size = images.shape[:2]

    def rows() -> Iterator[tuple[int, Example]]:
        for row, example in enumerate(source.examples(task, split)):
            if row >= count:
                raise InputError(f"task {task!r}, split {split!r}: more than {count} images.")
            if not 0 <= example.label < classes:
                raise InputError(
                    f"{example.origin}: label {example.label} is not one of the {classes} "
                    f"classes (0 to {classes - 1}).{_UNLABELLED * (example.label == -1)}"
                )
            labels[row] = example.label
            yield row, example

    def fill(row: tuple[int, Example]) -> str | None:
        number, example = row
        try:
            images[number] = decode(example.image, size, example.origin)
        except InputError as error:
            if not skip or isinstance(error, WrongSize):
                raise
            return str(error)
        return None

    faults: dict[int, str] = {}
    read = 0
    with progress_bar(f"decoding {task} {split}", count) as advance:
        for fault in in_threads(fill, rows()):
            if fault is not None:
                faults[read] = fault
                if len(faults) > skip:
                    raise InputError(
                        f"{fault} More than {skip} images of {task} {split} cannot be read "
                        "(--skip-unreadable)."
                    )
            advance(1)
            read += 1
    if read != count:
        raise InputError(f"task {task!r}, split {split!r}: {read} images, {count} announced.")
    if faults:
        kept = [row for row in range(count) if row not in faults]
        for place, row in enumerate(kept):
            images[place], labels[place] = images[row], labels[row]
    return list(faults.values())
