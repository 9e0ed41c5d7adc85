"""The checks of data sets: each fault is planted and must be found, and a clean set passes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.doctor import Examination, examine
from rmtllmf_jax.data.doctor.checks import Finding, check_labels, nearest_hashes
from rmtllmf_jax.data.doctor.scan import Scan, Seen, perceptual_hash
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.data.sources.folder import DataFolder

DTD = task_facts("dtd").classes


@dataclass
class Pile:
    """A source in memory: (image, label) pairs by split; `announced` overrides a split's size."""

    train: list[tuple[bytes | np.ndarray, int]]
    test: list[tuple[bytes | np.ndarray, int]]
    names: tuple[str, ...] = DTD
    task: str = "dtd"
    announced: dict[str, int] = field(default_factory=dict)

    def tasks(self) -> tuple[str, ...]:
        return (self.task,)

    def classes(self, task: str) -> tuple[str, ...]:
        return self.names

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


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """Return an image as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def picture(seed: int, side: int = 64) -> np.ndarray:
    """Return a smooth random picture, which survives scaling and compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


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
        images = [x if isinstance(x, bytes) else encode(x, "PNG") for x, _ in rows]
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
    assert train.shorter_side == (20, 29)
    assert train.longer_side == (20, 29)


def test_a_subset_is_a_warning_and_no_error():
    examination = examine(clean(), "dtd")
    assert {finding.level for finding in examination.findings} == {"warning"}
    what = [x.what for x in examination.findings if x.check == "split sizes"]
    assert what == [
        "train has 94 images, the reference has 3,760",
        "test has 47 images, the reference has 1,880",
    ]


def test_a_train_split_that_holds_the_test_images_is_known_by_its_size():
    pile = clean(5640, 1880)
    finding = found(examine(pile, "dtd"), "split sizes")
    assert "5,640" in finding.what
    assert "has seen its test set" in finding.follows


def test_a_larger_split_of_no_known_size_is_a_warning():
    finding = found(examine(clean(3761, 1880), "dtd"), "split sizes", "warning")
    assert "images that were added" in finding.follows


def test_a_planted_leak_is_found_however_it_is_encoded():
    pile = clean()
    for row, encoded in (
        (5, encode(pile.test[5][0], "BMP")),
        (9, encode(pile.test[9][0], "PNG", compress_level=1)),
    ):
        pile.train[40 + row] = (encoded, pile.test[row][1])
        pile.test[row] = (encode(pile.test[row][0], "PNG", compress_level=9), pile.test[row][1])
    examination = examine(pile, "dtd")
    finding = found(examination, "overlap")
    assert finding.what == (
        "2 of 47 (4.26 %) test images are in train too: test row 5 = train row 45; "
        "test row 9 = train row 49"
    )
    assert "too high" in finding.follows
    assert errors(examination) == ["overlap"]


def test_black_logos_on_a_transparent_ground_are_no_leak():
    pile = clean()
    for split in (pile.train, pile.test):
        for row, (pixels, label) in enumerate(split):
            black = np.zeros((24, 24, 4), np.uint8)
            black[..., 3] = np.resize(pixels, (24, 24))
            split[row] = (encode(black, "PNG"), label)
    assert errors(examine(pile, "dtd")) == []


def test_a_grey_image_equals_itself_in_colour():
    pile = clean()
    grey = pile.test[0][0][:, :, 0]
    pile.test[0] = (grey, 0)
    pile.train[0] = (np.repeat(grey[:, :, None], 3, axis=2), 0)
    assert "test row 0 = train row 0" in found(examine(pile, "dtd"), "overlap").what


def test_equal_pixels_in_another_shape_are_no_leak():
    pile = clean()
    flat = np.arange(24 * 26 * 3, dtype=np.uint8)
    pile.test[0], pile.train[0] = (flat.reshape(24, 26, 3), 0), (flat.reshape(26, 24, 3), 0)
    assert errors(examine(pile, "dtd")) == []


def test_a_shuffled_class_order_is_found():
    shuffled = (DTD[0], DTD[2], DTD[1], *DTD[3:])
    finding = found(examine(replace(clean(), names=shuffled), "dtd"), "class order")
    assert finding.what == (
        "label 1 is 'braided', in the registry 'blotchy'; "
        "label 2 is 'blotchy', in the registry 'braided'"
    )
    assert "labels mean other classes" in finding.follows


