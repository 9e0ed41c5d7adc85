"""Sets that no registry knows: columns and splits of any names, in every way they are stored."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, noise

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.reading import Column, Part, Reading, names_of, parts_of
from rmtllmf_jax.data.registry import HubSet
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.sources.hub import HubSource
from rmtllmf_jax.data.task_data import load_task

NAMES = ("lynx", "owl", "yak")
SIZES = {"train": 6, "validation": 3, "test": 4}


def png(seed: int) -> bytes:
    return encoded(noise(seed, 6, 6, 3))


def seeds(split: str) -> list[int]:
    """Return the seeds of the images of a split, which also give their labels."""
    first = 100 * list(SIZES).index(split)
    return list(range(first, first + SIZES[split]))


def is_read(source: Source, task: str, *, validation: bool = True) -> None:
    """Check every split of a set of these images."""
    assert isinstance(source, Source)
    assert source.tasks() == (task,)
    assert source.classes(task) == NAMES
    assert source.splits(task) == (tuple(SIZES) if validation else ("train", "test"))
    prints = set()
    for split in source.splits(task):
        examples = list(source.examples(task, split))
        assert [example.image for example in examples] == [png(seed) for seed in seeds(split)]
        assert [example.label for example in examples] == [seed % 3 for seed in seeds(split)]
        assert source.size(task, split) == SIZES[split]
        prints.add(source.fingerprint(task, split))
    assert len(prints) == len(source.splits(task))


# What is recognised


@pytest.mark.parametrize(
    ("stored", "told", "expected"),
    [
        (["train", "test"], {}, {"train": "train", "test": "test"}),
        (["Train", "DEV", "TEST"], {}, {"train": "Train", "validation": "DEV", "test": "TEST"}),
        (
            ["train", "val", "test"],
            {"validation_split": "train"},
            {"train": "train", "test": "test"},
        ),
        (["training", "valid"], {"test_split": "valid"}, {"train": "training", "test": "valid"}),
        (
            ["train", "validation", "test"],
            {"train_split": "train+validation"},
            {"train": "train+validation", "test": "test"},
        ),
        (
            ["train"],
            {"train_split": "train[:80%]", "test_split": "train[80%:]"},
            {"train": "train[:80%]", "test": "train[80%:]"},
        ),
        (["train", "extra"], {}, {"train": "train"}),
    ],
    ids=str,
)
def test_splits_are_recognised(stored: list[str], told: dict[str, str], expected: dict) -> None:
    assert Reading(**told).splits(stored, "here") == expected


def test_splits_that_are_not_there_or_may_be_two() -> None:
    with pytest.raises(InputError, match=r"^here: val and dev may be validation: .*-split"):
        Reading().splits(["train", "val", "dev"], "here")
    with pytest.raises(InputError, match=r"^here: no split 'fold', .*to be test .*has train"):
        Reading(test_split="fold[2:]").splits(["train"], "here")
    with pytest.raises(InputError, match=r"^here: no test split; it has train\. Say which one"):
        Reading().split("test", ["train"], "here")
    with pytest.raises(InputError, match=r"split 'train\[80%': expected NAME"):
        parts_of("train[80%")


def test_parts_are_those_of_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": list(range(13))})
    for text in ("train[:35%]", "train[35%:]", "train[-5:]", "train[3:-2]", "train[90%:10%]"):
        (part,) = parts_of(text)
        instruction = datasets.ReadInstruction.from_spec(text)
        ((absolute),) = instruction.to_absolute({"train": 13})
        assert part.rows(13) == range(13)[absolute.from_ : absolute.to], text
    assert len(rows) == 13
    assert parts_of("train+val[:4]") == (Part("train"), Part("val", None, "4"))


IMAGE, CLASSES = Column("images", "Image"), Column("classes", "ClassLabel")
TEXT, NUMBERS = Column("texts", "string"), Column("numbers", "int64")


@pytest.mark.parametrize(
    ("there", "told", "expected"),
    [
        ({"image": IMAGE, "label": CLASSES, "superclass": CLASSES}, {}, ("image", "label")),
        ({"img": IMAGE, "labels": CLASSES}, {}, ("img", "labels")),
        ({"picture": IMAGE, "kind": CLASSES, "note": TEXT}, {}, ("picture", "kind")),
        ({"picture": IMAGE, "Category": TEXT, "note": TEXT}, {}, ("picture", "Category")),
        ({"a": IMAGE, "b": IMAGE, "label": NUMBERS}, {"image_column": "b"}, ("b", "label")),
        (
            {"img": IMAGE, "fine_label": CLASSES, "coarse_label": CLASSES},
            {"label_column": "coarse_label"},
            ("img", "coarse_label"),
        ),
    ],
    ids=str,
)
def test_columns_are_recognised(there: dict, told: dict, expected: tuple[str, str]) -> None:
    assert Reading(**told).columns(there, "here") == expected


def test_columns_that_may_be_two() -> None:
    there = {"img": IMAGE, "fine_label": CLASSES, "coarse_label": CLASSES}
    with pytest.raises(InputError, match=r"fine_label and coarse_label may be meant\. .*--label-c"):
        Reading().columns(there, "here")
    with pytest.raises(InputError, match=r"no column 'lable'; it has img, fine_label"):
        Reading(label_column="lable").columns(there, "here")


def test_labels_without_names_are_named_by_what_they_are() -> None:
    assert names_of(["10", "9", None, "1"]) == ("1", "9", "10")
    assert names_of([3, 1, 3]) == ("1", "3")
    assert names_of(["owl", "lynx", "10"]) == ("10", "lynx", "owl")


# Every way of storing a set


def dataset_dict(label: str = "classes", columns: tuple[str, str] = ("image", "label")) -> Any:
    """Return the set as `datasets` holds it."""
    datasets = pytest.importorskip("datasets")
    kinds = {
        "classes": (datasets.ClassLabel(names=list(NAMES)), lambda seed: seed % 3),
        "texts": (datasets.Value("string"), lambda seed: NAMES[seed % 3]),
        "numbers": (datasets.Value("int64"), lambda seed: 7 * (seed % 3) - 2),
    }
    kind, make = kinds[label]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: kind})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {
                    columns[0]: [{"bytes": png(s), "path": f"{s}.png"} for s in seeds(split)],
                    columns[1]: [make(seed) for seed in seeds(split)],
                },
                features=features,
            )
            for split in SIZES
        }
    )


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()


def converted(folder: Path, config: str = "default", **options: Any) -> Path:
    """Write the set as the hub's branch `refs/convert/parquet` has it."""
    for split, rows in dataset_dict(**options).items():
        (folder / config / split).mkdir(parents=True)
        for number in range(2):
            shard = rows.shard(2, number, contiguous=True)
            shard.to_parquet(folder / config / split / f"{number:04d}.parquet")
    return folder


