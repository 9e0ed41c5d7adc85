"""Checks of the images themselves: unreadable ones, leaks from test into train, odd sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain

import numpy as np
from jaxtyping import Int64, UInt64

from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.doctor.finding import Finding, share, some
from rmtllmf_jax.data.doctor.scan import HASH_BITS, Scan, Seen
from rmtllmf_jax.data.registry import TaskFacts

_TINY = 16  # pixels; below this nothing can be recognised
_RESIZED = 200  # pixels; a set of many sizes was scaled down if all images have one size below this
_USUAL = 0.9  # share of images with one size that makes other sizes odd
_BLOCK = 16  # test hashes that are compared with all train hashes at a time


def check_reading(task: str, scans: Mapping[str, Scan]) -> list[Finding]:
    """Report where reading a source failed, and unreadable images."""
    findings = []
    for split, scan in scans.items():
        read, announced = len(scan.images), scan.announced
        if scan.stopped:
            what = f"{split}: reading stopped after {read:,} images: {scan.stopped}"
            follows = "a run stops here; the checks below cover only the images before it"
            findings.append(Finding("error", "reading", task, what, follows))
        elif not read:
            follows = "there is nothing to train on or to test"
            findings.append(Finding("error", "reading", task, f"{split} is empty", follows))
        elif read != announced:
            what = f"{split}: {read:,} images, {announced:,} announced"
            follows = "a run stops here; the source contradicts itself"
            findings.append(Finding("error", "reading", task, what, follows))
        broken = [image.fault for image in scan.images if image.fault]
        if broken:
            what = f"{split}: {share(len(broken), read)} images cannot be read: {some(broken)}"
            follows = "a run stops at the first of them; fetch these images again"
            findings.append(Finding("error", "unreadable images", task, what, follows))
    return findings


def check_overlap(task: str, train: Scan, test: Scan) -> list[Finding]:
    """Report equal images in train and test, equal images of one split and their labels."""
    findings = []
    first = {image.digest: image for image in reversed(train.readable)}
    leaked = [(image, first[image.digest]) for image in test.readable if image.digest in first]
    if leaked:
        what = f"{share(len(leaked), len(test.readable))} test images are in train too: " + some(
            [f"{image.origin} = {other.origin}" for image, other in leaked]
        )
        follows = (
            "the model has seen them in training: its test accuracy is too high; take them out of "
            "train"
        )
        findings.append(Finding("error", "overlap", task, what, follows))
    for split, scan in (("train", train), ("test", test)):
        counts = Counter(image.digest for image in scan.readable)
        extra = sum(counts.values()) - len(counts)
        if extra:
            what = f"{split}: {share(extra, len(scan.readable))} images repeat another one"
            follows = "they count more than once; a validation part cut from train may share them"
            findings.append(Finding("note", "duplicates", task, what, follows))
    return findings + _conflicts(task, train, test)


def _conflicts(task: str, train: Scan, test: Scan) -> list[Finding]:
    labelled: dict[bytes, dict[int, Seen]] = {}
    for image in chain(train.readable, test.readable):
        labelled.setdefault(image.digest, {}).setdefault(image.label, image)
    conflicts = [tuple(by.values()) for by in labelled.values() if len(by) > 1]
    if not conflicts:
        return []
    examples = [" = ".join(f"{x.origin} (label {x.label})" for x in each) for each in conflicts]
    what = f"{len(conflicts):,} images have more than one label: {some(examples)}"
    follows = "at most one of the labels is right; a few such pairs are in Stanford Cars itself"
    return [Finding("warning", "conflicting labels", task, what, follows)]


def check_near_duplicates(task: str, train: Scan, test: Scan, near: int) -> list[Finding]:
    """Report test images whose perceptual hash is within `near` bits of a train image's.

    Equal images are reported by `check_overlap` and left out.
    """
    known = {image.digest for image in train.readable}
    candidates = [image for image in test.readable if image.digest not in known]
    if not candidates or not train.readable:
        return []
    nearest, distances = nearest_hashes(
        np.stack([x.perceptual for x in candidates if x.perceptual is not None]),
        np.stack([x.perceptual for x in train.readable if x.perceptual is not None]),
        f"comparing {task}",
    )
    close = np.flatnonzero(distances <= near)
    if not len(close):
        return []
    close = close[np.argsort(distances[close], kind="stable")]
    pairs = [
        f"{candidates[x].origin} ~ {train.readable[nearest[x]].origin} ({distances[x]} bits)"
        for x in close
    ]
    what = (
        f"{share(len(close), len(test.readable))} test images are within {near} of {HASH_BITS} "
        f"bits of a train image: {some(pairs)}"
    )
    follows = (
        "perhaps the same picture scaled, cropped or compressed anew: look at them; plain areas "
        "and simple strokes (MNIST's ones) come this close by themselves"
    )
    return [Finding("warning", "near-duplicates", task, what, follows)]


def nearest_hashes(
    hashes: UInt64[np.ndarray, "n words"], others: UInt64[np.ndarray, "m words"], what: str = ""
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return, for each hash, the index of the nearest of `others` and its Hamming distance."""
    nearest = np.zeros(len(hashes), np.int64)
    distances = np.zeros(len(hashes), np.int64)
    with progress_bar(what, len(hashes)) as advance:
        for start in range(0, len(hashes), _BLOCK):
            block = slice(start, start + _BLOCK)
            bits = np.bitwise_count(hashes[block, None] ^ others[None])
            apart = bits.sum(axis=-1, dtype=np.int64)
            nearest[block] = apart.argmin(axis=1)
            distances[block] = apart.min(axis=1)
            advance(len(apart))
    return nearest, distances


def check_image_sizes(
    task: str, scans: Mapping[str, Scan], facts: TaskFacts | None
) -> list[Finding]:
    """Report images that are tiny, unlike nearly all others in size, or not of the task's size."""
    images = [image for scan in scans.values() for image in scan.readable]
    if not images:
        return []
    findings = []

    def report(odd: list[Seen], what: str, follows: str) -> None:
        shown = some([f"{x.origin} ({x.width} x {x.height})" for x in odd])
        seen = f"{share(len(odd), len(images))} images {what}: {shown}"
        findings.append(Finding("warning", "image sizes", task, seen, follows))

    (usual, number), *others = Counter((x.width, x.height) for x in images).most_common()
    expected = None if facts is None else facts.pixels
    if expected is not None:
        odd = [x for x in images if (x.width, x.height) != (expected, expected)]
        if odd:
            what = f"are not {expected} x {expected} pixels as in the original"
            report(odd, what, "other images, or resized ones: accuracies are not comparable")
    elif others and number >= _USUAL * len(images):
        odd = [x for x in images if (x.width, x.height) != usual]
        report(odd, f"are not {usual[0]} x {usual[1]} pixels", "perhaps they are of another source")
    elif facts is not None and not others and min(usual) < _RESIZED:
        what = f"all images are {usual[0]} x {usual[1]} pixels, unlike the original's"
        follows = "a resized copy: accuracies are not comparable with published ones"
        findings.append(Finding("warning", "image sizes", task, what, follows))
    tiny = [x for x in images if min(x.width, x.height) < _TINY]
    if tiny:
        report(tiny, f"are under {_TINY} pixels", "too small to recognise much; damaged, perhaps")
    return findings
