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
from rmtllmf_jax.data.cache import Images, build, load_split
from rmtllmf_jax.data.decode import decode_image
from rmtllmf_jax.data.source import Example
from rmtllmf_jax.models.images import resize

COUNT, SIZE = 50, 12


def png(seed: int, height: int = 16, width: int = 20) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Listed:
    """A source over lists that counts how often it is read and can lie about its size."""

    images: list[Any] = field(default_factory=lambda: [png(seed) for seed in range(COUNT)])
    labels: list[int] = field(default_factory=lambda: [row % 3 for row in range(COUNT)])
    names: tuple[str, ...] = ("a", "b", "c")
    announced: int = COUNT
    prints: list[str] = field(default_factory=lambda: ["content"])
    reads: int = 0
    rows_read: list[int] = field(default_factory=list)

    def tasks(self) -> tuple[str, ...]:
        return ("dtd",)

    def classes(self, task: str) -> tuple[str, ...]:
        return self.names

    def size(self, task: str, split: str) -> int:
        return self.announced

    def fingerprint(self, task: str, split: str) -> str:
        return self.prints.pop(0) if len(self.prints) > 1 else self.prints[0]

    def examples(self, task: str, split: str, start: int = 0) -> Iterator[Example]:
        self.reads += 1
        for row in range(start, len(self.images)):
            self.rows_read.append(row)
            origin = f"a.parquet: row {row} (id 'n{row}')"
            yield Example(self.images[row], self.labels[row], origin)


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
    again = load(source, tmp_path)
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


def alter_half(path: Path) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(byte ^ 255 for byte in data[half:]))


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
        *((name, flip_last) for name in ("images.npy", "labels.npy")),
        ("images.npy", alter_half),
        ("meta.json", null),
        ("meta.json", no_files),
    ],
)
def test_a_damaged_entry_is_built_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Any
) -> None:
    source = Listed()
    first = load(source, tmp_path)
    assert capsys.readouterr().out == ""
    files = {path.name: path.read_bytes() for path in entry_of(first, tmp_path).iterdir()}
    damage(entry_of(first, tmp_path) / name)
    load(source, tmp_path)
    assert source.reads == 2
    said = f"{entry_of(first, tmp_path)}: damaged; decoding dtd train again\n"
    assert capsys.readouterr().out == said
    again = {path.name: path.read_bytes() for path in entry_of(first, tmp_path).iterdir()}
    assert again == files
    assert names_in(tmp_path) == {first.fingerprint}


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


class Stopped(BaseException):
    """What ends a build without being an error of the input, as Ctrl-C does."""


