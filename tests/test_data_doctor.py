"""The checks of data sets: each fault is planted and must be found, and a clean set passes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, noise
from PIL import ExifTags, Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.doctor import Examination, examine
from rmtllmf_jax.data.doctor.checks import (
    Finding,
    check_labels,
    check_prompts,
    check_sizes,
    nearest_hashes,
)
from rmtllmf_jax.data.doctor.scan import Scan, Seen, perceptual_hash
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.tasks import REGISTERED

DTD = task_facts("dtd").classes
Rows = dict[int, bytes | np.ndarray]


@dataclass
class Pile:
    """A source in memory: (image, label) pairs by split; `announced` overrides a split's size."""

    train: list[tuple[bytes | np.ndarray, int]]
    test: list[tuple[bytes | np.ndarray, int]]
    names: tuple[str, ...] = DTD
    task: str = "dtd"
    announced: dict[str, int] = field(default_factory=dict)
    validation: list[tuple[bytes | np.ndarray, int]] = field(default_factory=list)

    def tasks(self) -> tuple[str, ...]:
        return (self.task,)

    def classes(self, task: str) -> tuple[str, ...]:
        return self.names

    def splits(self, task: str) -> tuple[str, ...]:
        return ("train", "validation", "test") if self.validation else ("train", "test")

    def size(self, task: str, split: str) -> int:
        return self.announced.get(split, len(getattr(self, split)))

    def fingerprint(self, task: str, split: str) -> str:
        return "none"

    def examples(self, task: str, split: str) -> Iterator[Example]:
        for row, (image, label) in enumerate(getattr(self, split)):
            yield Example(image, label, f"{split} row {row}")


def draw(count: int, seed: int, classes: int = len(DTD)) -> list[tuple[np.ndarray, int]]:
    """Return random images of many sizes, with labels in turn."""
    random = np.random.default_rng(seed)
    sizes = random.integers(20, 30, (count, 2))
    noise = random.integers(0, 256, (count, 8), np.uint8)
    return [
        (np.resize(noise[row], (height, width, 3)), row % classes)
        for row, (height, width) in enumerate(sizes)
    ]


def clean(train: int = 94, test: int = 47) -> Pile:
    """Return a small data set without any fault but its size."""
    return Pile(draw(train, 0), draw(test, 1))


def picture(seed: int, side: int = 64) -> np.ndarray:
    """Return a smooth random picture, which survives scaling and compression."""
    coarse = Image.fromarray(noise(seed, 6, 6, 3))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def planted(
    train: Rows | None = None, test: Rows | None = None, names: tuple[str, ...] = DTD
) -> Pile:
    """Return a clean data set with some rows replaced."""
    pile = clean()
    for split, rows in ((pile.train, train), (pile.test, test)):
        for row, image in (rows or {}).items():
            split[row] = (image, row % 47)
    return replace(pile, names=names)


def named(task: str, names: tuple[str, ...]) -> Pile:
    """Return a small data set with other classes."""
    count = len(names)
    return Pile(draw(2 * count, 0, count), draw(count, 1, count), names, task)


def in_size(height: int, width: int, task: str = "dtd") -> Pile:
    """Return a small data set of images of one size."""
    classes = task_facts(task).classes
    splits = [
        [(np.resize(image, (height, width, 3)), x) for image, x in draw(count, seed, len(classes))]
        for seed, count in enumerate((94, 47))
    ]
    return Pile(*splits, classes, task)


def found(examination: Examination, check: str, level: str = "error") -> Finding:
    """Return the one finding of a check."""
    (finding,) = [x for x in examination.findings if (x.check, x.level) == (check, level)]
    return finding


def errors(examination: Examination) -> list[str]:
    """Return the checks that found an error."""
    return [finding.check for finding in examination.findings if finding.level == "error"]


def write_parquet(folder: Path, pile: Pile, rows_a_group: int = 8) -> Path:
    """Write a pile as a parquet folder and return its root."""
    task = folder / pile.task
    task.mkdir(parents=True)
    (task / "classes.json").write_text(json.dumps(pile.names))
    for split in ("train", "test"):
        rows = getattr(pile, split)
        images = [x if isinstance(x, bytes) else encoded(x, "PNG") for x, _ in rows]
        labels = pa.array([label for _, label in rows], pa.int32())
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, task / f"{split}.parquet", row_group_size=rows_a_group)
    return folder


