"""Image folders: labels and order, what is refused, and folders that mix ways of storing."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.source import Example, Source
from rmtllmf_jax.data.sources.folder import DataFolder


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
    assert list(source.examples("zoo", "train"))[4] == Example(encoded(0), 1, str(path))


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
    path.write_bytes(encoded(0)[:-1] + b"x")
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
    table = pa.table({"image": [encoded(0), encoded(1)], "label": [1, 0]})
    pq.write_table(table, root / "dtd" / "train.parquet")
    source = DataFolder(root)
    assert isinstance(source, Source)
    assert source.tasks() == ("dtd", "zoo")
    assert (source.classes("dtd"), source.classes("zoo")) == (("a", "b"), ("lynx", "owl"))
    assert (source.size("dtd", "train"), source.size("zoo", "train")) == (2, 5)
    assert [example.label for example in source.examples("dtd", "train")] == [1, 0]
    assert names(source, "train") == TRAIN


def test_a_task_stored_both_ways_is_refused(root: Path) -> None:
    table = pa.table({"image": [encoded(0)], "label": [1]})
    pq.write_table(table, root / "zoo" / "train.parquet")
    with pytest.raises(InputError, match="zoo: holds parquet files and image folders"):
        DataFolder(root).size("zoo", "train")