@dataclass
class Stopping(Listed):
    """A source that stops before a row."""

    stop: int = 40

    def examples(self, task: str, split: str, start: int = 0) -> Iterator[Example]:
        for example in super().examples(task, split, start):
            if len(self.rows_read) > self.stop:
                raise Stopped
            yield example


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The part folder of a build that stopped with some rows marked as done."""
    monkeypatch.setattr(build, "SAVE_ROWS", 8)
    monkeypatch.setattr(build, "_GROUP", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(Stopped):
        load(Stopping(), tmp_path)
    (name,) = names_in(tmp_path)
    assert name.endswith(".part")
    return tmp_path / "images" / name


def rows_marked(part: Path) -> int:
    return json.loads((part / "meta.json").read_text())["rows"]


def test_an_interrupted_build_goes_on_where_it_was(part: Path, tmp_path: Path) -> None:
    marked = rows_marked(part)
    assert marked in range(8, COUNT)
    source = Listed()
    resumed = load(source, tmp_path)
    assert source.rows_read == list(range(marked, COUNT))
    assert names_in(tmp_path) == {resumed.fingerprint}
    undisturbed = load(Listed(), tmp_path / "other")
    files = [
        {path.name: path.read_bytes() for path in entry_of(images, folder).iterdir()}
        for images, folder in ((resumed, tmp_path), (undisturbed, tmp_path / "other"))
    ]
    assert files[0] == files[1]
    assert load(Listed(), tmp_path).fingerprint == resumed.fingerprint


def remark(change: int) -> Any:
    def damage(part: Path) -> None:
        meta = json.loads((part / "meta.json").read_text())
        meta["rows"] += change
        (part / "meta.json").write_text(json.dumps(meta))

    return damage


def remake(name: str, value: Any) -> Any:
    def damage(part: Path) -> None:
        meta = json.loads((part / "meta.json").read_text())
        meta[name] = value
        (part / "meta.json").write_text(json.dumps(meta))

    return damage


def in_file(name: str, damage: Any) -> Any:
    return lambda part: damage(part / name)


def flip_a_pixel(path: Path) -> None:
    flip(path, 200)


DAMAGES = {
    "images truncated": in_file("images.npy", truncate),
    "images gone": in_file("images.npy", Path.unlink),
    "images of another type": in_file("images.npy", retype),
    "a pixel flipped": in_file("images.npy", flip_a_pixel),
    "labels truncated": in_file("labels.npy", truncate),
    "a label flipped": in_file("labels.npy", lambda path: flip(path, 128)),
    "progress one too far": remark(1),
    "progress one too short": remark(-1),
    "progress beyond the end": remark(COUNT),
    "progress negative": remake("rows", -3),
    "progress no number": remake("rows", "eight"),
    "progress a fraction": remake("rows", 8.0),
    "progress gone": in_file("meta.json", Path.unlink),
    "progress cut": in_file("meta.json", truncate),
    "progress null": in_file("meta.json", null),
    "progress empty": in_file("meta.json", no_files),
    "no checksums": remake("files", {}),
    "another Pillow": remake("pillow", "0.0"),
    "another content": remake("source", "other"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_part_that_is_not_what_it_says_is_not_trusted(
    part: Path, tmp_path: Path, damage: Any
) -> None:
    damage(part)
    source = Listed()
    loaded = load(source, tmp_path)
    assert source.rows_read == list(range(COUNT))
    expected = np.stack([decode_image(data, SIZE, "") for data in source.images])
    np.testing.assert_array_equal(loaded.images, expected)
    np.testing.assert_array_equal(loaded.labels, source.labels)
    assert names_in(tmp_path) == {loaded.fingerprint}


def test_a_part_of_other_content_is_left_alone(part: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in part.iterdir()}
    source = Listed(prints=["other"])
    loaded = load(source, tmp_path)
    assert source.rows_read == list(range(COUNT))
    assert {path.name: path.read_bytes() for path in part.iterdir()} == before
    assert names_in(tmp_path) == {loaded.fingerprint, part.name}


def test_rows_are_marked_by_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(Stopped):
        load(Stopping(stop=49), tmp_path)  # of the three groups of 16, the first is waited for
    (name,) = names_in(tmp_path)
    assert rows_marked(tmp_path / "images" / name) == 16


def test_a_mark_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"images: cannot be used .*No space left"):
        load(Listed(), tmp_path)
    assert names_in(tmp_path) == set()


def test_the_bar_starts_where_the_build_goes_on(
    part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked, seen = rows_marked(part), []

    @contextmanager
    def bar(description: str, total: int, done: int) -> Iterator[Any]:
        seen.append((description, total, done))
        yield seen.append

    monkeypatch.setattr(build, "progress_bar", bar)
    load(Listed(), tmp_path)
    assert seen[0] == ("decoding dtd train", COUNT, marked)
    assert sum(seen[1:]) == COUNT - marked


def test_squash_is_another_entry_and_crop_the_default(tmp_path: Path) -> None:
    source = Listed()
    default, crop = load(source, tmp_path), load(source, tmp_path, fit="crop")
    squash = load(source, tmp_path, fit="squash")
    assert default.fingerprint == crop.fingerprint != squash.fingerprint
    assert source.reads == 2
    image = Image.open(io.BytesIO(source.images[3]))
    expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(squash.images[3], expected)
    assert not np.array_equal(crop.images[3], expected)


def test_the_keys_of_entries_do_not_change_by_accident(tmp_path: Path) -> None:
    # content_hash of what is in the key since transparency lies on white
    assert load(Listed(), tmp_path).fingerprint == "8989274ea0fb0b6b"


def test_an_unknown_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="squeeze"):
        load(Listed(), tmp_path, fit="squeeze")


def test_another_filter_is_another_entry(tmp_path: Path) -> None:
    source = Listed()
    cubic, linear = load(source, tmp_path), load(source, tmp_path, resample="bilinear")
    assert cubic.fingerprint != linear.fingerprint
    image = Image.open(io.BytesIO(source.images[3])).resize((15, SIZE), Image.Resampling.BILINEAR)
    expected = np.asarray(image.crop((1, 0, 1 + SIZE, SIZE)))
    np.testing.assert_array_equal(linear.images[3], expected)


def test_small_squares_are_kept_as_they_are_for_the_filter_of_the_device(tmp_path: Path) -> None:
    source = Listed([png(seed, 8, 8) for seed in range(COUNT)])
    assert load(source, tmp_path, native=8).images.shape[1] == 8
    assert load(source, tmp_path, native=8, resample="bilinear").images.shape[1] == SIZE


def test_arrays_are_cached_like_files(tmp_path: Path) -> None:
    files, arrays = Listed(), Listed(prints=["arrays"])
    arrays.images = [np.asarray(Image.open(io.BytesIO(data))) for data in files.images]
    np.testing.assert_array_equal(load(arrays, tmp_path).images, load(files, tmp_path).images)


def test_the_progress_bar_counts_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    @contextmanager
    def bar(description: str, total: int, done: int) -> Iterator[Any]:
        seen.append((description, total, done))
        yield seen.append

    monkeypatch.setattr(build, "progress_bar", bar)
    load(Listed(), tmp_path)
    assert seen[0] == ("decoding dtd train", COUNT, 0)
    assert sum(seen[1:]) == COUNT


# Small squares, kept as they are


def squares(last: int = 16) -> Listed:
    """Images of 16 x 16 pixels, but for the last one."""
    sides = [*[16] * (COUNT - 1), last]
    return Listed(images=[png(seed, side, side) for seed, side in enumerate(sides)])


def test_small_squares_are_kept_in_their_own_size(tmp_path: Path) -> None:
    larger = load(squares(), tmp_path, 40)
    source = squares()
    kept = load(source, tmp_path, 40, native=16)
    assert kept.images.shape == (COUNT, 16, 16, 3)
    assert kept.fingerprint == larger.fingerprint
    np.testing.assert_array_equal(kept.labels, larger.labels)
    resized = resize(np.asarray(kept.images), 40)
    np.testing.assert_array_equal(np.asarray(resized), larger.images)
    load(source, tmp_path, 40, native=16)
    assert source.reads == 1


@pytest.mark.parametrize(("last", "native"), [(17, 16), (16, 8), (16, 20), (16, 40), (16, 64)])
def test_images_of_another_size_are_resized_like_any_others(
    tmp_path: Path, last: int, native: int
) -> None:
    plain = load(squares(last), tmp_path, 40)
    same = load(squares(last), tmp_path, 40, native=native)
    assert same.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(same.images, plain.images)
    assert len(names_in(tmp_path)) == 1