def test_a_clean_data_set_at_full_size_has_nothing_to_report():
    assert isinstance(clean(), Source)
    examination = examine(clean(3760, 1880), "dtd")
    assert examination.findings == ()
    assert examination.classes == 47
    train, test = examination.splits["train"], examination.splits["test"]
    assert (train.images, train.full, train.images_a_class) == (3760, 3760, (80, 80))
    assert (test.images, test.full, test.images_a_class) == (1880, 1880, (40, 40))
    assert train.shorter_side == train.longer_side == (20, 29)


SEEN = clean().test
GREY = SEEN[0][0][:, :, 0]
FLAT = np.arange(24 * 26 * 3, dtype=np.uint8)
FOUR = [DTD[x] for x in (3, 40, 20, 7)]
SORTED_AS_TEXT = tuple(sorted(str(label) for label in range(43)))
ODD = in_size(256, 256)
ODD.test[4] = (np.resize(ODD.test[4][0], (256, 255, 3)), 4)
CROWDED = clean()
CROWDED.train += [(image, 3) for image, _ in draw(60, 2)]
SHIFTED = clean()
SHIFTED.train = [(image, label + 1) for image, label in SHIFTED.train]
UNLEARNT = clean()
UNLEARNT.train = [(image, label) for image, label in UNLEARNT.train if label]
UNTESTED = clean()
UNTESTED.test = [(image, label) for image, label in UNTESTED.test if label != 7]

FAULTS = {
    "subset": (
        clean(94, 1880),
        "warning: split sizes: train has 94 images, the reference has 3,760 -> a subset: acc",
    ),
    "train with test": (
        clean(5640, 1880),
        "error: split sizes: train has 5,640 images, .* -> .*has seen its test set",
    ),
    "larger split": (clean(3761, 1880), "warning: split sizes: .*images that were added"),
    "leak": (
        planted(
            {45: encoded(SEEN[5][0], "BMP"), 49: encoded(SEEN[9][0], compress_level=1)},
            {9: encoded(SEEN[9][0], compress_level=9)},
        ),
        r"error: overlap: 2 of 47 \(4.26 %\) test images are in train too: test row 5 = train row "
        "45; test row 9 = train row 49 -> .*too high",
    ),
    "grey leak": (
        planted({0: np.repeat(GREY[:, :, None], 3, axis=2)}, {0: GREY}),
        "error: overlap: .*test row 0 = train row 0",
    ),
    "two labels": (
        planted({1: clean().train[0][0]}),
        r"warning: conflicting labels: .*train row 0 \(label 0\) = train row 1 \(label 1\)",
    ),
    "repeated": (planted({1: clean().train[0][0]}), "note: duplicates: train: 1 of 94"),
    "shuffled order": (
        planted(names=(DTD[0], DTD[2], DTD[1], *DTD[3:])),
        "error: class order: label 1 is 'braided', in the registry 'blotchy'; label 2 is 'blotchy',"
        " in the registry 'braided' -> labels mean other classes",
    ),
    "shuffled subset": (named("dtd", tuple(FOUR)), "error: class order: label 1 is 'studded'"),
    "subset of classes": (
        named("dtd", tuple(sorted(FOUR))),
        "warning: class names: 4 of the 47 classes -> an easier task",
    ),
    "sorted as text": (
        named("gtsrb", SORTED_AS_TEXT),
        "error: class order: label 2 is '10', in the registry 'red and white circle 50 kph.* -> "
        ".*0, 1, 10, 11",
    ),
    "unknown names": (
        named("gtsrb", tuple("stop" if label == 14 else f"sign {label}" for label in range(43))),
        "warning: class names: 42 of 43 names are not known: sign 0; sign 1; sign 2; and 39 more "
        "-> their order cannot be checked",
    ),
    "merged classes": (
        named("dtd", (*DTD[:3], "anything else")),
        "warning: class names: 1 of 4 names are not known: anything else -> .*not comparable",
    ),
    "a class twice": (
        planted(names=(*DTD[:46], "Banded")),
        r"error: class names: named twice: 'banded' \(label 0\); 'Banded' \(label 46\)",
    ),
    "labels from one": (
        SHIFTED,
        r"error: labels: train: 2 of 94 \(2.13 %\) labels are not in 0 to 46: 47 at train row 46; "
        "47 at train row 93",
    ),
    "an unlearnt class": (
        UNLEARNT,
        "warning: label histogram: train has no image of 1 of 47 classes: 'banded' -> .*learnt",
    ),
    "an untested class": (
        UNTESTED,
        "warning: label histogram: test has no image of 1 of 47 classes: 'cracked' -> .*unknown",
    ),
    "imbalance": (
        CROWDED,
        "note: label histogram: train has 62 images of 'bubbly' and 2 of 'banded'",
    ),
    "unreadable": (
        planted({3: encoded(picture(0), "JPEG")[:-200], 7: b"no image"}),
        r"error: unreadable images: train: 2 of 94 .*: train row 3: not a readable image .*train "
        "row 7: not an image file of a known format",
    ),
    "miscounted": (
        replace(clean(), announced={"test": 50}),
        "error: reading: test: 47 images, 50 announced",
    ),
    "empty": (replace(clean(), test=[]), "error: reading: test is empty"),
    "other size": (
        in_size(28, 27, "mnist"),
        r"warning: image sizes: 141 of 141 \(100 %\) images are not 28 x 28 pixels",
    ),
    "resized": (in_size(64, 64), "warning: image sizes: all images are 64 x 64 .*resized copy"),
    "odd size": (
        ODD,
        r"warning: image sizes: 1 of 141 \(0.709 %\) images are not 256 x 256 pixels: test row 4 "
        r"\(255 x 256\)",
    ),
    "tiny": (
        planted({0: SEEN[0][0][:1]}),
        "warning: image sizes: .*under 16 pixels: train row 0",
    ),
    "unknown task": (named("pets", ("cat", "dog")), "note: registry: 'pets' is not in"),
}


