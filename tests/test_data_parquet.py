"""The parquet folder: what it reads, and what it says about files it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.parquet import ParquetFolder
from rmtllmf_jax.data.source import Example, Source

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
    assert [example.image_bytes for example in read(tmp_path)] == IMAGES
    assert read(tmp_path)[2].origin == f"{path}: row 2"


def test_many_rows_come_in_batches_and_in_order(tmp_path: Path) -> None:
    rows = 1000
    columns = {"image": [str(row).encode() for row in range(rows)], "label": list(range(rows))}
    write(tmp_path, columns)
    examples = ParquetFolder(tmp_path).examples("dtd", "train")
    assert next(examples).label == 0
    rest = list(examples)
    assert [example.label for example in rest] == list(range(1, rows))
    assert rest[-1].image_bytes == b"999"
    assert rest[-1].origin.endswith("row 999")


def test_hugging_face_structs(tmp_path: Path) -> None:
    structs = [{"bytes": data, "path": f"{data.decode()}.png"} for data in IMAGES]
    path = write(tmp_path, {"image": structs, "label": [0, 1, 0]})
    assert [example.image_bytes for example in read(tmp_path)] == IMAGES
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
