"""The parquet folder: what it reads, and what it says about files it cannot read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.data.sources import contents
from rmtllmf_jax.data.sources.parquet import ParquetFolder
from rmtllmf_jax.data.sources.parquet_file import columns_in

IMAGES = [b"zero", b"one", b"two"]


def write(root: Path, columns: dict[str, Any], split: str = "train", task: str = "dtd") -> Path:
    (root / task).mkdir(parents=True, exist_ok=True)
    (root / task / "classes.json").write_text(json.dumps({"classes": ["a", "b"]}))
    path = root / task / f"{split}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def read(root: Path) -> list[Example]:
    return list(ParquetFolder(root).examples("dtd", "train"))


def test_reads_rows_in_order_with_their_origin(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0], "id": ["x.png", "y.png", ""]})
    source = ParquetFolder(tmp_path)
    assert isinstance(source, Source)
    assert source.tasks() == ("dtd",)
    assert source.classes("dtd") == ("a", "b")
    assert source.size("dtd", "train") == 3
    assert read(tmp_path) == [
        Example(b"zero", 0, f"{path}: row 0 (id 'x.png')"),
        Example(b"one", 1, f"{path}: row 1 (id 'y.png')"),
        Example(b"two", 0, f"{path}: row 2 (id '')"),
    ]


def test_ids_are_optional_and_types_may_be_wide(tmp_path: Path) -> None:
    columns = {
        "image": pa.array(IMAGES, pa.large_binary()),
        "label": pa.array([0, 1, 0], pa.int8()),
    }
    path = write(tmp_path, columns)
    assert [example.image for example in read(tmp_path)] == IMAGES
    assert read(tmp_path)[2].origin == f"{path}: row 2"


def test_many_rows_come_in_batches_and_in_order(tmp_path: Path) -> None:
    rows = 1000
    columns = {"image": [str(row).encode() for row in range(rows)], "label": list(range(rows))}
    write(tmp_path, columns)
    examples = ParquetFolder(tmp_path).examples("dtd", "train")
    assert next(examples).label == 0
    rest = list(examples)
    assert [example.label for example in rest] == list(range(1, rows))
    assert rest[-1].image == b"999"
    assert rest[-1].origin.endswith("row 999")


def test_hugging_face_structs(tmp_path: Path) -> None:
    structs = [{"bytes": data, "path": f"{data.decode()}.png"} for data in IMAGES]
    path = write(tmp_path, {"image": structs, "label": [0, 1, 0]})
    assert [example.image for example in read(tmp_path)] == IMAGES
    assert read(tmp_path)[1].origin == f"{path}: row 1 (id 'one.png')"


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": "two.png"}])
def test_structs_without_bytes(tmp_path: Path, missing: Any) -> None:
    structs = [{"bytes": b"zero", "path": "zero.png"}, missing]
    path = write(tmp_path, {"image": structs, "label": [0, 1]})
    with pytest.raises(InputError, match=rf"{path}: row 1.*column 'image' holds no bytes"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([b"zero", None, b"two"], [0, 1, 0], r"row 1 \(id 'y'\): column 'image' holds no bytes"),
        (IMAGES, [0, 1, None], r"row 2 \(id 'z'\): column 'label' is null"),
    ],
)
def test_nulls_name_file_and_row(tmp_path: Path, images: Any, labels: Any, message: str) -> None:
    path = write(tmp_path, {"image": images, "label": labels, "id": ["x", "y", "z"]})
    with pytest.raises(InputError, match=f"{path}: {message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": IMAGES, "label": [0, 1, 0]}, "no column 'image'; it has picture, label"),
        ({"image": IMAGES, "y": [0, 1, 0]}, "no column 'label'; it has image, y"),
        ({"image": ["a", "b", "c"], "label": [0, 1, 0]}, "must hold bytes, got string"),
        ({"image": [{"path": "a"}], "label": [0]}, "must hold bytes, got struct"),
        ({"image": IMAGES, "label": [0.0, 1.0, 0.0]}, "must hold integers, got double"),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write(tmp_path, columns)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        read(tmp_path)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    source = ParquetFolder(tmp_path)
    write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    first = source.fingerprint("dtd", "train")
    write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    assert source.fingerprint("dtd", "train") == first
    write(tmp_path, {"image": IMAGES, "label": [0, 1, 1]})
    assert source.fingerprint("dtd", "train") != first


def test_tasks_are_the_folders_with_a_split(tmp_path: Path) -> None:
    columns = {"image": IMAGES, "label": [0, 1, 0]}
    write(tmp_path, columns, task="svhn", split="test")
    write(tmp_path, columns, task="cars")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("x")
    assert ParquetFolder(tmp_path).tasks() == ("cars", "svhn")


def test_missing_folders_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        ParquetFolder(tmp_path / "nowhere").tasks()
    with pytest.raises(InputError, match=f"{tmp_path}: holds no task"):
        ParquetFolder(tmp_path).tasks()
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    source = ParquetFolder(tmp_path)
    with pytest.raises(InputError, match=r"unknown task 'dtt'.*'dtd'"):
        source.classes("dtt")
    with pytest.raises(InputError, match=r"unknown split 'val'.*train, test"):
        source.size("dtd", "val")
    with pytest.raises(InputError, match=r"test\.parquet: no such file"):
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
    ],
)
def test_unusable_classes(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]}).with_name("classes.json")
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path}: {message}"):
        ParquetFolder(tmp_path).classes("dtd")


def test_classes_may_be_a_plain_list(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]}).with_name("classes.json")
    path.write_text('["owl", "lynx"]')
    assert ParquetFolder(tmp_path).classes("dtd") == ("owl", "lynx")


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    path.write_bytes(path.read_bytes()[:keep])
    source = ParquetFolder(tmp_path)
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
    assert ParquetFolder(tmp_path).size("dtd", "train") == 200
    with pytest.raises(InputError, match=f"{path}: not a readable parquet file"):
        read(tmp_path)


def test_ids_that_are_no_text(tmp_path: Path) -> None:
    broken = pa.array([b"\xff\xfe", b"y", b"z"]).view(pa.string())
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0], "id": broken})
    with pytest.raises(InputError, match=f"{path}: not a readable parquet file"):
        read(tmp_path)


def test_class_names_that_stand_twice_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]}).with_name("classes.json")
    path.write_text('["owl", "lynx", "owl"]')
    with pytest.raises(InputError, match=r"classes\.json: classes 0 and 2 are both 'owl'"):
        ParquetFolder(tmp_path).classes("dtd")


@pytest.mark.parametrize("start", [0, 1, 99, 100, 101, 640, 999, 1000])
def test_starts_at_a_row(tmp_path: Path, start: int) -> None:
    rows = 1000
    table = pa.table({"image": [str(row).encode() for row in range(rows)], "label": range(rows)})
    path = tmp_path / "dtd" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=100)
    examples = list(ParquetFolder(tmp_path).examples("dtd", "train", start))
    assert [example.label for example in examples] == list(range(start, rows))
    for example in examples[:1]:
        assert (example.image, example.origin) == (str(start).encode(), f"{path}: row {start}")


def test_row_groups_before_the_start_are_not_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(500) for _ in range(200)], "label": list(range(200))})
    path = tmp_path / "dtd" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=100)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)  # the first group is damaged
    path.write_bytes(data)
    source = ParquetFolder(tmp_path)
    assert [e.label for e in source.examples("dtd", "train", 150)] == list(range(150, 200))
    with pytest.raises(InputError, match="not a readable parquet file"):
        list(source.examples("dtd", "train", 99))


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
    source = ParquetFolder(tmp_path)
    assert source.tasks() == ("dtd",)
    assert source.classes("dtd") == ("owl", "lynx")
    assert (source.size("dtd", "train"), source.size("dtd", "test")) == (9, 2)
    for start in range(10):
        examples = list(source.examples("dtd", "train", start))
        assert [example.image for example in examples] == [b"%d" % row for row in range(start, 9)]
    example = next(source.examples("dtd", "train", 4))
    assert example == Example(b"4", 0, f"{paths[1]}: row 1 (id '4.png')")


def test_shards_before_the_start_are_not_read(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "dtd", [300, 4])
    data = bytearray(paths[0].read_bytes())
    data[4:1000] = bytes(996)
    paths[0].write_bytes(data)
    source = ParquetFolder(tmp_path)
    assert len(list(source.examples("dtd", "train", 300))) == 4
    with pytest.raises(InputError, match=f"{paths[0]}: not a readable parquet file"):
        list(source.examples("dtd", "train"))


def test_missing_shards_are_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "dtd", [2, 2, 2, 2])
    paths[0].unlink()
    paths[3].unlink()
    source = ParquetFolder(tmp_path)
    message = r"2 of 4 shards .*train-00000-of-00004\.parquet, train-00003-of-00004\.parquet"
    for use in (
        lambda: source.size("dtd", "train"),
        lambda: source.fingerprint("dtd", "train"),
        lambda: list(source.examples("dtd", "train")),
        lambda: source.classes("dtd"),
    ):
        with pytest.raises(InputError, match=message):
            use()


def test_a_truncated_shard_is_found(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "dtd", [2, 2])
    paths[1].write_bytes(paths[1].read_bytes()[:-30])
    source = ParquetFolder(tmp_path)
    for use in (
        lambda: source.size("dtd", "train"),
        lambda: list(source.examples("dtd", "train")),
    ):
        with pytest.raises(InputError, match=f"{paths[1]}: not a readable parquet file"):
            use()


def test_shards_of_two_downloads_are_not_mixed(tmp_path: Path) -> None:
    write_shards(tmp_path / "dtd", [2, 2])
    (other,) = write_shards(tmp_path / "dtd", [2])
    source = ParquetFolder(tmp_path)
    with pytest.raises(InputError, match="mixes sets of 1 and 2 shards"):
        source.size("dtd", "train")
    other.rename(other.with_name("train-00001-of-00002-0f3a.parquet"))
    with pytest.raises(InputError, match=r"more than 2 shards of split 'train'.*too many"):
        source.size("dtd", "train")


def test_a_split_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    write_shards(tmp_path / "dtd" / "data", [2])
    with pytest.raises(InputError, match=r"'train' is there more than once: .*train\.parquet"):
        ParquetFolder(tmp_path).size("dtd", "train")


def test_of_two_configurations_the_registrys_is_taken(tmp_path: Path) -> None:
    write_shards(tmp_path / "svhn" / "cropped_digits", [3])
    write_shards(tmp_path / "svhn" / "full_numbers", [5])
    write_shards(tmp_path / "dtd" / "one", [3])
    write_shards(tmp_path / "dtd" / "two", [5])
    source = ParquetFolder(tmp_path)
    assert source.size("svhn", "train") == 3
    with pytest.raises(InputError, match=r"'train' is there more than once: .*one.*two"):
        source.size("dtd", "train")


def test_fingerprints_of_shards_follow_content_and_order(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "dtd", [2, 2])
    source = ParquetFolder(tmp_path)
    first = source.fingerprint("dtd", "train")
    swapped = [path.read_bytes() for path in reversed(paths)]
    for path, data in zip(paths, swapped, strict=True):
        path.write_bytes(data)
    assert source.fingerprint("dtd", "train") != first


def test_a_plain_file_is_known_by_its_sha256(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert ParquetFolder(tmp_path).fingerprint("dtd", "train") == expected


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, {"image": IMAGES, "label": [0, 1, 0]})
    made, source = [], ParquetFolder(tmp_path)
    original = hashlib.sha256
    monkeypatch.setattr(contents.hashlib, "sha256", lambda *a: made.append(1) or original(*a))
    monkeypatch.setattr(contents, "_SETTLED", 0)
    first = source.fingerprint("dtd", "train")
    assert source.fingerprint("dtd", "train") == first
    assert len(made) == 1
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    second = source.fingerprint("dtd", "train")
    assert second == original(bytes(data)).hexdigest() != first


def test_the_bar_of_the_hashes_counts_every_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_shards(tmp_path / "dtd", [40, 3, 70])
    seen: list[Any] = []

    @contextmanager
    def bar(description: str, total: int) -> Iterator[Any]:
        seen.append((description, total))
        yield seen.append

    monkeypatch.setattr(contents, "progress_bar", bar)
    monkeypatch.setattr(contents, "_MIB", 100)
    ParquetFolder(tmp_path).fingerprint("dtd", "train")
    total = sum(path.stat().st_size for path in paths) // 100
    assert seen[0] == ("hashing dtd train", total)
    assert sum(seen[1:]) == total > 20


@pytest.mark.parametrize("metadata", [None, {}, {"info": None}, {"info": {"features": []}}])
def test_without_noted_names_classes_json_is_asked_for(tmp_path: Path, metadata: Any) -> None:
    write_shards(tmp_path / "dtd", [2], metadata=metadata)
    with pytest.raises(InputError, match=r"classes\.json: no such file, and .*note no class names"):
        ParquetFolder(tmp_path).classes("dtd")


def test_splits_must_note_the_same_names(tmp_path: Path) -> None:
    write_shards(tmp_path / "dtd", [2])
    other = json.loads(json.dumps(HUB_METADATA))
    other["info"]["features"]["label"]["names"].reverse()
    write_shards(tmp_path / "dtd", [2], "test", metadata=other)
    with pytest.raises(InputError, match="note different class names"):
        ParquetFolder(tmp_path).classes("dtd")


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
    columns = columns_in(path, "owls")
    assert (columns.image, columns.label) == ("picture", "kind")
    source = ParquetFolder(tmp_path)
    assert source.classes("owls") == ("owl", "lynx")
    assert list(source.examples("owls", "train")) == [Example(b"x", 1, f"{path}: row 0")]
