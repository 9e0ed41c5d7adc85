"""The image cache: what it holds, what it refuses, and that damage is found and mended."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, noise
from PIL import ExifTags, Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data import cache
from rmtllmf_jax.data.cache import Images, load_split
from rmtllmf_jax.data.decode import decode_image
from rmtllmf_jax.data.source import Example
from rmtllmf_jax.models.images import resize

COUNT, SIZE = 50, 12


def png(seed: int, height: int = 16, width: int = 20) -> bytes:
    return encoded(noise(seed, height, width, 3))


@dataclass
class Listed:
    """A source over lists that counts how often it is read and can lie about its size."""

    images: list[Any] = field(default_factory=lambda: [png(seed) for seed in range(COUNT)])
    labels: list[int] = field(default_factory=lambda: [row % 3 for row in range(COUNT)])
    names: tuple[str, ...] = ("a", "b", "c")
    announced: int = COUNT
    prints: list[str] = field(default_factory=lambda: ["content"])
    reads: int = 0

    def tasks(self) -> tuple[str, ...]:
        return ("dtd",)

    def classes(self, task: str) -> tuple[str, ...]:
        return self.names

    def splits(self, task: str) -> tuple[str, ...]:
        return ("train", "test")

    def size(self, task: str, split: str) -> int:
        return self.announced

    def fingerprint(self, task: str, split: str) -> str:
        return self.prints.pop(0) if len(self.prints) > 1 else self.prints[0]

    def examples(self, task: str, split: str) -> Iterator[Example]:
        self.reads += 1
        for row, image in enumerate(self.images):
            yield Example(image, self.labels[row], f"a.parquet: row {row} (id 'n{row}')")


def load(source: Listed, folder: Path, size: int = SIZE, **options: Any) -> Images:
    return load_split(source, "dtd", "train", size, folder, **options)


def entry_of(images: Images, folder: Path) -> Path:
    return folder / "images" / images.fingerprint


def names_in(folder: Path) -> set[str]:
    """What is in the cache, its locks aside."""
    return {path.name for path in (folder / "images").glob("*") if path.suffix != ".lock"}


def test_holds_the_decoded_images_in_order_mapped_and_read_only(tmp_path: Path) -> None:
    source = Listed()
    loaded = load(source, tmp_path)
    expected = np.stack([decode_image(data, SIZE, "") for data in source.images])
    np.testing.assert_array_equal(loaded.images, expected)
    np.testing.assert_array_equal(loaded.labels, source.labels)
    assert (loaded.images.dtype, loaded.labels.dtype) == (np.uint8, np.int32)
    assert loaded.classes == source.names
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
    assert source.reads == 2  # once to look, once to decode
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
    assert "8989274ea0fb0b6b" in prints  # of the first: keys do not change by accident


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def flip(position: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    return damage


def retype(path: Path) -> None:
    np.save(path, np.load(path).astype(np.int64))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("images.npy", "labels.npy", "meta.json")
          for damage in (Path.unlink, truncate)),
        *((name, damage) for name in ("images.npy", "labels.npy")
          for damage in (flip(9), flip(-1), retype)),
        ("meta.json", lambda path: path.write_text("null")),
        ("meta.json", lambda path: path.write_text("{}")),
    ],
)  # fmt: skip
def test_a_damaged_entry_is_built_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Any
) -> None:
    source = Listed()
    first = load(source, tmp_path)
    assert capsys.readouterr().out == ""
    files = {path.name: path.read_bytes() for path in entry_of(first, tmp_path).iterdir()}
    damage(entry_of(first, tmp_path) / name)
    load(source, tmp_path)
    assert source.reads == 3
    said = f"{entry_of(first, tmp_path)}: damaged; decoding dtd train again\n"
    assert capsys.readouterr().out == said
    again = {path.name: path.read_bytes() for path in entry_of(first, tmp_path).iterdir()}
    assert again == files
    assert names_in(tmp_path) == {first.fingerprint}


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (png(37)[:80], 0, "not a readable"),
        *((png(37), label, rf"label {label} .* 3 classes \(0 to 2\)") for label in (-1, 3, 2**40)),
    ],
    ids=["cut", "-1", "3", "2**40"],
)
def test_what_cannot_be_decoded_names_file_row_and_id(
    tmp_path: Path, image: bytes, label: int, message: str
) -> None:
    source = Listed()
    source.images[37], source.labels[37] = image, label
    with pytest.raises(InputError, match=rf"^a\.parquet: row 37 \(id 'n37'\): {message}"):
        load(source, tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("source", "size", "message"),
    [
        (Listed(), 0, "image_size must be at least 1, got 0"),
        (Listed(announced=0), SIZE, "'dtd': split 'train' holds no images"),
        (Listed(announced=COUNT - 1), SIZE, "more than 49 images"),
        (Listed(announced=COUNT + 1), SIZE, "50 images, 51 announced"),
        (Listed(prints=["before", "after"]), SIZE, "changed while read"),
    ],
)
def test_sources_that_contradict_themselves_are_refused(
    tmp_path: Path, source: Listed, size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(source, tmp_path, size=size)
    assert not list(tmp_path.glob("images/[!.]*"))


def test_a_cache_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match=r"cache/pixels: cannot be used as a cache"):
        load(Listed(), tmp_path / "cache")


@pytest.mark.parametrize("call", ["posix_fallocate", "replace"])
def test_a_full_disk_is_an_error_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=r"(images|pixels): cannot be used .*No space left"):
        load(Listed(), tmp_path)
    assert names_in(tmp_path) == set()


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "decode_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(Listed(), tmp_path)
    assert names_in(tmp_path) == set()


def test_fit_and_filter_make_other_entries(tmp_path: Path) -> None:
    source = Listed()
    default, crop = load(source, tmp_path), load(source, tmp_path, fit="crop")
    squash = load(source, tmp_path, fit="squash")
    linear = load(source, tmp_path, resample="bilinear")
    assert default.fingerprint == crop.fingerprint
    assert len({crop.fingerprint, squash.fingerprint, linear.fingerprint}) == 3 == source.reads - 1
    image = Image.open(io.BytesIO(source.images[3]))
    expected = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(squash.images[3], np.asarray(expected))
    expected = image.resize((15, SIZE), Image.Resampling.BILINEAR).crop((1, 0, 1 + SIZE, SIZE))
    np.testing.assert_array_equal(linear.images[3], np.asarray(expected))


def test_the_progress_bar_counts_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    @contextmanager
    def bar(description: str, total: int) -> Iterator[Any]:
        seen.append((description, total))
        yield seen.append

    monkeypatch.setattr(cache, "progress_bar", bar)
    load(Listed(), tmp_path)
    assert seen[0] == ("decoding dtd train", COUNT)
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
    linear = load(source, tmp_path, 40, native=16, resample="bilinear")
    assert linear.images.shape[1] == 40  # the device resizes by the other filter only


@pytest.mark.parametrize(("last", "native"), [(17, 16), (16, 8), (16, 20), (16, 40), (16, 64)])
def test_images_of_another_size_are_resized_like_any_others(
    tmp_path: Path, last: int, native: int
) -> None:
    plain = load(squares(last), tmp_path, 40)
    same = load(squares(last), tmp_path, 40, native=native)
    assert same.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(same.images, plain.images)
    assert len(names_in(tmp_path)) == 1


def test_unreadable_images_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = Listed(images=[png(row) for row in range(COUNT)])
    whole = load(source, tmp_path)
    source.images[1] = source.images[3][:40]
    source.images[4] = b"no image"
    source.prints = ["damaged"]
    with pytest.raises(InputError, match=r"row 1 .*not an image file"):
        load(source, tmp_path)
    with pytest.raises(InputError, match=r"row 4 .* More than 1 images of dtd train"):
        load(source, tmp_path, skip_unreadable=1)
    capsys.readouterr()
    short = load(source, tmp_path, skip_unreadable=2)
    assert re.search(r"2 images left out: a\.parquet: row 1 .*; .*row 4 ", capsys.readouterr().out)
    kept = [row for row in range(COUNT) if row not in (1, 4)]
    np.testing.assert_array_equal(short.images, whole.images[kept])
    np.testing.assert_array_equal(short.labels, whole.labels[kept])
    again = load(source, tmp_path, skip_unreadable=2)
    assert len(again.images) == len(kept)
    assert len({again.fingerprint, load(source, tmp_path, skip_unreadable=3).fingerprint}) == 2


CROP = (
    "RGB, transparency on white; bicubic, shorter side to image_size; centre crop, offsets rounded "
    "down"
)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "pixels"])
def test_the_key_of_plain_images_is_what_it_was(tmp_path: Path, kind: str) -> None:
    """So that heads, models and results of run folders stay; the demo's tasks are such pixels."""
    images = [noise(row, 16, 20, 3) for row in range(COUNT)]
    files = images if kind == "pixels" else [encoded(image, kind) for image in images]
    loaded = load(Listed(images=files), tmp_path)
    key = {"source": "content", "classes": ("a", "b", "c"), "format": 1}
    assert loaded.fingerprint == content_hash({**key, "image_size": SIZE, "resize": CROP})
    for row in (0, 7):
        expected = decode_image(files[row], SIZE, "here")
        np.testing.assert_array_equal(loaded.images[row], expected)


