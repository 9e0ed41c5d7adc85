"""Check a task's data against the registry, and against itself: `examine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.doctor import checks
from rmtllmf_jax.data.doctor.checks import LEVELS, Finding, class_counts
from rmtllmf_jax.data.doctor.scan import HASH_BITS, Scan, scan_split
from rmtllmf_jax.data.registry import TaskFacts, task_facts
from rmtllmf_jax.data.source import ALL_SPLITS, SPLITS, Source
from rmtllmf_jax.data.tasks import REGISTERED


@dataclass(frozen=True)
class SplitFigures:
    """A split in numbers: images read, the registry's number, images per class, sides in pixels.

    `full` is `None` where the registry has none; the ranges are (smallest, largest),
    `None` where nothing could be read.
    """

    images: int
    full: int | None
    images_a_class: tuple[int, int] | None
    shorter_side: tuple[int, int] | None
    longer_side: tuple[int, int] | None


@dataclass(frozen=True)
class Examination:
    """What `examine` found in a task's data; the most serious findings come first.

    `classes` is `None` where the names could not be read.
    """

    task: str
    classes: int | None
    splits: Mapping[str, SplitFigures]
    findings: tuple[Finding, ...]


def examine(
    source: Source,
    task: str,
    *,
    near: int | None = None,
    tokens: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Examination:
    """Check one task of a source.

    Against the registry: split sizes, class names, their order, published numbers per class, image
    sizes. Against itself: labels outside the classes, classes without images, imbalance, test
    images that are in train (equal pixels, however encoded), equal images with different labels,
    repeated, unreadable, tiny, odd-sized, turned and 16-bit images, classes with identical prompts.
    Bad content raises nothing: a truncated file becomes a finding that names it, and everything
    else is still checked.

    **Arguments:**

    - `near`: also report test images whose perceptual hash (256 bits) differs in at most this many
      bits from that of a train image.
    - `tokens`: also report classes with prompts that a model cannot read, or cannot tell apart: its
      tokens of texts, one row each (`models.checkup.prompt_reader`).

    **Raises:** `InputError` if the source has no such task, or if `near` is not in 0..256.
    """
    if near is not None and not 0 <= near <= HASH_BITS:
        raise InputError(f"near must be in 0 to {HASH_BITS} bits, got {near!r}.")
    known = source.tasks()
    if task not in known:
        raise InputError(f"the source has no task {task!r}. It has: {', '.join(known)}.")
    facts = task_facts(task) if task in REGISTERED else None
    findings: list[Finding] = []
    classes: tuple[str, ...] | None = None
    try:
        classes = source.classes(task)
    except InputError as error:
        follows = "a run stops here; neither names nor labels could be checked"
        findings.append(Finding("error", "class names", str(error), follows))
    found: tuple[str, ...] = ()
    try:
        found = source.splits(task)
    except InputError as error:
        follows = "a run stops here; only train and test are looked at"
        findings.append(Finding("error", "splits", str(error), follows))
    scans = {
        split: scan_split(source, task, split, perceptual=near is not None)
        for split in ALL_SPLITS
        if split in SPLITS or split in found
    }
    findings += checks.check_reading(scans)
    if facts is None:
        what = f"{task!r} is not in the registry, which has {', '.join(REGISTERED)}"
        follows = "split sizes and class names could not be checked"
        findings.append(Finding("note", "registry", what, follows))
    else:
        findings += checks.check_sizes(facts, scans)
        findings += checks.check_classes(facts, classes) if classes else []
    if classes:
        findings += checks.check_labels(classes, scans, facts)
        findings += checks.check_prompts(task, classes, tokens)
    findings += checks.check_overlap(scans)
    if near is not None:
        train, test = (scans[split] for split in SPLITS)
        findings += checks.check_near_duplicates(task, train, test, near)
    findings += checks.check_image_sizes(scans, facts)
    findings += checks.check_storage(scans)
    return Examination(
        task,
        None if classes is None else len(classes),
        {split: _figures(split, scan, classes, facts) for split, scan in scans.items()},
        tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
    )


def _figures(
    split: str, scan: Scan, classes: tuple[str, ...] | None, facts: TaskFacts | None
) -> SplitFigures:
    counts = class_counts(scan, len(classes)) if classes and scan.images else None
    sides = [sorted((image.width, image.height)) for image in scan.readable]
    shorter, longer = zip(*sides, strict=True) if sides else ((), ())
    return SplitFigures(
        len(scan.images),
        getattr(facts, split, None),
        None if counts is None else (int(counts.min()), int(counts.max())),
        (min(shorter), max(shorter)) if sides else None,
        (min(longer), max(longer)) if sides else None,
    )
