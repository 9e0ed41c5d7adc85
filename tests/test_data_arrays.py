"""Arrays as a source: what is accepted, what is refused, and `.npz` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources.arrays import ArraySource, TaskArrays

RNG = np.random.default_rng(0)


def arrays(shape: tuple[int, ...] = (8, 8, 3), **changed: Any) -> dict[str, Any]:
    values = {
        "train_images": RNG.integers(0, 256, (6, *shape), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": RNG.integers(0, 256, (3, *shape), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0], np.uint8),
        "classes": ("a", "b", "c"),
    }
    return values | changed


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 8)])
def test_arrays_come_out_as_they_went_in(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = arrays(shape)
    source = ArraySource({"owls": TaskArrays(**values)})
    assert isinstance(source, Source)
    assert source.tasks() == ("owls",)
    assert source.classes("owls") == ("a", "b", "c")
    for split in ("train", "test"):
        images, labels = values[f"{split}_images"], values[f"{split}_labels"]
        assert source.size("owls", split) == len(labels)
        examples = list(source.examples("owls", split))
        assert [example.label for example in examples] == labels.tolist()
        for example, image in zip(examples, images, strict=True):
            np.testing.assert_array_equal(example.image, image)
        loaded = load_split(source, "owls", split, 8, tmp_path)
        expected = images.reshape(len(labels), 8, 8, -1) * np.ones(3, np.uint8)
        np.testing.assert_array_equal(loaded.images, expected)
        np.testing.assert_array_equal(loaded.labels, labels)
    assert list(source.examples("owls", "test"))[1].origin == "owls: test_images[1]"


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_deep_grey_is_scaled_by_the_range_of_its_split(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Twelve bits of train make 4,095 white in all of its images, and 14 bits of test 16,383."""
    train = RNG.integers(0, 200, (6, *shape), dtype=np.uint16)
    train[3].flat[5] = 4000
    test = RNG.integers(0, 2**14, (3, *shape), dtype=np.uint16)
    values = arrays(shape, train_images=train, test_images=test)
    np.savez(tmp_path / "scans.npz", **values)
    source = ArraySource.from_npz(tmp_path)
    for split, images, most in (("train", train, 4095), ("test", test, 16383)):
        loaded = load_split(source, "scans", split, 8, tmp_path / "cache")
        expected = np.rint(images.reshape(-1, 8, 8, 1) * (255 / most))
        np.testing.assert_array_equal(loaded.images, expected * np.ones(3))
    same = ArraySource({"scans": TaskArrays(**values | {"train_images": train.astype(np.uint8)})})
    assert same.fingerprint("scans", "train") != source.fingerprint("scans", "train")


def test_fingerprints_follow_images_labels_and_shape() -> None:
    values = arrays()

    def print_of(**changed: Any) -> str:
        return ArraySource({"owls": TaskArrays(**values | changed)}).fingerprint("owls", "train")

    images, labels = values["train_images"], values["train_labels"]
    first = print_of()
    assert print_of(train_labels=labels.astype(np.int8)) == first
    assert print_of(train_images=np.asfortranarray(images)) == first
    flipped = images.copy()
    flipped[3, 2, 1, 0] ^= 1
    others = [
        print_of(train_images=flipped),
        print_of(train_images=images[::-1]),
        print_of(train_images=images.reshape(6, 4, 16, 3)),
        print_of(train_labels=labels[::-1]),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": np.zeros((6, 8, 8, 3))}, r"train_images: .*got float64 \(6, 8, 8, 3\)"),
        ({"test_images": np.zeros((3, 8, 8, 4), np.uint8)}, r"test_images: .*\(3, 8, 8, 4\)"),
        ({"test_images": np.zeros((3, 3, 8, 8), np.uint8)}, r"test_images: .*\(3, 3, 8, 8\)"),
        ({"train_images": np.zeros((6, 64), np.uint8)}, r"train_images: .*got uint8 \(6, 64\)"),
        ({"train_labels": np.zeros(5, np.int64)}, r"train_labels: .*\(6,\), got int64 \(5,\)"),
        ({"train_labels": np.zeros(6)}, r"train_labels: expected integers.*got float64"),
        ({"train_labels": np.zeros((6, 1), np.int64)}, r"train_labels: .*got int64 \(6, 1\)"),
        ({"test_labels": np.array([0, 3, 1])}, r"test_labels\[1\]: label 3 is not one of the 3"),
        ({"test_labels": np.array([0, 1, -1])}, r"test_labels\[2\]: label -1 is not"),
        ({"classes": ()}, "classes: expected names"),
        ({"classes": ("a", "b", "a")}, "classes: expected names, each once"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    values = arrays(**changed)
    with pytest.raises(InputError, match=f"^{message}"):
        TaskArrays(**values)
    if values["classes"]:
        np.savez(tmp_path / "owls.npz", **values)
        with pytest.raises(InputError, match=f"owls.npz: {message}"):
            ArraySource.from_npz(tmp_path).classes("owls")


def test_npz_files_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    values = arrays()
    np.savez(tmp_path / "owls.npz", **values)
    np.savez_compressed(tmp_path / "dtd.npz", **values)
    (tmp_path / "broken.npz").write_bytes(b"not a zip file")
    source = ArraySource.from_npz(tmp_path)
    assert source.tasks() == ("broken", "dtd", "owls")
    assert source.classes("owls") == ("a", "b", "c")
    direct = ArraySource({"owls": TaskArrays(**values)})
    for task in ("owls", "dtd"):
        assert source.fingerprint(task, "train") == direct.fingerprint("owls", "train")
    with pytest.raises(InputError, match=r"broken\.npz: not a readable \.npz file"):
        source.size("broken", "train")


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_truncated_npz_files(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "owls.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"owls\.npz: not a readable \.npz file"):
        ArraySource.from_npz(tmp_path).size("owls", "train")


def test_a_flipped_byte_in_an_npz_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "owls.npz"
    np.savez(path, **arrays())
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"owls\.npz: not a readable \.npz file \(.*CRC"):
        ArraySource.from_npz(tmp_path).size("owls", "train")


def test_npz_files_with_other_arrays(tmp_path: Path) -> None:
    values = arrays()
    del values["test_labels"]
    np.savez(tmp_path / "owls.npz", **values)
    with pytest.raises(InputError, match=r"owls\.npz: no array test_labels; it has train_images"):
        ArraySource.from_npz(tmp_path).classes("owls")
    np.savez(tmp_path / "owls.npz", **arrays(classes=np.arange(3)))
    with pytest.raises(InputError, match=r"classes must be a list of strings, got int64 \(3,\)"):
        ArraySource.from_npz(tmp_path).classes("owls")
    pickled = np.array(["a", "b", None], object)
    np.savez(tmp_path / "owls.npz", **arrays(classes=pickled))
    with pytest.raises(InputError, match=r"owls\.npz: not a readable \.npz file .*pickle"):
        ArraySource.from_npz(tmp_path).classes("owls")