@pytest.mark.parametrize(("pile", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(pile: Pile, expected: str):
    examination = examine(pile, pile.task)
    lines = [f"{x.level}: {x.check}: {x.what} -> {x.follows}" for x in examination.findings]
    assert len([line for line in lines if re.match(expected, line)]) == 1, lines
    # One planted error is one error; a shuffled order or a name given twice is not also another.
    assert len(errors(examination)) == expected.startswith("error")


def test_turned_and_deep_images_are_reported():
    pile = clean()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pile.train[2] = (encoded(Image.fromarray(noise(9, 20, 24, 3)), exif=exif), 2)
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30)
    pile.train[4] = (encoded(Image.fromarray(deep * 6)), 4)
    pile.test[5] = (encoded(Image.fromarray(deep * 100)), 5)
    examination = examine(pile, "dtd")
    lines = [f"{x.level}: {x.check}: {x.what} -> {x.follows}" for x in examination.findings]
    for expected in (
        r"note: orientation: train: 1 of 94 .* images are turned: train row 2 -> .*upright",
        r"note: 16-bit grey: train: 1 of 94 .* up to 3,594: read as 12-bit -> 4,095 becomes white",
        r"note: 16-bit grey: test: 1 of 47 .* up to 59,900: read as 16-bit -> 65,535 becomes",
        r"warning: 16-bit grey: train uses 12 bits and test uses 16 bits -> .*not equally bright",
    ):
        assert len([line for line in lines if re.match(expected, line)]) == 1, lines
    assert not [line for line in lines if "unreadable" in line]


def test_a_validation_split_is_checked_too():
    pile = clean()
    pile.validation = [*draw(47, 2), (pile.train[3][0], 3), (pile.test[4][0], 4)]
    pile.validation[7] = (pile.validation[7][0], 99)
    examination = examine(pile, "dtd")
    assert list(examination.splits) == ["train", "validation", "test"]
    assert examination.splits["validation"].images == 49
    assert examination.splits["validation"].full is None
    lines = [f"{x.level}: {x.check}: {x.what} -> {x.follows}" for x in examination.findings]
    for expected in (
        "error: overlap: 1 of 47 .* test images are in validation too: test row 4 = validation",
        "warning: overlap: 1 of 49 .* validation images are in train too: .*too high",
        "warning: split sizes: validation has 49 images, the reference has no such split",
        r"error: labels: validation: 1 of 49 .* 99 at validation row 7",
    ):
        assert len([line for line in lines if re.match(expected, line)]) == 1, lines


def test_a_leak_of_an_unknown_task_beside_unreadable_images_is_found():
    pile = replace(named("pets", ("cat", "dog")), test=draw(10, 1, 2))
    pile.train[:2] = [(pile.test[4][0], 0), (b"no image", 1)]
    examination = examine(pile, "pets")
    assert errors(examination) == ["unreadable images", "overlap"]
    assert examination.splits["train"].full is None
    assert examination.splits["train"].images == 4


@pytest.mark.parametrize("kind", ["transparent logos", "other shape", "one size"])
def test_what_is_no_fault_is_not_reported(kind: str):
    pile = clean()
    if kind == "other shape":
        pile = planted({0: FLAT.reshape(26, 24, 3)}, {0: FLAT.reshape(24, 26, 3)})
    elif kind == "one size":
        pile = in_size(256, 256)
    else:
        for split in (pile.train, pile.test):
            for row, (pixels, label) in enumerate(split):
                black = np.zeros((24, 24, 4), np.uint8)
                black[..., 3] = np.resize(pixels, (24, 24))
                split[row] = (encoded(black, "PNG"), label)
    examination = examine(pile, "dtd")
    assert errors(examination) == []
    sizes = [x for x in examination.findings if x.check == "image sizes"]
    assert (kind == "transparent logos") == bool(sizes)


@pytest.mark.parametrize("spelling", ["classes", "dataset_classes"])
def test_every_known_spelling_is_taken(spelling: str):
    pile = named("eurosat", getattr(task_facts("eurosat"), spelling))
    checks = {finding.check for finding in examine(pile, "eurosat").findings}
    assert checks == {"split sizes", "image sizes"}


def scan_with(counts: tuple[int, ...]) -> Scan:
    """Return a split with so many images of each class, none of which was looked at."""
    images = [Seen(label, "x") for label, count in enumerate(counts) for _ in range(count)]
    return Scan(tuple(images), len(images), "")


@pytest.mark.parametrize("task", ["mnist", "svhn"])
def test_labels_shuffled_behind_right_names_are_found_by_their_numbers(task: str):
    full = task_facts(task).train_counts
    assert full is not None
    counts = [count // 100 for count in full]
    facts = replace(task_facts(task), train_counts=tuple(counts))
    assert [*check_labels(facts.classes, {"train": scan_with(tuple(counts))}, facts)] == []
    counts[1], counts[4] = counts[4], counts[1]
    scans = {"train": scan_with(tuple(counts))}
    (finding,) = check_labels(facts.classes, scans, facts)
    assert (finding.level, finding.check) == ("error", "label histogram")
    assert f"{full[4] // 100} images of '1', official {full[1] // 100}" in finding.what
    # Names in the same wrong order describe the same data: it is their order that is wrong then.
    names = list(facts.classes)
    names[1], names[4] = names[4], names[1]
    assert [*check_labels(tuple(names), scans, facts)] == []


def test_other_numbers_a_class_are_a_warning():
    facts = task_facts("mnist")
    assert facts.test_counts is not None
    counts = (facts.test_counts[0] + 1, facts.test_counts[1] - 1, *facts.test_counts[2:])
    (finding,) = check_labels(facts.classes, {"test": scan_with(counts)}, facts)
    assert finding.level == "warning"
    assert "981 images of '0', official 980" in finding.what


def test_the_shards_before_a_truncated_one_are_checked(tmp_path: Path):
    pile = clean()
    pile.train[20] = (pile.test[11][0], 20)
    folder = write_parquet(tmp_path, pile) / "dtd"
    table = pq.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    for shard in range(3):
        path = folder / f"train-0000{shard}-of-00003.parquet"
        pq.write_table(table.slice(40 * shard, 40), path)
    path = folder / "train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    examination = examine(DataFolder(tmp_path), "dtd")
    finding = found(examination, "reading")
    assert finding.what.startswith("train: reading stopped after 40 images: ")
    assert str(path) in finding.what
    assert "row 20" in found(examination, "overlap").what
    assert examination.splits["test"].images_a_class == (1, 1)


def test_a_shard_that_is_damaged_inside_is_read_up_to_there(tmp_path: Path):
    root = write_parquet(tmp_path, clean())
    path = root / "dtd" / "test.parquet"
    column = pq.ParquetFile(path).metadata.row_group(4).column(0)
    damaged = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    damaged[start : start + 200] = b"\xff" * 200
    path.write_bytes(damaged)
    examination = examine(DataFolder(root), "dtd")
    finding = found(examination, "reading")
    assert finding.what.startswith("test: reading stopped after ")
    assert str(path) in finding.what
    assert examination.splits["test"].images <= 32
    assert examination.splits["train"].images == 94


def test_missing_class_names_do_not_stop_the_other_checks(tmp_path: Path):
    root = write_parquet(tmp_path, planted({20: SEEN[11][0]}))
    (root / "dtd" / "classes.json").unlink()
    examination = examine(DataFolder(root), "dtd")
    assert "classes.json" in found(examination, "class names").what
    assert found(examination, "overlap")
    assert examination.classes is None


def test_a_scaled_and_a_compressed_leak_are_nearly_equal():
    pile = Pile(
        [(picture(seed), seed % 47) for seed in range(60)],
        [(picture(1000 + seed), seed % 47) for seed in range(47)],
    )
    assert not [x for x in examine(pile, "dtd", near=10).findings if "near" in x.check]
    pile.test[3] = (encoded(picture(8), "JPEG", quality=90), 8)
    pile.test[5] = (picture(17, side=96), 17)
    pile.test[6] = (picture(21), 21)  # equal, which is another check's
    examination = examine(pile, "dtd", near=10)
    finding = found(examination, "near-duplicates", "warning")
    assert finding.what.startswith("2 of 47 (4.26 %) test images are within 10 of 256 bits")
    assert "test row 3 ~ train row 8" in finding.what
    assert "test row 5 ~ train row 17" in finding.what
    assert errors(examination) == ["overlap"]
    assert errors(examine(pile, "dtd")) == ["overlap"]


def test_a_perceptual_hash_says_where_the_image_becomes_brighter():
    # 17 x 16 pixels need no scaling, so each bit is known.
    grey = np.random.default_rng(0).integers(0, 256, (16, 17), np.uint8)
    expected = [int(grey[y, x + 1] > grey[y, x]) for y in range(16) for x in range(16)]
    bits = np.unpackbits(perceptual_hash(Image.fromarray(grey)).view(np.uint8))
    assert bits.tolist() == expected


def test_the_nearest_hash_is_that_of_a_plain_search():
    random = np.random.default_rng(0)
    hashes, others = (random.integers(0, 2**63, (n, 4)).astype(np.uint64) for n in (37, 50))

    def apart(a: np.ndarray, b: np.ndarray) -> int:
        return sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b))

    nearest, distances = nearest_hashes(hashes, others)
    for row, each in enumerate(hashes):
        plain = [apart(each, other) for other in others]
        assert distances[row] == min(plain)
        assert nearest[row] == plain.index(min(plain))


