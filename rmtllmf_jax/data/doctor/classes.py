"""Checks of a source against the registry: split sizes, class names and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from rmtllmf_jax.data.doctor.finding import Finding, Level, share, some
from rmtllmf_jax.data.doctor.scan import Scan
from rmtllmf_jax.data.registry import TaskFacts

_NOT_COMPARABLE = "accuracies are not comparable with published ones"
_IMBALANCE = 10  # images of the largest class over those of the smallest


def check_sizes(facts: TaskFacts, scans: Mapping[str, Scan]) -> list[Finding]:
    """Compare the numbers of images with the registry, and with other known numbers."""
    findings = []
    for split, scan in scans.items():
        size, expected = scan.announced, {"train": facts.train, "test": facts.test}[split]
        if size is None or size == expected:
            continue
        seen = f"{split} has {size:,} images, the reference has {expected:,}"
        known = [o for o in facts.other_sizes if (o.split, o.size) == (split, size)]
        if known:
            findings.append(
                Finding(known[0].level, "split sizes", facts.name, seen, known[0].follows)
            )
        elif size < expected:
            follows = f"a subset: {_NOT_COMPARABLE}"
            findings.append(Finding("warning", "split sizes", facts.name, seen, follows))
        else:
            follows = f"another split, or images that were added: {_NOT_COMPARABLE}"
            findings.append(Finding("warning", "split sizes", facts.name, seen, follows))
    return findings


def check_classes(facts: TaskFacts, names: tuple[str, ...]) -> list[Finding]:
    """Compare the class names and their order with the registry.

    A full set of names must be in the task's order; a subset, in the remaining order.
    """

    def found(level: Level, check: str, what: str, follows: str) -> Finding:
        return Finding(level, check, facts.name, what, follows)

    total = len(facts.classes)
    complete = len(names) == total
    labels = facts.labels_of(names)
    known = [(place, label) for place, label in enumerate(labels) if label is not None]
    unknown = [name for name, label in zip(names, labels, strict=True) if label is None]
    counts = Counter(label for _, label in known)
    rightful = [place for place, _ in known] if complete else sorted(label for _, label in known)
    moved = [
        f"label {place} is {names[place]!r}, in the registry {facts.classes[right]!r}"
        for (place, label), right in zip(known, rightful, strict=True)
        if label != right
    ]
    findings = []
    if len(counts) < len(known):
        twice = [f"{names[place]!r} (label {place})" for place, x in known if counts[x] > 1]
        follows = "one class has several labels: a correct answer may be counted as wrong"
        findings.append(found("error", "class names", f"named twice: {some(twice)}", follows))
    elif moved:
        follows = (
            "labels mean other classes than in published heads and checkpoints, which would be "
            "scored wrongly; put names and labels into the registry's order, or correct the names "
            f"if only they are wrong. {facts.note}"
        )
        findings.append(found("error", "class order", some(moved), follows))
    if unknown:
        what = f"{len(unknown)} of {len(names)} names are not known: {some(unknown)}"
        follows = (
            "their order cannot be checked; zero-shot heads are built from these names"
            if complete
            else f"merged or other classes than the task's: {_NOT_COMPARABLE}"
        )
        findings.append(found("warning", "class names", what, follows))
    if known and not complete and len(counts) < total:
        what = f"{len(counts)} of the {total} classes"
        follows = f"an easier task: {_NOT_COMPARABLE}, and published heads do not fit"
        findings.append(found("warning", "class names", what, follows))
    return findings


def check_labels(
    task: str, classes: tuple[str, ...], scans: Mapping[str, Scan], facts: TaskFacts | None
) -> list[Finding]:
    """Check that labels are indices of classes, how often each occurs, and which never do."""
    findings = []
    for split, scan in scans.items():
        outside = [image for image in scan.images if not 0 <= image.label < len(classes)]
        if outside:
            findings.append(
                Finding(
                    "error",
                    "labels",
                    task,
                    f"{split}: {share(len(outside), len(scan.images))} labels are not in 0 to "
                    f"{len(classes) - 1}: "
                    + some([f"{image.label} at {image.origin}" for image in outside]),
                    "a run stops at the first of them; labels that count from 1 are a usual cause",
                )
            )
        counts = class_counts(scan, len(classes))
        if scan.stopped or not scan.images:
            continue
        findings += _check_histogram(task, split, classes, counts)
        if facts is not None:
            findings += _check_counts(facts, split, classes, counts)
    return findings


def class_counts(scan: Scan, classes: int) -> Int64[np.ndarray, " classes"]:
    """Return the number of images of each class; labels outside are left out."""
    labels = np.array([image.label for image in scan.images], dtype=np.int64)
    inside = labels[(labels >= 0) & (labels < classes)]
    return np.bincount(inside, minlength=classes).astype(np.int64)


def _check_histogram(
    task: str, split: str, classes: tuple[str, ...], counts: Int64[np.ndarray, " classes"]
) -> list[Finding]:
    empty = [repr(classes[label]) for label in np.flatnonzero(counts == 0)]
    if empty:
        what = f"{split} has no image of {len(empty)} of {len(classes)} classes: {some(empty)}"
        follows = {
            "train": "these classes cannot be learnt, and have no few-shot samples",
            "test": "their accuracy is unknown, and the mean leaves them out",
        }[split]
        return [Finding("warning", "label histogram", task, what, follows)]
    if counts.max() > _IMBALANCE * counts.min():
        most, least = int(counts.argmax()), int(counts.argmin())
        what = (
            f"{split} has {counts[most]:,} images of {classes[most]!r} and {counts[least]:,} of "
            f"{classes[least]!r}"
        )
        follows = "accuracy is mostly that of the large classes"
        return [Finding("note", "label histogram", task, what, follows)]
    return []


def _check_counts(
    facts: TaskFacts, split: str, classes: tuple[str, ...], counts: Int64[np.ndarray, " classes"]
) -> list[Finding]:
    """Compare with the published numbers of images per class, which expose shuffled labels."""
    official = {"train": facts.train_counts, "test": facts.test_counts}[split]
    labels = facts.labels_of(classes)
    if official is None or sorted(x for x in labels if x is not None) != [*range(len(official))]:
        return []
    if len(labels) != len(official) or counts.sum() != sum(official):
        return []
    expected = np.array([official[label] for label in labels if label is not None])
    wrong = np.flatnonzero(counts != expected)
    if not len(wrong):
        return []
    what = f"{split}: " + some(
        [f"{counts[x]:,} images of {classes[x]!r}, official {expected[x]:,}" for x in wrong]
    )
    if sorted(counts) == sorted(expected):
        follows = "the labels are shuffled: the numbers are those of other classes"
        return [Finding("error", "label histogram", facts.name, what, follows)]
    follows = f"another selection of images, or other labels: {_NOT_COMPARABLE}"
    return [Finding("warning", "label histogram", facts.name, what, follows)]
