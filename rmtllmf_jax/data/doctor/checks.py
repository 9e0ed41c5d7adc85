"""The checks of a task's data, each an iterator of findings: `examine` puts them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt64

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.decode import bits_used
from rmtllmf_jax.data.doctor.scan import HASH_BITS, Scan, Seen
from rmtllmf_jax.data.registry import TaskFacts, prompt_classes, prompt_templates

Level = Literal["error", "warning", "note"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""From errors, which make a run's results meaningless or stop it, to mere notes."""

_NOT_COMPARABLE = "accuracies are not comparable with published ones"
_IMBALANCE = 10  # images of the largest class over those of the smallest
_TINY = 16  # pixels; below this nothing can be recognised
_RESIZED = 200  # pixels; a set of many sizes was scaled down if all images have one size below this
_USUAL = 0.9  # share of images with one size that makes other sizes odd
_BLOCK = 16  # test hashes that are compared with all train hashes at a time


@dataclass(frozen=True)
class Finding:
    """`what` a `check` saw in a task's data, and what `follows` from it for a run."""

    level: Level
    check: str
    what: str
    follows: str


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({100 * count / max(total, 1):.3g} %)"


def _some(items: Sequence[str], most: int = 3) -> str:
    shown = "; ".join(items[:most])
    return shown if len(items) <= most else f"{shown}; and {len(items) - most:,} more"


