"""Images decoded once, then mapped from disk: `load_split`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import Int32, UInt8

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.build import decode_split
from rmtllmf_jax.data.decode import RESIZE_RULE
from rmtllmf_jax.data.entry import FORMAT, Entry
from rmtllmf_jax.data.source import Source


@dataclass(frozen=True)
class Images:
    """A split as arrays: `images` (n, s, s, 3) uint8 RGB, `labels` (n,) int32; both read-only.

    `images` is mapped from disk. `fingerprint` is a hash of the source's content, the class names,
    the image size and the resize rule: equal fingerprints mean equal arrays, as far as Pillow and
    its JPEG decoder are the same.
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
    verify: bool = False,
) -> Images:
    """Return a split of a task as `image_size` x `image_size` RGB pixels.

    The first call decodes every image (see `decode_image`) into `cache_dir/images/<fingerprint>`,
    later ones map that entry. A killed process leaves no half entry, a damaged entry is built
    again, and of several processes that ask at once one builds while the others wait. `verify`
    checks every byte of an entry that is there already, not only its sizes.

    **Raises:** `InputError` if `image_size` < 1, if the split is empty, if an image cannot be
    decoded or a label is no index into the classes (the message names file and row), if the source
    changes meanwhile, or if `cache_dir` cannot be written.
    """
    require_at_least("image_size", image_size, 1)
    classes = source.classes(task)
    count = source.size(task, split)
    if count < 1:
        raise InputError(f"task {task!r}: split {split!r} holds no images.")
    content = source.fingerprint(task, split)
    rules = {"image_size": image_size, "resize": RESIZE_RULE, "format": FORMAT}
    made_from = {"source": content, "classes": classes, **rules}
    fingerprint = content_hash(made_from)
    entry = Entry(cache_dir / "images" / fingerprint, count, image_size)

    arrays = entry.open(verify=verify)
    if arrays is None:
        with entry.locked():
            arrays = entry.open(verify=verify)  # built while this process waited?
            if arrays is None:
                about = {**made_from, "task": task, "split": split, "pillow": PIL.__version__}
                with entry.creating(about) as (images, labels):
                    decode_split(source, task, split, len(classes), images, labels)
                    if source.fingerprint(task, split) != content:
                        raise InputError(f"task {task!r}, split {split!r}: changed while read.")
                arrays = entry.open()
    if arrays is None:
        raise InputError(f"{entry.folder}: could not be read back; is the disk failing?")
    return Images(*arrays, classes, fingerprint)