@pytest.mark.parametrize("task", REGISTERED)
def test_sizes_and_prompts_of_every_task_of_the_registry_are_checked(task: str):
    facts = task_facts(task)

    def said(train: int, test: int) -> list[str]:
        scans = {"train": Scan((), train, ""), "test": Scan((), test, "")}
        return [finding.what for finding in check_sizes(facts, scans)]

    assert said(facts.train, facts.test) == []
    assert said(facts.train - 1, facts.test + 1) == [
        f"train has {facts.train - 1:,} images, the reference has {facts.train:,}",
        f"test has {facts.test + 1:,} images, the reference has {facts.test:,}",
    ]
    asked: list[str] = []

    def tokens(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[ord(letter) for letter in text.ljust(200)] for text in texts])

    for names in (facts.classes, facts.dataset_classes):
        asked.clear()
        assert list(check_prompts(task, names, tokens)) == []
        wanted = {prompt.format(name) for prompt in facts.prompts for name in facts.classes}
        assert set(asked) == wanted


def test_prompts_that_do_not_tell_classes_apart_are_found():
    names = ("red_fox", "red fox", "Owl!", "owl", "猫")
    pile = named("zoo", names)

    def tokens(texts: Sequence[str]) -> np.ndarray:
        """Of a tokenizer of lower letters, as SigLIP's."""
        if any("猫" in text for text in texts):
            raise InputError(f"the text {texts[0]!r} holds characters that the vocabulary lacks.")
        codes = ["".join(filter(str.isalpha, text.lower())).ljust(30) for text in texts]
        return np.array([[ord(letter) for letter in code] for code in codes])

    said = [x for x in examine(pile, "zoo", tokens=tokens).findings if x.check == "prompts"]
    assert [x.level for x in said] == ["error", "warning", "warning"]
    assert said[0].what.startswith("1 of 4 classes cannot be read by the model: the text 'a photo")
    assert said[1].what == "the same in prompts: 'red_fox' and 'red fox'"
    assert said[2].what == "the same tokens in every prompt: 'Owl!' and 'owl'"
    alone = [x.what for x in examine(pile, "zoo").findings if x.check == "prompts"]
    assert alone == [said[1].what]
    clean = examine(named("zoo", ("a", "b")), "zoo", tokens=tokens)
    assert not [x for x in clean.findings if x.check == "prompts"]


def test_findings_come_gravest_first():
    pile = clean()
    pile.train[1] = (pile.train[0][0], 1)
    pile.train[20] = (pile.test[11][0], 20)
    levels = [finding.level for finding in examine(pile, "dtd").findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert set(levels) == {"error", "warning", "note"}


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match=r"no task 'mnist'\. It has: dtd"):
        examine(clean(), "mnist")
