"""Folders of parquet and image files: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, noise

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.data.sources import contents
from rmtllmf_jax.data.sources.folder import DataFolder

IMAGES = [b"zero", b"one", b"two"]


def write(root: Path, columns: dict[str, Any], split: str = "train", task: str = "dtd") -> Path:
    (root / task).mkdir(parents=True, exist_ok=True)
    (root / task / "classes.json").write_text(json.dumps({"classes": ["a", "b"]}))
    path = root / task / f"{split}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def read(root: Path) -> list[Example]:
    return list(DataFolder(root).examples("dtd", "train"))


def test_reads_rows_in_order_with_their_origin(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0], "id": ["x.png", "y.png", ""]})
    source = DataFolder(tmp_path)
    assert isinstance(source, Source)
    assert source.tasks() == ("dtd",)
    assert source.classes("dtd") == ("a", "b")
    assert source.size("dtd", "train") == 3
    assert read(tmp_path) == [
        Example(b"zero", 0, f"{path}: row 0 (id 'x.png')"),
        Example(b"one", 1, f"{path}: row 1 (id 'y.png')"),
        Example(b"two", 0, f"{path}: row 2 (id '')"),
    ]


def test_many_rows_of_wide_types_without_ids_come_in_order(tmp_path: Path) -> None:
    rows = [str(row).encode() for row in range(200)]
    labels = pa.array([row % 2 for row in range(200)], pa.int8())
    path = write(tmp_path, {"image": pa.array(rows, pa.large_binary()), "label": labels})
    examples = read(tmp_path)
    assert [example.image for example in examples] == rows
    assert examples[199] == Example(b"199", 1, f"{path}: row 199")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"left": IMAGES, "right": IMAGES, "label": [0, 1, 0]},
            r"no column 'image'; left and right may be meant\. Name it with --image-column",
        ),
        ({"image": IMAGES, "y": [0, 1, 0]}, "no column 'label'; it has image, y"),
        ({"image": ["a", "b", "c"], "label": [0, 1, 0]}, "must hold images, as files, got string"),
        ({"image": [{"path": "a"}], "label": [0]}, "must hold images, as files, got struct"),
        ({"image": IMAGES, "label": [0.0, 1.0, 0.0]}, "must hold integers or names, got double"),
        (
            {"image": [b"zero", None], "label": [0, 1], "id": ["x", "y"]},
            r"row 1 \(id 'y'\): column 'image' holds no bytes",
        ),
        (
            {"image": [{"bytes": b"", "path": "x"}, {"bytes": None, "path": "y"}], "label": [0, 1]},
            r"row 1 \(id 'y'\): column 'image' holds no bytes",
        ),
        (
            {"image": [{"bytes": b"", "path": "x"}, None], "label": [0, 1]},
            "row 1: column 'image' holds no bytes",
        ),
        ({"image": IMAGES, "label": [0, 1, None]}, "row 2: column 'label' is null"),
        (
            {"image": [b"x"], "label": [0], "id": pa.array([b"\xff\xfe"]).view(pa.string())},
            "not a readable parquet file",
        ),
    ],
)
def test_columns_and_values_that_cannot_be_used(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, columns)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        read(tmp_path)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    source = DataFolder(tmp_path)
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.fingerprint("dtd", "train") == expected
    paths = write_shards(tmp_path / "svhn", [2, 2])
    first = source.fingerprint("svhn", "train")
    swapped = [path.read_bytes() for path in reversed(paths)]
    for path, data in zip(paths, swapped, strict=True):
        path.write_bytes(data)
    assert source.fingerprint("svhn", "train") != first


def test_tasks_are_the_folders_with_a_split(tmp_path: Path) -> None:
    columns = {"image": IMAGES, "label": [0, 1, 0]}
    write(tmp_path, columns, task="svhn", split="test")
    write(tmp_path, columns, task="cars")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("x")
    assert DataFolder(tmp_path).tasks() == ("cars", "svhn")


def test_missing_splits_and_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    source = DataFolder(tmp_path)
    assert source.classes("dtd") == ("a", "b")
    with pytest.raises(InputError, match=r"dtd: no test split; it has train\..*--test-split"):
        source.size("dtd", "test")
    (path.parent / "classes.json").unlink()
    with pytest.raises(InputError, match=r"classes\.json: no such file"):
        source.classes("dtd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("{}", "expected a list"),
        ("[]", "expected a list"),
        ('{"classes": "ab"}', "expected a list"),
        ('["a", 3]', "class 1 must be a string, got 3"),
        ('["owl", "lynx", "owl"]', "classes 0 and 2 are both 'owl'"),
    ],
)
def test_unusable_classes(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]}).with_name("classes.json")
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path}: {message}"):
        DataFolder(tmp_path).classes("dtd")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    path.write_bytes(path.read_bytes()[:keep])
    source = DataFolder(tmp_path)
    for use in (lambda: source.size("dtd", "train"), lambda: read(tmp_path)):
        with pytest.raises(InputError, match=f"{path}: not a readable parquet file"):
            use()


def test_pages_overwritten_in_the_middle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.bytes(500) for _ in range(200)]
    path = write(tmp_path, {"image": images, "label": [0] * 200})
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    assert DataFolder(tmp_path).size("dtd", "train") == 200
    with pytest.raises(InputError, match=f"{path}: not a readable parquet file"):
        read(tmp_path)


HUB_METADATA = {
    "info": {
        "features": {
            "image": {"_type": "Image"},
            "label": {"names": ["owl", "lynx"], "_type": "ClassLabel"},
        }
    }
}


def write_shards(
    folder: Path, counts: list[int], split: str = "train", metadata: Any = HUB_METADATA
) -> list[Path]:
    """Write a split as Hugging Face does, rows numbered through all shards."""
    folder.mkdir(parents=True, exist_ok=True)
    first, paths = 0, []
    for index, count in enumerate(counts):
        rows = range(first, first + count)
        images = [{"bytes": str(row).encode(), "path": f"{row}.png"} for row in rows]
        table = pa.table({"image": images, "label": [row % 2 for row in rows]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        paths.append(folder / f"{split}-{index:05d}-of-{len(counts):05d}.parquet")
        pq.write_table(table, paths[-1])
        first += count
    return paths


@pytest.mark.parametrize("inside", ["", "data", "some_config"])
def test_a_downloaded_data_set_is_read_through_its_shards(tmp_path: Path, inside: str) -> None:
    paths = write_shards(tmp_path / "dtd" / inside, [3, 4, 2])
    write_shards(tmp_path / "dtd" / inside, [2], "test")
    source = DataFolder(tmp_path)
    assert source.tasks() == ("dtd",)
    assert source.classes("dtd") == ("owl", "lynx")
    assert (source.size("dtd", "train"), source.size("dtd", "test")) == (9, 2)
    examples = list(source.examples("dtd", "train"))
    assert [example.image for example in examples] == [b"%d" % row for row in range(9)]
    assert examples[4] == Example(b"4", 0, f"{paths[1]}: row 1 (id '4.png')")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "dtd", [2, 2, 2, 2])
    paths[0].unlink()
    paths[3].unlink()
    source = DataFolder(tmp_path)
    message = r"2 of 4 shards .*train-00000-of-00004\.parquet, train-00003-of-00004\.parquet"
    for use in (
        lambda: source.size("dtd", "train"),
        lambda: source.fingerprint("dtd", "train"),
        lambda: list(source.examples("dtd", "train")),
        lambda: source.classes("dtd"),
    ):
        with pytest.raises(InputError, match=message):
            use()


REVERSED = json.loads(json.dumps(HUB_METADATA))
REVERSED["info"]["features"]["label"]["names"].reverse()
NO_NAMES = r"classes\.json: no such file, and .*note no class names"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([("", [2, 2]), ("", [2])], "mixes sets of 1 and 2 shards"),
        ([("one", [2]), ("two", [2])], "'train' is there more than once: .*one.*two"),
        ([("", [2]), ("", [2], "test", REVERSED)], "note different class names"),
        *(
            ([("", [2], "train", metadata)], NO_NAMES)
            for metadata in (None, {}, {"info": None}, {"info": {"features": []}})
        ),
    ],
)
def test_shards_that_contradict_each_other(tmp_path: Path, written: list, message: str) -> None:
    for inside, *rest in written:
        write_shards(tmp_path / "dtd" / inside, *rest)
    with pytest.raises(InputError, match=message):
        DataFolder(tmp_path).classes("dtd")


def test_a_shard_that_is_there_twice(tmp_path: Path) -> None:
    first, _ = write_shards(tmp_path / "dtd", [2, 2])
    shutil.copy(first, first.with_name("train-00000-of-00002-0f3a.parquet"))
    with pytest.raises(InputError, match=r"3 shards of split 'train', 2 by their names"):
        DataFolder(tmp_path).size("dtd", "train")


def test_a_file_beside_shards_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    write_shards(tmp_path / "dtd" / "data", [2])
    with pytest.raises(InputError, match=r"'train' is there more than once: .*train\.parquet"):
        DataFolder(tmp_path).size("dtd", "train")


def test_of_two_configurations_the_registrys_is_taken(tmp_path: Path) -> None:
    write_shards(tmp_path / "svhn" / "cropped_digits", [3])
    write_shards(tmp_path / "svhn" / "full_numbers", [5])
    assert DataFolder(tmp_path).size("svhn", "train") == 3


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    hashed, source = [], DataFolder(tmp_path)
    monkeypatch.setattr(contents, "file_hash", lambda path: hashed.append(1) or file_hash(path))
    monkeypatch.setattr(contents, "_SETTLED", 0)
    first = source.fingerprint("dtd", "train")
    assert source.fingerprint("dtd", "train") == first
    assert len(hashed) == 1
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    assert source.fingerprint("dtd", "train") == hashlib.sha256(data).hexdigest() != first


def test_columns_go_by_what_the_file_calls_them(tmp_path: Path) -> None:
    features = {
        "picture": {"_type": "Image"},
        "kind": {"names": {"1": "lynx", "0": "owl"}, "_type": "ClassLabel"},
        "note": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table({"picture": [{"bytes": b"x", "path": None}], "kind": [1], "note": ["?"]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = tmp_path / "owls" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    source = DataFolder(tmp_path)
    assert source.classes("owls") == ("owl", "lynx")
    assert list(source.examples("owls", "train")) == [Example(b"x", 1, f"{path}: row 0")]


# Image files


def pixels(seed: int) -> np.ndarray:
    return noise(seed, 6, 6, 3)


FILES = {
    "train/owl/b.png": 0,
    "train/owl/a.JPG": 1,
    "train/lynx/z.bmp": 2,
    "train/lynx/10.webp": 3,
    "train/lynx/9.tif": 4,
    "test/owl/a.ppm": 5,
    "test/lynx/a.jpeg": 6,
}
KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the task `zoo`."""
    for name, seed in FILES.items():
        path = tmp_path / "zoo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = path.suffix[1:].lower()
        path.write_bytes(encoded(pixels(seed), KINDS.get(ending, ending.upper())))
    return tmp_path