@pytest.mark.parametrize("label", ["classes", "texts"])
@pytest.mark.parametrize("inside", ["", "zoo"])
def test_the_hubs_converted_parquet(tmp_path: Path, label: str, inside: str) -> None:
    folder = converted(tmp_path / "zoo", label=label, columns=("img", "labels"))
    is_read(DataFolder(tmp_path if inside else folder), "zoo")


def test_each_configuration_is_a_task_and_missing_files_are_named(tmp_path: Path) -> None:
    converted(tmp_path, "small")
    converted(tmp_path, "large")
    assert DataFolder(tmp_path).tasks() == ("large", "small")
    is_read(DataFolder(tmp_path / "small"), "small")
    (tmp_path / "small" / "train" / "0000.parquet").unlink()
    with pytest.raises(InputError, match=r"small/train: files are missing: 0000\.parquet"):
        DataFolder(tmp_path).size("small", "train")


@pytest.mark.parametrize("label", ["classes", "texts"])
@pytest.mark.parametrize("inside", ["", "zoo"])
def test_what_save_to_disk_writes(tmp_path: Path, label: str, inside: str) -> None:
    dataset_dict(label, ("img", "kind")).save_to_disk(
        tmp_path / "zoo", num_shards={"train": 2, "validation": 1, "test": 1}
    )
    told = Reading(label_column="kind")
    is_read(DataFolder(tmp_path if inside else tmp_path / "zoo", told), "zoo")
    path = next((tmp_path / "zoo" / "train").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"train/data-0000.*not a readable Arrow file"):
        DataFolder(tmp_path / "zoo", told).size("zoo", "train")


def test_one_saved_dataset_is_cut_into_parts(tmp_path: Path) -> None:
    dataset_dict()["train"].save_to_disk(tmp_path / "zoo")
    source = DataFolder(tmp_path / "zoo", Reading(train_split="train[:4]", test_split="train[4:]"))
    assert source.splits("zoo") == ("train", "test")
    assert (source.size("zoo", "train"), source.size("zoo", "test")) == (4, 2)
    examples = list(source.examples("zoo", "test"))
    assert [example.image for example in examples] == [png(4), png(5)]
    whole = DataFolder(tmp_path / "zoo")
    prints = {each.fingerprint("zoo", "train") for each in (source, whole)}
    assert len({*prints, source.fingerprint("zoo", "test")}) == 3
    with pytest.raises(InputError, match=r"zoo: no test split; it has train\..*'train\[80%:\]'"):
        whole.size("zoo", "test")