def test_a_shuffled_order_of_a_subset_is_found_and_a_subset_in_order_is_not():
    some = [DTD[x] for x in (3, 7, 20, 40)]
    pile = Pile(draw(40, 0, 4), draw(20, 1, 4), names=tuple(some))
    examination = examine(pile, "dtd")
    assert errors(examination) == []
    assert found(examination, "class names", "warning").what == "4 of the 47 classes"
    some[1], some[3] = some[3], some[1]
    assert (
        "label 1 is 'studded'"
        in found(examine(replace(pile, names=tuple(some)), "dtd"), "class order").what
    )


def test_ids_that_were_sorted_as_text_are_found():
    names = tuple(sorted(str(label) for label in range(43)))
    pile = Pile(draw(86, 0, 43), draw(43, 1, 43), names=names, task="gtsrb")
    finding = found(examine(pile, "gtsrb"), "class order")
    assert finding.what.startswith("label 2 is '10', in the registry 'red and white circle 50 kph")
    assert "0, 1, 10, 11" in finding.follows


@pytest.mark.parametrize("spelling", ["classes", "dataset_classes"])
def test_every_known_spelling_is_taken(spelling: str):
    names = getattr(task_facts("eurosat"), spelling)
    pile = Pile(draw(20, 0, 10), draw(10, 1, 10), names=names, task="eurosat")
    checks = {finding.check for finding in examine(pile, "eurosat").findings}
    assert checks == {"split sizes", "image sizes"}


def test_unknown_names_are_reported_and_their_order_is_not_judged():
    names = tuple("stop" if label == 14 else f"sign {label}" for label in range(43))
    pile = Pile(draw(86, 0, 43), draw(43, 1, 43), names=names, task="gtsrb")
    examination = examine(pile, "gtsrb")
    finding = found(examination, "class names", "warning")
    assert finding.what == "42 of 43 names are not known: sign 0; sign 1; sign 2; and 39 more"
    assert "cannot be checked" in finding.follows
    assert errors(examination) == []


def test_merged_classes_are_not_comparable():
    names = (*DTD[:3], "anything else")
    pile = Pile(draw(40, 0, 4), draw(20, 1, 4), names=names)
    what = {x.what: x.follows for x in examine(pile, "dtd").findings if x.check == "class names"}
    assert set(what) == {"1 of 4 names are not known: anything else", "3 of the 47 classes"}
    assert all("not comparable" in follows for follows in what.values())


def test_a_class_with_two_labels_is_an_error():
    names = (*DTD[:46], "Banded")
    finding = found(examine(replace(clean(), names=names), "dtd"), "class names")
    assert finding.what == "named twice: 'banded' (label 0); 'Banded' (label 46)"


def test_labels_that_count_from_one_are_found():
    pile = clean()
    pile.train = [(image, label + 1) for image, label in pile.train]
    examination = examine(pile, "dtd")
    finding = found(examination, "labels")
    assert finding.what == (
        "train: 2 of 94 (2.13 %) labels are not in 0 to 46: 47 at train row 46; 47 at train row 93"
    )
    empty = found(examination, "label histogram", "warning")
    assert empty.what == "train has no image of 1 of 47 classes: 'banded'"


def test_an_untested_class_is_reported():
    pile = clean()
    pile.test = [(image, label) for image, label in pile.test if label != 7]
    finding = found(examine(pile, "dtd"), "label histogram", "warning")
    assert finding.what == "test has no image of 1 of 47 classes: 'cracked'"
    assert "unknown" in finding.follows


def test_strong_imbalance_is_a_note():
    pile = clean()
    pile.train += [(image, 3) for image, _ in draw(60, 2)]
    finding = found(examine(pile, "dtd"), "label histogram", "note")
    assert finding.what == "train has 62 images of 'bubbly' and 2 of 'banded'"


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


def test_equal_images_with_different_labels_are_found():
    pile = clean()
    pile.train[1] = (pile.train[0][0], 1)
    examination = examine(pile, "dtd")
    finding = found(examination, "conflicting labels", "warning")
    assert "train row 0 (label 0) = train row 1 (label 1)" in finding.what
    assert found(examination, "duplicates", "note").what.startswith("train: 1 of 94")
    assert errors(examination) == []