def check_reading(scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Report where reading a source failed, and unreadable images."""
    for split, scan in scans.items():
        read, announced = len(scan.images), scan.announced
        if scan.stopped:
            what = f"{split}: reading stopped after {read:,} images: {scan.stopped}"
            follows = "a run stops here; the checks below cover only the images before it"
            yield Finding("error", "reading", what, follows)
        elif not read:
            follows = "there is nothing to train on or to test"
            yield Finding("error", "reading", f"{split} is empty", follows)
        elif read != announced:
            what = f"{split}: {read:,} images, {announced:,} announced"
            yield Finding(
                "error", "reading", what, "a run stops here; the source contradicts itself"
            )
        broken = [image.fault for image in scan.images if image.fault]
        if broken:
            what = f"{split}: {_share(len(broken), read)} images cannot be read: {_some(broken)}"
            follows = "a run stops at the first of them; fetch these images again"
            yield Finding("error", "unreadable images", what, follows)


def check_sizes(facts: TaskFacts, scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Compare the numbers of images with the registry, and with other known numbers."""
    for split, scan in scans.items():
        size, expected = scan.announced, getattr(facts, split, None)
        if size is None or size == expected:
            continue
        if expected is None:
            what = f"{split} has {size:,} images, the reference has no such split"
            follows = f"they are not trained on: {_NOT_COMPARABLE}"
            yield Finding("warning", "split sizes", what, follows)
            continue
        level: Level = "warning"
        kind = "a subset" if size < expected else "another split, or images that were added"
        follows = f"{kind}: {_NOT_COMPARABLE}"
        for other in facts.other_sizes:
            if (other.split, other.size) == (split, size):
                level, follows = other.level, other.follows
        what = f"{split} has {size:,} images, the reference has {expected:,}"
        yield Finding(level, "split sizes", what, follows)


def check_classes(facts: TaskFacts, names: tuple[str, ...]) -> Iterator[Finding]:
    """Compare the class names and their order with the registry.

    A full set of names must be in the task's order; a subset, in the remaining order.
    """
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
    if len(counts) < len(known):
        twice = [f"{names[place]!r} (label {place})" for place, x in known if counts[x] > 1]
        follows = "one class has several labels: a correct answer may be counted as wrong"
        yield Finding("error", "class names", f"named twice: {_some(twice)}", follows)
    elif moved:
        follows = (
            "labels mean other classes than in published heads and checkpoints, which would be "
            "scored wrongly; put names and labels into the registry's order, or correct the names "
            f"if only they are wrong. {facts.note}"
        )
        yield Finding("error", "class order", _some(moved), follows)
    if unknown:
        what = f"{len(unknown)} of {len(names)} names are not known: {_some(unknown)}"
        follows = f"merged or other classes than the task's: {_NOT_COMPARABLE}"
        if complete:
            follows = "their order cannot be checked; zero-shot heads are built from these names"
        yield Finding("warning", "class names", what, follows)
    if known and not complete and len(counts) < total:
        what = f"{len(counts)} of the {total} classes"
        follows = f"an easier task: {_NOT_COMPARABLE}, and published heads do not fit"
        yield Finding("warning", "class names", what, follows)


def check_prompts(
    task: str, names: Sequence[str], tokens: Callable[[Sequence[str]], np.ndarray] | None
) -> Iterator[Finding]:
    """Report classes with identical prompts, or prompts that a model's tokenizer cannot read.

    `tokens` returns the tokens of texts, one row each, or raises `InputError`.
    """
    classes, templates = prompt_classes(task, names), prompt_templates(task, "ensemble")
    spelt: dict[str, list[str]] = {}
    for given, name in zip(names, classes, strict=True):
        spelt.setdefault(name, []).append(given)
    read: dict[tuple[bytes, tuple[int, ...]], list[str]] = {}
    wrong = []
    for name in spelt:
        if tokens is None:
            break
        try:
            rows = tokens([template.replace("{}", name) for template in templates])
        except InputError as error:
            wrong.append(str(error))
        else:
            read.setdefault((rows.tobytes(), rows.shape), []).append(name)
    alike = [" and ".join(map(repr, each)) for each in spelt.values() if len(each) > 1]
    if alike:
        follows = "a zero-shot head cannot tell them apart; give them other names"
        yield Finding("warning", "prompts", f"the same in prompts: {_some(alike)}", follows)
    alike = [" and ".join(map(repr, each)) for each in read.values() if len(each) > 1]
    if alike:
        what = f"the same tokens in every prompt: {_some(alike)}"
        follows = "this model's zero-shot head cannot tell them apart; give them other names"
        yield Finding("warning", "prompts", what, follows)
    if wrong:
        what = f"{len(wrong)} of {len(spelt)} classes cannot be read by the model: {_some(wrong)}"
        follows = (
            "a zero-shot head stops here; give them other names, or take other --templates or "
            "another --head"
        )
        yield Finding("error", "prompts", what, follows)


def check_labels(
    classes: tuple[str, ...], scans: Mapping[str, Scan], facts: TaskFacts | None
) -> Iterator[Finding]:
    """Check that labels are class indices, how often each occurs, and which never do."""
    for split, scan in scans.items():
        outside = [image for image in scan.images if not 0 <= image.label < len(classes)]
        if outside:
            odd = _some([f"{image.label} at {image.origin}" for image in outside])
            share = _share(len(outside), len(scan.images))
            what = f"{split}: {share} labels are not in 0 to {len(classes) - 1}: {odd}"
            follows = "a run stops at the first of them; labels that count from 1 are a usual cause"
            yield Finding("error", "labels", what, follows)
        if not scan.stopped and scan.images:
            counts = class_counts(scan, len(classes))
            yield from _check_histogram(split, classes, counts)
            if facts is not None:
                yield from _check_counts(facts, split, classes, counts)


def class_counts(scan: Scan, classes: int) -> Int64[np.ndarray, " classes"]:
    """Return the number of images of each class; labels outside are left out."""
    labels = np.array([image.label for image in scan.images], dtype=np.int64)
    inside = labels[(labels >= 0) & (labels < classes)]
    return np.bincount(inside, minlength=classes).astype(np.int64)


def _check_histogram(
    split: str, classes: tuple[str, ...], counts: Int64[np.ndarray, " classes"]
) -> Iterator[Finding]:
    empty = [repr(classes[label]) for label in np.flatnonzero(counts == 0)]
    if empty:
        what = f"{split} has no image of {len(empty)} of {len(classes)} classes: {_some(empty)}"
        follows = {
            "train": "these classes cannot be learnt, and have no few-shot samples",
            "validation": "what is chosen on validation images does not heed them",
            "test": "their accuracy is unknown, and the mean leaves them out",
        }[split]
        yield Finding("warning", "label histogram", what, follows)
    elif counts.max() > _IMBALANCE * counts.min():
        most, least = int(counts.argmax()), int(counts.argmin())
        what = (
            f"{split} has {counts[most]:,} images of {classes[most]!r} and {counts[least]:,} of "
            f"{classes[least]!r}"
        )
        follows = "accuracy is mostly that of the large classes"
        yield Finding("note", "label histogram", what, follows)


def _check_counts(
    facts: TaskFacts, split: str, classes: tuple[str, ...], counts: Int64[np.ndarray, " classes"]
) -> Iterator[Finding]:
    """Compare with the published numbers of images per class, which expose shuffled labels."""
    official = {"train": facts.train_counts, "test": facts.test_counts}.get(split)
    labels = [label for label in facts.labels_of(classes) if label is not None]
    if official is None or len(classes) != len(official) or counts.sum() != sum(official):
        return
    if sorted(labels) != [*range(len(official))]:
        return
    expected = np.array([official[label] for label in labels])
    wrong = np.flatnonzero(counts != expected)
    if not len(wrong):
        return
    what = f"{split}: " + _some(
        [f"{counts[x]:,} images of {classes[x]!r}, official {expected[x]:,}" for x in wrong]
    )
    if sorted(counts) == sorted(expected):
        follows = "the labels are shuffled: the numbers are those of other classes"
        yield Finding("error", "label histogram", what, follows)
    else:
        follows = f"another selection of images, or other labels: {_NOT_COMPARABLE}"
        yield Finding("warning", "label histogram", what, follows)


def check_overlap(scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Report equal images in two splits, and equal images within a split with their labels."""
    for early, late in (("train", "test"), ("train", "validation"), ("validation", "test")):
        if early in scans and late in scans:
            yield from _check_leak(early, scans[early], late, scans[late])
    for split, scan in scans.items():
        extra = len(scan.readable) - len({image.digest for image in scan.readable})
        if extra:
            what = f"{split}: {_share(extra, len(scan.readable))} images repeat another one"
            follows = "they count more than once; a validation part cut from train may share them"
            yield Finding("note", "duplicates", what, follows)
    labelled: dict[bytes, dict[int, Seen]] = {}
    for image in (image for scan in scans.values() for image in scan.readable):
        labelled.setdefault(image.digest, {}).setdefault(image.label, image)
    conflicts = [by.values() for by in labelled.values() if len(by) > 1]
    if conflicts:
        examples = [" = ".join(f"{x.origin} (label {x.label})" for x in each) for each in conflicts]
        what = f"{len(conflicts):,} images have more than one label: {_some(examples)}"
        follows = "at most one of the labels is right; a few such pairs are in Stanford Cars itself"
        yield Finding("warning", "conflicting labels", what, follows)


def _check_leak(early: str, before: Scan, late: str, after: Scan) -> Iterator[Finding]:
    first = {image.digest: image for image in reversed(before.readable)}
    leaked = [(image, first[image.digest]) for image in after.readable if image.digest in first]
    if not leaked:
        return
    pairs = _some([f"{image.origin} = {other.origin}" for image, other in leaked])
    what = f"{_share(len(leaked), len(after.readable))} {late} images are in {early} too: {pairs}"
    follows = (
        f"the model has seen them in training: its {late} accuracy is too high; take them out of "
        f"{early}"
    )
    if early == "validation":
        follows = "what is chosen on validation images is chosen on test images; take them out"
    level: Level = "error" if late == "test" else "warning"
    yield Finding(level, "overlap", what, follows)


def check_near_duplicates(task: str, train: Scan, test: Scan, near: int) -> Iterator[Finding]:
    """Report test images whose perceptual hash is within `near` bits of a train image's.

    Equal images are reported by `check_overlap` and left out.
    """
    known = {image.digest for image in train.readable}
    candidates = [image for image in test.readable if image.digest not in known]
    if not candidates or not train.readable:
        return
    nearest, distances = nearest_hashes(
        np.stack([x.perceptual for x in candidates if x.perceptual is not None]),
        np.stack([x.perceptual for x in train.readable if x.perceptual is not None]),
        f"comparing {task}",
    )
    order = np.argsort(distances, kind="stable")
    pairs = [
        f"{candidates[x].origin} ~ {train.readable[nearest[x]].origin} ({distances[x]} bits)"
        for x in order[distances[order] <= near]
    ]
    if pairs:
        what = (
            f"{_share(len(pairs), len(test.readable))} test images are within {near} of "
            f"{HASH_BITS} bits of a train image: {_some(pairs)}"
        )
        follows = (
            "perhaps the same picture scaled, cropped or compressed anew: look at them; plain "
            "areas and simple strokes (MNIST's ones) come this close by themselves"
        )
        yield Finding("warning", "near-duplicates", what, follows)


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
            nearest[block], distances[block] = apart.argmin(axis=1), apart.min(axis=1)
            advance(len(apart))
    return nearest, distances


def check_storage(scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Report images that EXIF rotates, and 16-bit grey ones with the range that they use."""
    used = {}
    for split, scan in scans.items():
        turned = [image for image in scan.readable if image.stored.turned]
        if turned:
            shown = _some([image.origin for image in turned])
            what = f"{split}: {_share(len(turned), len(scan.readable))} images are turned: {shown}"
            follows = "they are set upright, as EXIF notes; loaders that do not see them lying"
            yield Finding("note", "orientation", what, follows)
        deep = [image.stored.largest for image in scan.readable if image.stored.deep]
        if deep:
            used[split] = bits_used(max(deep))
            what = (
                f"{split}: {_share(len(deep), len(scan.readable))} images are 16-bit grey, with "
                f"values up to {max(deep):,}: read as {used[split]}-bit"
            )
            follows = f"{2 ** used[split] - 1:,} becomes white; other loaders clip above 255"
            yield Finding("note", "16-bit grey", what, follows)
    if len(set(used.values())) > 1:
        what = " and ".join(f"{split} uses {bits} bits" for split, bits in used.items())
        follows = "the splits are not equally bright: rescale the images to one range yourself"
        yield Finding("warning", "16-bit grey", what, follows)


def check_image_sizes(scans: Mapping[str, Scan], facts: TaskFacts | None) -> Iterator[Finding]:
    """Report images that are tiny, unlike nearly all others in size, or not of the task's size."""
    images = [image for scan in scans.values() for image in scan.readable]
    if not images:
        return

    def report(odd: list[Seen], what: str, follows: str) -> Iterator[Finding]:
        if odd:
            shown = _some([f"{x.origin} ({x.width} x {x.height})" for x in odd])
            what = f"{_share(len(odd), len(images))} images {what}: {shown}"
            yield Finding("warning", "image sizes", what, follows)

    (usual, number), *others = Counter((x.width, x.height) for x in images).most_common()
    expected = None if facts is None else facts.pixels
    if expected is not None:
        odd = [x for x in images if (x.width, x.height) != (expected, expected)]
        what = f"are not {expected} x {expected} pixels as in the original"
        follows = "other images, or resized ones: accuracies are not comparable"
        yield from report(odd, what, follows)
    elif others and number >= _USUAL * len(images):
        odd = [x for x in images if (x.width, x.height) != usual]
        what = f"are not {usual[0]} x {usual[1]} pixels"
        yield from report(odd, what, "perhaps they are of another source")
    elif facts is not None and not others and min(usual) < _RESIZED:
        what = f"all images are {usual[0]} x {usual[1]} pixels, unlike the original's"
        follows = f"a resized copy: {_NOT_COMPARABLE}"
        yield Finding("warning", "image sizes", what, follows)
    tiny = [x for x in images if min(x.width, x.height) < _TINY]
    follows = "too small to recognise much; damaged, perhaps"
    yield from report(tiny, f"are under {_TINY} pixels", follows)