def names(source: Source, split: str) -> list[tuple[str, int]]:
    examples = source.examples("zoo", split)
    return [("/".join(Path(e.origin).parts[-2:]), e.label) for e in examples]


TRAIN = [("lynx/10.webp", 0), ("lynx/9.tif", 0), ("lynx/z.bmp", 0), ("owl/a.JPG", 1)]
TRAIN += [("owl/b.png", 1)]


def test_labels_are_sorted_folders_and_images_are_sorted_files(root: Path) -> None:
    source = DataFolder(root)
    assert isinstance(source, Source)
    assert source.tasks() == ("zoo",)
    assert source.classes("zoo") == ("lynx", "owl")
    assert (source.size("zoo", "train"), source.size("zoo", "test")) == (5, 2)
    assert names(source, "train") == TRAIN
    assert names(source, "test") == [("lynx/a.jpeg", 0), ("owl/a.ppm", 1)]
    path = root / "zoo" / "train" / "owl" / "b.png"
    assert list(source.examples("zoo", "train"))[4] == Example(encoded(pixels(0)), 1, str(path))


def test_classes_json_sets_the_order_of_labels_and_images(root: Path) -> None:
    (root / "zoo" / "classes.json").write_text('{"classes": ["owl", "yak", "lynx"]}')
    source = DataFolder(root)
    assert source.classes("zoo") == ("owl", "yak", "lynx")
    assert names(source, "test") == [("owl/a.ppm", 0), ("lynx/a.jpeg", 2)]
    assert names(source, "train")[0] == ("owl/a.JPG", 0)


