"""The image cache: what it holds, what it refuses, and that damage is found and mended."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data import build
from rmtllmf_jax.data.cache import Images, load_split
from rmtllmf_jax.data.decode import decode_image
from rmtllmf_jax.data.source import Example

COUNT, SIZE = 50, 12


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Listed:
    """A source over lists that counts how often it is read and can lie about its size."""

    images: list[bytes] = field(default_factory=lambda: [png(seed) for seed in range(COUNT)])
    labels: list[int] = field(default_factory=lambda: [row % 3 for row in range(COUNT)])
    names: tuple[str, ...] = ("a", "b", "c")
    announced: int = COUNT
    prints: list[str] = field(default_factory=lambda: ["content"])
    reads: int = 0

    def tasks(self) -> tuple[str, ...]:
        return ("dtd",)

    def classes(self, task: str) -> tuple[str, ...]:
        return self.names

    def size(self, task: str, split: str) -> int:
        return self.announced

    def fingerprint(self, task: str, split: str) -> str:
        return self.prints.pop(0) if len(self.prints) > 1 else self.prints[0]

    def examples(self, task: str, split: str) -> Iterator[Example]:
        self.reads += 1
        for row, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            yield Example(image, label, f"a.parquet: row {row} (id 'n{row}')")


def load(source: Listed, folder: Path, size: int = SIZE, **options: Any) -> Images:
    return load_split(source, "dtd", "train", size, folder, **options)


def entry_of(images: Images, folder: Path) -> Path:
    return folder / "images" / images.fingerprint


def names_in(folder: Path) -> set[str]:
    """What is in the cache, its locks aside."""
    return {path.name for path in (folder / "images").iterdir() if path.suffix != ".lock"}


def test_holds_the_decoded_images_in_order(tmp_path: Path) -> None:
    source = Listed()
    loaded = load(source, tmp_path)
    expected = np.stack([decode_image(data, SIZE, "") for data in source.images])
    np.testing.assert_array_equal(loaded.images, expected)
    np.testing.assert_array_equal(loaded.labels, source.labels)
    assert loaded.images.shape == (COUNT, SIZE, SIZE, 3)
    assert (loaded.images.dtype, loaded.labels.dtype) == (np.uint8, np.int32)
    assert loaded.classes == source.names


def test_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    loaded = load(Listed(), tmp_path)
    assert isinstance(loaded.images, np.memmap)
    for array in (loaded.images, loaded.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_second_call_decodes_nothing(tmp_path: Path) -> None:
    source = Listed()
    first = load(source, tmp_path)
    for verify in (False, True):
        again = load(source, tmp_path, verify=verify)
        np.testing.assert_array_equal(again.images, first.images)
        assert again.fingerprint == first.fingerprint
    assert source.reads == 1
    assert names_in(tmp_path) == {first.fingerprint}


def test_the_key_covers_content_size_and_classes(tmp_path: Path) -> None:
    prints = {
        load(Listed(), tmp_path).fingerprint,
        load(Listed(), tmp_path, size=SIZE + 1).fingerprint,
        load(Listed(prints=["other"]), tmp_path).fingerprint,
        load(Listed(names=("a", "b", "d")), tmp_path).fingerprint,
    }
    assert len(prints) == 4
    assert names_in(tmp_path) == prints


def test_meta_describes_the_entry(tmp_path: Path) -> None:
    meta = json.loads((entry_of(load(Listed(), tmp_path), tmp_path) / "meta.json").read_text())
    assert (meta["task"], meta["split"], meta["count"]) == ("dtd", "train", COUNT)
    assert meta["files"]["images.npy"]["shape"] == [COUNT, SIZE, SIZE, 3]
    assert len(meta["files"]["labels.npy"]["sha256"]) == 64


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_header(path: Path) -> None:
    flip(path, 9)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    flip(path, -1)


def retype(path: Path) -> None:
    np.save(path, np.load(path).astype(np.uint16 if "images" in path.name else np.int64))


def null(path: Path) -> None:
    path.write_text("null")


def no_files(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, Path.unlink) for name in ("images.npy", "labels.npy", "meta.json")),
        *((name, truncate) for name in ("images.npy", "labels.npy", "meta.json")),
        *((name, empty) for name in ("images.npy", "labels.npy", "meta.json")),
        *((name, flip_header) for name in ("images.npy", "labels.npy")),
        *((name, retype) for name in ("images.npy", "labels.npy")),
        ("labels.npy", flip_last),
        ("meta.json", null),
        ("meta.json", no_files),
    ],
)
def test_a_damaged_entry_is_built_again(tmp_path: Path, name: str, damage: Any) -> None:
    source = Listed()
    first = load(source, tmp_path)
    files = {path.name: path.read_bytes() for path in entry_of(first, tmp_path).iterdir()}
    damage(entry_of(first, tmp_path) / name)
    load(source, tmp_path)
    assert source.reads == 2
    again = {path.name: path.read_bytes() for path in entry_of(first, tmp_path).iterdir()}
    assert again == files
    assert names_in(tmp_path) == {first.fingerprint}


def test_verify_finds_one_flipped_bit_among_the_images(tmp_path: Path) -> None:
    source = Listed()
    first = load(source, tmp_path)
    path = entry_of(first, tmp_path) / "images.npy"
    whole = path.read_bytes()
    flip_last(path)
    load(source, tmp_path)
    assert source.reads == 1
    load(source, tmp_path, verify=True)
    assert source.reads == 2
    assert path.read_bytes() == whole


def test_an_unreadable_image_names_file_row_and_id(tmp_path: Path) -> None:
    source = Listed()
    source.images[37] = source.images[37][:80]
    with pytest.raises(InputError, match=r"^a\.parquet: row 37 \(id 'n37'\): not a readable"):
        load(source, tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_out_of_range_names_row_label_and_classes(tmp_path: Path, label: int) -> None:
    source = Listed()
    source.labels[41] = label
    with pytest.raises(InputError, match=rf"row 41 .*: label {label} .* 3 classes \(0 to 2\)"):
        load(source, tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("size", [0, -5])
def test_image_size_must_be_positive(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=f"image_size must be at least 1, got {size}"):
        load(Listed(), tmp_path, size=size)


def test_empty_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'dtd': split 'train' holds no images"):
        load(Listed(announced=0), tmp_path)


def test_a_source_must_keep_its_word(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 49 images"):
        load(Listed(announced=COUNT - 1), tmp_path)
    with pytest.raises(InputError, match="50 images, 51 announced"):
        load(Listed(announced=COUNT + 1), tmp_path)
    with pytest.raises(InputError, match="changed while read"):
        load(Listed(prints=["before", "after"]), tmp_path)
    assert names_in(tmp_path) == set()


def test_a_cache_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match=r"cache/images: cannot be used as a cache"):
        load(Listed(), tmp_path / "cache")


def test_a_full_disk_is_an_error_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"images: cannot be used .*No space left"):
        load(Listed(), tmp_path)
    assert names_in(tmp_path) == set()


def test_the_progress_bar_counts_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    @contextmanager
    def bar(description: str, total: int) -> Iterator[Any]:
        seen.append((description, total))
        yield seen.append

    monkeypatch.setattr(build, "progress_bar", bar)
    load(Listed(), tmp_path)
    assert seen[0] == ("decoding dtd train", COUNT)
    assert sum(seen[1:]) == COUNT
