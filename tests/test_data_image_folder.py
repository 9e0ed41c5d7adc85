"""Image folders: labels and order, what is refused, and folders that mix ways of storing."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.sources.image_folder import ImageFolder


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, kind)
    return buffer.getvalue()


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
        path.write_bytes(encoded(seed, KINDS.get(ending, ending.upper())))
    return tmp_path


def names(source: Source, split: str, start: int = 0) -> list[tuple[str, int]]:
    examples = source.examples("zoo", split, start)
    return [("/".join(Path(e.origin).parts[-2:]), e.label) for e in examples]


TRAIN = [("lynx/10.webp", 0), ("lynx/9.tif", 0), ("lynx/z.bmp", 0), ("owl/a.JPG", 1)]
TRAIN += [("owl/b.png", 1)]


def test_labels_are_sorted_folders_and_images_are_sorted_files(root: Path) -> None:
    source = ImageFolder(root)
    assert isinstance(source, Source)
    assert source.tasks() == ("zoo",)
    assert source.classes("zoo") == ("lynx", "owl")
    assert (source.size("zoo", "train"), source.size("zoo", "test")) == (5, 2)
    assert names(source, "train") == TRAIN
    assert names(source, "test") == [("lynx/a.jpeg", 0), ("owl/a.ppm", 1)]
    for start in range(6):
        assert names(source, "train", start) == TRAIN[start:]
    path = root / "zoo" / "train" / "owl" / "b.png"
    assert list(source.examples("zoo", "train"))[4] == Example(encoded(0), 1, str(path))


def test_classes_json_sets_the_order_of_labels_and_images(root: Path) -> None:
    (root / "zoo" / "classes.json").write_text('{"classes": ["owl", "yak", "lynx"]}')
    source = ImageFolder(root)
    assert source.classes("zoo") == ("owl", "yak", "lynx")
    assert names(source, "test") == [("owl/a.ppm", 0), ("lynx/a.jpeg", 2)]
    assert names(source, "train")[0] == ("owl/a.JPG", 0)


def test_images_reach_the_cache(root: Path, tmp_path: Path) -> None:
    loaded = load_split(DataFolder(root), "zoo", "train", 6, tmp_path / "cache")
    np.testing.assert_array_equal(loaded.images[4], pixels(0))
    np.testing.assert_array_equal(loaded.images[2], pixels(2))
    np.testing.assert_array_equal(loaded.labels, [0, 0, 0, 1, 1])


def test_an_unreadable_image_is_named_by_its_path(root: Path, tmp_path: Path) -> None:
    path = root / "zoo" / "train" / "owl" / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=f"^{path}: not a readable image"):
        load_split(DataFolder(root), "zoo", "train", 6, tmp_path / "cache")


def test_hidden_files_are_ignored(root: Path) -> None:
    (root / "zoo" / "train" / "owl" / ".DS_Store").write_text("x")
    (root / "zoo" / "train" / ".cache").mkdir()
    (root / ".git").mkdir()
    assert names(ImageFolder(root), "train") == TRAIN
    assert ImageFolder(root).classes("zoo") == ("lynx", "owl")


def rename(root: Path) -> None:
    path = root / "zoo/train/owl/b.png"
    path.rename(path.with_name("c.png"))


def edit(root: Path) -> None:
    path = root / "zoo/train/owl/b.png"
    stat = path.stat()
    path.write_bytes(encoded(0)[:-1] + b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def swap(root: Path) -> None:
    one, two = root / "zoo/train/owl/b.png", root / "zoo/train/lynx/z.bmp"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def add(root: Path) -> None:
    (root / "zoo/train/lynx/new.png").write_bytes(encoded(9))


def relabel(root: Path) -> None:
    (root / "zoo" / "classes.json").write_text('["owl", "lynx"]')


@pytest.mark.parametrize("change", [rename, edit, swap, add, relabel])
def test_fingerprints_follow_names_labels_and_every_byte(root: Path, change: Any) -> None:
    source = ImageFolder(root)
    first, test = source.fingerprint("zoo", "train"), source.fingerprint("zoo", "test")
    change(root)
    assert source.fingerprint("zoo", "train") != first
    assert (source.fingerprint("zoo", "test") == test) == (change is not relabel)


def test_a_copy_elsewhere_has_the_same_fingerprint(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root / "zoo", copy / "zoo", copy_function=shutil.copyfile)
    for split in ("train", "test"):
        assert ImageFolder(copy).fingerprint("zoo", split) == ImageFolder(root).fingerprint(
            "zoo", split
        )


def write(root: Path, name: str) -> Path:
    path = root / "zoo" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(1))
    return path


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
    write(root, name)
    source = ImageFolder(root)
    for use in (source.size, source.fingerprint, lambda *of: list(source.examples(*of))):
        with pytest.raises(InputError, match=f"^{root / 'zoo' / named}: {message}"):
            use("zoo", split)


def test_a_class_that_classes_json_lacks_is_refused(root: Path) -> None:
    (root / "zoo" / "classes.json").write_text('["owl"]')
    with pytest.raises(InputError, match=r"train/lynx: class 'lynx' is not in classes\.json"):
        ImageFolder(root).size("zoo", "train")


def test_missing_folders_and_names(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        ImageFolder(root / "nowhere").tasks()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no task; expected <task>/train/<class>"):
        ImageFolder(tmp_path / "empty").tasks()
    with pytest.raises(InputError, match=r"unknown task 'zo'.*'zoo'"):
        ImageFolder(root).classes("zo")
    with pytest.raises(InputError, match="unknown split 'val'"):
        ImageFolder(root).size("zoo", "val")
    shutil.rmtree(root / "zoo" / "train")
    with pytest.raises(InputError, match="zoo/train: no such folder; expected train/<class>"):
        ImageFolder(root).classes("zoo")


def test_a_folder_takes_each_task_as_it_is_stored(root: Path) -> None:
    (root / "dtd").mkdir()
    (root / "dtd" / "classes.json").write_text(json.dumps(["a", "b"]))
    table = pa.table({"image": [encoded(0), encoded(1)], "label": [1, 0]})
    pq.write_table(table, root / "dtd" / "train.parquet")
    source = DataFolder(root)
    assert isinstance(source, Source)
    assert source.tasks() == ("dtd", "zoo")
    assert (source.classes("dtd"), source.classes("zoo")) == (("a", "b"), ("lynx", "owl"))
    assert (source.size("dtd", "train"), source.size("zoo", "train")) == (2, 5)
    assert [example.label for example in source.examples("dtd", "train", 1)] == [0]
    assert names(source, "train", 3) == TRAIN[3:]
    assert source.fingerprint("zoo", "test") == ImageFolder(root).fingerprint("zoo", "test")


def test_a_task_stored_both_ways_is_refused(root: Path) -> None:
    table = pa.table({"image": [encoded(0)], "label": [1]})
    pq.write_table(table, root / "zoo" / "train.parquet")
    with pytest.raises(InputError, match="zoo: holds parquet files and image folders"):
        DataFolder(root).size("zoo", "train")


def test_a_folder_without_tasks_says_what_may_be_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no task; .*train\.parquet.*train/<class>"):
        DataFolder(tmp_path).tasks()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        DataFolder(tmp_path / "nowhere").tasks()
