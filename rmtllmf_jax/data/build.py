"""Decode all images of a split into two arrays, with threads and a progress bar."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from jaxtyping import Int32, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.decode import decode_image
from rmtllmf_jax.data.source import Example, Source

_GROUP = 16  # images a thread decodes at a time


def decode_split(
    source: Source,
    task: str,
    split: str,
    classes: int,
    images: UInt8[np.ndarray, "n s s 3"],
    labels: Int32[np.ndarray, " n"],
) -> None:
    """Fill `images` (RGB, 0 to 255) and `labels` with a split, in the order of the source.

    Threads decode, as Pillow releases the interpreter lock, and only a bounded number of encoded
    images is in memory at a time.

    **Raises:** `InputError` if an image cannot be decoded or a label is not in 0..classes-1 (the
    message begins with the image's origin), or if the source yields more or fewer than n images.
    """
    count, size = images.shape[:2]

    def decode(start: int, group: list[Example]) -> int:
        for row, example in enumerate(group, start):
            images[row] = decode_image(example.image_bytes, size, example.origin)
        return len(group)

    workers = os.cpu_count() or 1
    pending: deque[Future[int]] = deque()
    examples = source.examples(task, split)
    read = 0
    with (
        progress_bar(f"decoding {task} {split}", count) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        while group := list(islice(examples, _GROUP)):
            if read + len(group) > count:
                raise InputError(f"task {task!r}, split {split!r}: more than {count} images.")
            for row, example in enumerate(group, read):
                if not 0 <= example.label < classes:
                    raise InputError(
                        f"{example.origin}: label {example.label} is not one of the {classes} "
                        f"classes (0 to {classes - 1})."
                    )
                labels[row] = example.label
            pending.append(pool.submit(decode, read, group))
            read += len(group)
            if len(pending) > 2 * workers:
                advance(pending.popleft().result())
        while pending:
            advance(pending.popleft().result())
    if read != count:
        raise InputError(f"task {task!r}, split {split!r}: {read} images, {count} announced.")