def test_images_reach_the_cache_and_unreadable_ones_are_named(root: Path, tmp_path: Path) -> None:
    loaded = load_split(DataFolder(root), "zoo", "train", 6, tmp_path / "cache")
    np.testing.assert_array_equal(loaded.images[2], pixels(2))
    np.testing.assert_array_equal(loaded.images[4], pixels(0))
    path = root / "zoo" / "train" / "owl" / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=f"^{path}: not a readable image"):
        load_split(DataFolder(root), "zoo", "train", 6, tmp_path / "cache")


def test_hidden_files_are_ignored(root: Path) -> None:
    (root / "zoo" / "train" / "owl" / ".DS_Store").write_text("x")
    (root / "zoo" / "train" / ".cache").mkdir()
    (root / ".git").mkdir()
    assert names(DataFolder(root), "train") == TRAIN
    assert DataFolder(root).classes("zoo") == ("lynx", "owl")


def edit(root: Path) -> None:
    path = root / "zoo/train/owl/b.png"
    stat = path.stat()
    path.write_bytes(encoded(pixels(0))[:-1] + b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


CHANGES = {
    "a name": lambda root: (root / "zoo/train/owl/b.png").rename(root / "zoo/train/owl/c.png"),
    "a byte": edit,
    "a class": lambda root: (root / "zoo/train/owl/b.png").rename(root / "zoo/train/lynx/b.png"),
    "labels": lambda root: (root / "zoo/classes.json").write_text('["owl", "lynx"]'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprints_follow_names_labels_and_every_byte(root: Path, change: str) -> None:
    source = DataFolder(root)
    first, test = source.fingerprint("zoo", "train"), source.fingerprint("zoo", "test")
    CHANGES[change](root)
    assert source.fingerprint("zoo", "train") != first
    assert (source.fingerprint("zoo", "test") == test) == (change != "labels")


def test_a_copy_elsewhere_has_the_same_fingerprint(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root / "zoo", copy / "zoo", copy_function=shutil.copyfile)
    for split in ("train", "test"):
        assert DataFolder(copy).fingerprint("zoo", split) == DataFolder(root).fingerprint(
            "zoo", split
        )


@pytest.mark.parametrize(
    ("name", "split", "named", "message"),
    [
        ("test/yak/a.png", "test", "test/yak", "class 'yak' is not in train"),
        ("train/owl/notes.txt", "train", "train/owl/notes.txt", r"not the name of an image file"),
        ("train/owl/more/a.png", "train", "train/owl/more", "expected image files here, got a f"),
        ("train/a.png", "train", "train/a.png", "expected class folders here, got a file"),
    ],
)
def test_what_is_no_image_of_a_class_is_refused(
    root: Path, name: str, split: str, named: str, message: str
) -> None:
    path = root / "zoo" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels(1)))
    source = DataFolder(root)
    for use in (source.size, source.fingerprint, lambda *of: list(source.examples(*of))):
        with pytest.raises(InputError, match=f"^{root / 'zoo' / named}: {message}"):
            use("zoo", split)


def test_classes_that_are_not_there_are_named(root: Path) -> None:
    (root / "zoo" / "classes.json").write_text('["owl"]')
    with pytest.raises(InputError, match=r"train/lynx: class 'lynx' is not in classes\.json"):
        DataFolder(root).size("zoo", "train")
    (root / "zoo" / "classes.json").unlink()
    shutil.rmtree(root / "zoo" / "train")
    with pytest.raises(InputError, match="zoo/train: no such folder; expected train/<class>"):
        DataFolder(root).classes("zoo")


def test_a_folder_takes_each_task_as_it_is_stored(root: Path) -> None:
    (root / "dtd").mkdir()
    (root / "dtd" / "classes.json").write_text(json.dumps(["a", "b"]))
    table = pa.table({"image": [encoded(pixels(0)), encoded(pixels(1))], "label": [1, 0]})
    pq.write_table(table, root / "dtd" / "train.parquet")
    source = DataFolder(root)
    assert isinstance(source, Source)
    assert source.tasks() == ("dtd", "zoo")
    assert (source.classes("dtd"), source.classes("zoo")) == (("a", "b"), ("lynx", "owl"))
    assert (source.size("dtd", "train"), source.size("zoo", "train")) == (2, 5)
    assert [example.label for example in source.examples("dtd", "train")] == [1, 0]
    assert names(source, "train") == TRAIN


def test_a_task_stored_both_ways_is_refused(root: Path) -> None:
    table = pa.table({"image": [encoded(pixels(0))], "label": [1]})
    pq.write_table(table, root / "zoo" / "train.parquet")
    with pytest.raises(InputError, match="zoo: holds parquet files and image folders"):
        DataFolder(root).size("zoo", "train")