def test_turned_and_deep_images_are_part_of_the_key(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    plain = Image.fromarray(noise(3, 16, 20, 3))
    dim = np.arange(320, dtype=np.uint16).reshape(16, 20)
    prints, entries = set(), []
    for number, changed in enumerate(
        (
            {},
            {3: encoded(plain, exif=exif)},
            {4: encoded(Image.fromarray(dim * 3))},
            {4: encoded(Image.fromarray(dim * 3)), 5: encoded(Image.fromarray(dim * 12))},
        )
    ):
        source = Listed(prints=[f"content {number}"])
        for row, data in changed.items():
            source.images[row] = data
        entries.append(load(source, tmp_path))
        # The same content under the key of a set without such images.
        plainly = Listed(prints=[f"content {number}"])
        prints.add(entries[-1].fingerprint == load(plainly, tmp_path / "plain").fingerprint)
        assert (entries[-1].fingerprint == load(plainly, tmp_path / "plain").fingerprint) == (
            not changed
        )
    np.testing.assert_array_equal(
        entries[1].images[3], decode_image(np.asarray(plain)[::-1, ::-1], SIZE, "here")
    )
    # 957 of 10 bits, and the same values among others of 12 bits.
    assert entries[2].images[4].max() > 3.5 * entries[3].images[4].max()
    assert len(prints) == 2