def test_numbers_that_are_no_positions_are_names(tmp_path: Path) -> None:
    dataset_dict("numbers").save_to_disk(tmp_path / "zoo")
    source = DataFolder(tmp_path / "zoo")
    assert source.classes("zoo") == ("-2", "5", "12")
    labels = [example.label for example in source.examples("zoo", "test")]
    assert labels == [seed % 3 for seed in seeds("test")]


def listed(folder: Path, kind: str) -> Path:
    """Write the set as image files and lists of them."""
    (folder / "images").mkdir(parents=True)
    splits = {"train": "train", "validation": "val", "test": "test"}
    rows = []
    for split, name in splits.items():
        for seed in seeds(split):
            place = folder / name if kind == "metadata" else folder / "images"
            place.mkdir(exist_ok=True)
            (place / f"{seed}.png").write_bytes(png(seed))
            rows.append({"file_name": f"{seed}.png", "label": NAMES[seed % 3], "split": name})

    def table(path: Path, rows: list[dict[str, str]], columns: list[str], delimiter: str) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter=delimiter, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    if kind == "one table":
        table(folder / "labels.csv", rows, ["file_name", "label", "split"], ",")
    for name in splits.values():
        own = [row for row in rows if row["split"] == name]
        if kind == "tsv":
            table(folder / f"{name}.tsv", own, ["file_name", "label"], "\t")
        elif kind == "metadata":
            table(folder / name / "metadata.csv", own, ["file_name", "label"], ",")
        elif kind == "jsonl":
            lines = [json.dumps({"path": row["file_name"], "target": row["label"]}) for row in own]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        elif kind == "txt":
            lines = [f"images/{row['file_name']} {row['label']}" for row in own]
            (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("kind", ["one table", "tsv", "metadata", "jsonl", "txt"])
def test_flat_folders_with_lists(tmp_path: Path, kind: str) -> None:
    is_read(DataFolder(listed(tmp_path / "zoo", kind)), "zoo")
    is_read(DataFolder(tmp_path), "zoo")


def test_lists_may_name_the_folder_of_the_class_and_classes_json_the_numbers(
    tmp_path: Path,
) -> None:
    for split in ("train", "test"):
        for seed in seeds(split):
            path = tmp_path / "zoo" / "all" / NAMES[seed % 3] / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(seed))
        lines = [f"all/{NAMES[seed % 3]}/{seed}.png" for seed in seeds(split)]
        (tmp_path / "zoo" / f"{split}.txt").write_text("\n".join(lines))
    is_read(DataFolder(tmp_path / "zoo"), "zoo", validation=False)
    for split in ("train", "test"):
        lines = [f"all/{NAMES[seed % 3]}/{seed}.png {seed % 3}" for seed in seeds(split)]
        (tmp_path / "zoo" / f"{split}.txt").write_text("\n".join(lines))
    (tmp_path / "zoo" / "classes.json").write_text(json.dumps(NAMES))
    is_read(DataFolder(tmp_path / "zoo"), "zoo", validation=False)


def test_lists_that_name_what_is_not_there(tmp_path: Path) -> None:
    folder = listed(tmp_path / "zoo", "tsv")
    path = folder / "test.tsv"
    text = path.read_text()
    path.write_text(text.replace("201.png", "210.png"))
    with pytest.raises(InputError, match=r"test\.tsv: '210\.png': no such file next to the list"):
        DataFolder(folder).size("zoo", "test")
    path.write_text(text.replace("owl", "emu"))
    with pytest.raises(InputError, match=r"label 'emu' is none of the 3 classes of train"):
        DataFolder(folder).size("zoo", "test")
    path.write_text(text.replace("file_name", "x").replace("label", "y"))
    with pytest.raises(InputError, match=r"no column of file names; it has x, y\..*--image-column"):
        DataFolder(folder).size("zoo", "test")


@pytest.mark.parametrize("name", ["val", "validation", "dev", "VAL"])
def test_image_folders_with_validation(tmp_path: Path, name: str) -> None:
    for split in SIZES:
        for seed in seeds(split):
            place = name if split == "validation" else split
            path = tmp_path / "zoo" / place / NAMES[seed % 3] / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(seed))
    for source in (DataFolder(tmp_path), DataFolder(tmp_path / "zoo")):
        assert source.tasks() == ("zoo",)
        assert source.splits("zoo") == tuple(SIZES)
        assert [source.size("zoo", split) for split in SIZES] == list(SIZES.values())


def test_a_told_column_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = converted(tmp_path / "zoo")
    prints = {
        DataFolder(folder, told).fingerprint("zoo", "train")
        for told in (Reading(), Reading(label_column="label"))
    }
    assert len(prints) == 2


# What the pipeline sees