def test_a_truncated_image_is_found_and_the_others_are_checked():
    pile = clean()
    pile.train[3] = (encode(picture(0), "JPEG")[:-200], 3)
    pile.train[7] = (b"no image", 7)
    pile.train[20] = (pile.test[11][0], 20)
    examination = examine(pile, "dtd")
    finding = found(examination, "unreadable images")
    assert "2 of 94" in finding.what
    assert "train row 3: not a readable image" in finding.what
    assert "train row 7: not an image file of a known format" in finding.what
    assert "test row 11 = train row 20" in found(examination, "overlap").what
    assert examination.splits["train"].images == 94


def test_a_truncated_shard_is_found_and_the_other_split_is_checked(tmp_path: Path):
    root = write_parquet(tmp_path, clean())
    path = root / "dtd" / "train.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    examination = examine(DataFolder(root), "dtd")
    finding = found(examination, "reading")
    assert str(path) in finding.what
    assert "a run stops here" in finding.follows
    assert examination.splits["train"].images == 0
    assert examination.splits["test"].images == 47
    assert examination.splits["test"].images_a_class == (1, 1)


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
    pile = clean()
    pile.train[20] = (pile.test[11][0], 20)
    root = write_parquet(tmp_path, pile)
    (root / "dtd" / "classes.json").unlink()
    examination = examine(DataFolder(root), "dtd")
    assert "classes.json" in found(examination, "class names").what
    assert found(examination, "overlap")
    assert examination.classes is None


def test_a_source_that_miscounts_is_an_error():
    finding = found(examine(replace(clean(), announced={"test": 50}), "dtd"), "reading")
    assert finding.what == "test: 47 images, 50 announced"


def test_an_empty_split_is_an_error():
    assert found(examine(replace(clean(), test=[]), "dtd"), "reading").what == "test is empty"


def test_images_of_another_size_than_the_tasks_are_found():
    pile = Pile(draw(20, 0, 10), draw(10, 1, 10), task_facts("mnist").classes, "mnist")
    pile.train = [(np.resize(image, (28, 28)), label) for image, label in pile.train]
    finding = found(examine(pile, "mnist"), "image sizes", "warning")
    assert finding.what.startswith("10 of 30 (33.3 %) images are not 28 x 28 pixels")


def test_an_odd_sized_minority_is_found():
    pile = clean()
    pile.train = [(np.resize(image, (256, 256, 3)), label) for image, label in pile.train]
    pile.test = [(np.resize(image, (256, 256, 3)), label) for image, label in pile.test]
    assert not [x for x in examine(pile, "dtd").findings if x.check == "image sizes"]
    pile.test[4] = (np.resize(pile.test[4][0], (256, 255, 3)), 4)
    finding = found(examine(pile, "dtd"), "image sizes", "warning")
    assert finding.what == (
        "1 of 141 (0.709 %) images are not 256 x 256 pixels: test row 4 (255 x 256)"
    )


def test_tiny_images_are_found():
    pile = clean()
    pile.train[0] = (pile.train[0][0][:1], 0)
    finding = found(examine(pile, "dtd"), "image sizes", "warning")
    assert "under 16 pixels: train row 0" in finding.what


def test_a_scaled_and_a_compressed_leak_are_nearly_equal():
    pile = Pile(
        [(picture(seed), seed % 47) for seed in range(60)],
        [(picture(1000 + seed), seed % 47) for seed in range(47)],
    )
    assert not [x for x in examine(pile, "dtd", near=10).findings if "near" in x.check]
    pile.test[3] = (encode(picture(8), "JPEG", quality=90), 8)
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


def test_a_task_outside_the_registry_is_checked_against_itself():
    pile = Pile(draw(20, 0, 2), draw(10, 1, 2), ("cat", "dog"), "pets")
    pile.train[4] = (pile.test[4][0], 0)
    examination = examine(pile, "pets")
    assert found(examination, "registry", "note")
    assert errors(examination) == ["overlap"]
    assert examination.splits["train"].full is None


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


@pytest.mark.parametrize("near", [-1, 257])
def test_an_impossible_distance_is_refused(near: int):
    with pytest.raises(InputError, match=f"near must be in 0 to 256 bits, got {near}"):
        examine(clean(), "dtd", near=near)
