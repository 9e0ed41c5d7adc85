"""Decode all images of a split into two arrays, with threads and a progress bar."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from jaxtyping import Int32, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.decode import Rule, decode_image
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.models.processor import Resample

_GROUP = 16  # images that a thread decodes at a time
SAVE_ROWS, SAVE_SECONDS = 2048, 5.0
"""`save` is called after so many rows or seconds, whichever is first: the most a kill can lose."""


def decode_split(
    source: Source,
    task: str,
    split: str,
    classes: int,
    images: UInt8[np.ndarray, "n s s 3"],
    labels: Int32[np.ndarray, " n"],
    *,
    fit: Rule = "crop",
    resample: Resample = "bicubic",
    start: int = 0,
    save: Callable[[int], None] = lambda rows: None,
) -> None:
    """Fill `images` (RGB, 0 to 255) and `labels` with a split, in the order of the source.

    Rows before `start` are taken as done. `save` is called now and then with the number of finished
    rows. Decoding is threaded, as Pillow releases the interpreter lock, and only a bounded number
    of encoded images is in memory at a time.

    **Raises:** `InputError` if an image cannot be decoded or a label is not in 0..classes-1 (the
    message begins with the image's origin), or if the source yields more or fewer than n images.
    """
    count, size = images.shape[:2]

    def decode(start: int, group: list[Example]) -> int:
        for row, example in enumerate(group, start):
            images[row] = decode_image(example.image, size, example.origin, fit, resample)
        return len(group)

    workers = os.cpu_count() or 1
    pending: deque[Future[int]] = deque()
    examples = source.examples(task, split, start)
    read = done = saved = start
    saved_at = time.monotonic()
    with (
        progress_bar(f"decoding {task} {split}", count, start) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):

        def finish_one() -> None:
            nonlocal done, saved, saved_at
            finished = pending.popleft().result()
            advance(finished)
            done += finished
            if done - saved >= SAVE_ROWS or time.monotonic() - saved_at >= SAVE_SECONDS:
                save(done)
                saved, saved_at = done, time.monotonic()

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
                finish_one()
        while pending:
            finish_one()
    if read != count:
        raise InputError(f"task {task!r}, split {split!r}: {read} images, {count} announced.")