def test_a_validation_split_is_used_and_covered_by_the_hash(tmp_path: Path) -> None:
    folder = converted(tmp_path / "zoo")

    def load(**told: str) -> Any:
        source = DataFolder(folder, Reading(**told))
        return load_task(source, "zoo", 6, tmp_path / "cache", validation_fraction=0.34)

    own, cut = load(), load(validation_split="train")
    assert [len(own.train), len(own.validation), len(own.test)] == [6, 3, 4]
    np.testing.assert_array_equal(own.validation.images[0], noise(100, 6, 6, 3))
    assert [len(cut.train), len(cut.validation), len(cut.test)] == [3, 3, 4]
    assert own.train.split.fingerprint == cut.train.split.fingerprint == cut.fingerprint
    assert own.fingerprint != cut.fingerprint
    other = load(validation_split="test[:2]", test_split="test[2:]")
    assert len({own.fingerprint, cut.fingerprint, other.fingerprint}) == 3


# Pixels as arrays


def deep(seed: int, bits: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, (6, 6)).astype(np.uint16)


@pytest.mark.parametrize("stored", ["lists", "parquet", "save_to_disk", "hub"])
def test_columns_of_pixels_are_images(tmp_path: Path, stored: str) -> None:
    """Grey of 16 bits is scaled by the range of its split: 12 bits in train, 14 in test."""
    datasets = pytest.importorskip("datasets")
    pixels = {"train": [deep(i, 12) for i in range(4)], "test": [deep(i, 14) for i in range(2)]}
    for images, most in zip(pixels.values(), (4095, 16383), strict=True):
        images[1][2, 3] = most
    labels = {split: [i % 2 for i in range(len(images))] for split, images in pixels.items()}
    folder = tmp_path / "scans"
    folder.mkdir()
    source: Source
    if stored == "lists":
        kind = pa.list_(pa.list_(pa.uint16()))
        for split, images in pixels.items():
            columns = {"image": pa.array([x.tolist() for x in images], kind)}
            columns["label"] = pa.array(labels[split])
            pq.write_table(pa.table(columns), folder / f"{split}.parquet")
        (folder / "classes.json").write_text('["a", "b"]')
        source = DataFolder(folder)
    else:
        names = datasets.ClassLabel(names=["a", "b"])
        kinds = datasets.Features({"image": datasets.Array2D((6, 6), "uint16"), "label": names})
        rows = datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {"image": images, "label": labels[split]}, features=kinds
                )
                for split, images in pixels.items()
            }
        )
        if stored == "save_to_disk":
            rows.save_to_disk(folder)
        else:
            for split, part in rows.items():
                part.to_parquet(folder / f"{split}.parquet")
        found = HubSource(tmp_path / "d", {"scans": HubSet(str(folder))})
        source = found if stored == "hub" else DataFolder(folder)
    assert source.classes("scans") == ("a", "b")
    task = load_task(source, "scans", 6, tmp_path / "cache", validation_fraction=0.0)
    for split, most in (("train", 4095), ("test", 16383)):
        expected = np.rint(np.stack(pixels[split])[..., None] * (255 / most)) * np.ones(3)
        np.testing.assert_array_equal(getattr(task, split).images, expected)
    assert source.fingerprint("scans", "train") != source.fingerprint("scans", "test")


def test_rows_of_pixels_that_are_no_image(tmp_path: Path) -> None:
    kind = pa.list_(pa.list_(pa.uint8()))
    columns = {"image": pa.array([[[1, 2], [3]]], kind), "label": pa.array(["a"])}
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    said = r"train\.parquet: row 0: its rows of pixels are no image \("
    with pytest.raises(InputError, match=said):
        list(DataFolder(tmp_path).examples(tmp_path.name, "train"))


# The hub


@pytest.mark.parametrize("label", ["classes", "texts"])
def test_any_set_of_the_hub(tmp_path: Path, label: str) -> None:
    folder = converted(tmp_path / "zoo", label=label, columns=("img", "labels"))
    is_read(HubSource(tmp_path / "d", {"zoo": HubSet(str(folder))}), "zoo")


def test_parts_and_columns_of_a_set_of_the_hub(tmp_path: Path) -> None:
    folder = converted(tmp_path / "zoo", label="numbers")
    told = Reading(train_split="train[:4]+validation", test_split="train[4:]")
    source = HubSource(tmp_path / "d", {"zoo": HubSet(str(folder), reading=told)})
    assert source.classes("zoo") == ("-2", "5", "12")
    assert source.splits("zoo") == ("train", "test")
    images = [example.image for example in source.examples("zoo", "train")]
    assert images == [png(seed) for seed in (0, 1, 2, 3, 100, 101, 102)]
    assert source.size("zoo", "train") == 7
    assert source.fingerprint("zoo", "train") != source.fingerprint("zoo", "test")
