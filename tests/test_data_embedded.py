"""The embedded tasks: what they promise about seeds, splits, balance and where pixels are from."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rmtllmf_jax
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.extras import MissingExtra
from rmtllmf_jax.data.source import SPLITS, Source
from rmtllmf_jax.data.sources.arrays import ArraySource
from rmtllmf_jax.data.sources.embedded import (
    EMBEDDED,
    EmbeddedSource,
    canvas,
    counts,
    digits,
    letters,
    photographs,
    shapes,
    signs,
    task,
)
from rmtllmf_jax.data.sources.embedded.task import Item, draw_task, generator, images_a_class
from rmtllmf_jax.data.task_data import load_task
from rmtllmf_jax.data.tasks import EMBEDDED_NAMES, TASK_NAMES

FILE_CACHES = (photographs._photograph, digits._scans, digits.digit_rows, letters.letter_face)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> ArraySource:
    """All tasks in full, drawn by another process, which has no type checks to slow it down."""
    folder = tmp_path_factory.mktemp("embedded")
    script = (
        "import sys, numpy\n"
        "from rmtllmf_jax.data.sources.embedded import EMBEDDED, draw_task\n"
        "for name, task in EMBEDDED.items():\n"
        "    arrays = {key: x for key, x in vars(draw_task(task, 0)).items() if x is not None}\n"
        "    numpy.savez(f'{sys.argv[1]}/{name}.npz', **arrays)"
    )
    subprocess.run(
        [sys.executable, "-c", script, folder],
        cwd=Path(rmtllmf_jax.__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "5"},
        check=True,
        timeout=300,
    )
    return ArraySource.from_npz(folder)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the splits small."""
    monkeypatch.setattr(task, "IMAGES", {"train": 20, "test": 10})


def arrays(source: Source, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    examples = list(source.examples(name, split))
    images = np.stack([np.asarray(example.image) for example in examples])
    return images, np.array([example.label for example in examples])


def first(name: str, seed: int = 0, split: str = "train", label: int = 0) -> np.ndarray:
    item = Item(split, label, 0)
    return EMBEDDED[name].draw(item, generator(name, item, seed))


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_what_a_task_says_of_itself(name: str) -> None:
    about = EMBEDDED[name]
    assert about.name == name
    assert name not in TASK_NAMES
    assert about.description.startswith("Real: " if about.real else "Rendered: ")
    assert about.real == (name in ("digits", "photographs"))
    assert about.licence
    assert 8 <= len(about.classes) <= 16
    assert len(set(about.classes)) == len(about.classes)
    assert all(each == each.lower().strip() and len(each) > 2 for each in about.classes)


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_splits_are_balanced_and_disjoint(full: ArraySource, name: str) -> None:
    classes = len(EMBEDDED[name].classes)
    seen: set[bytes] = set()
    total = 0
    for split, expected in (("train", 1000), ("test", 300)):
        images, labels = arrays(full, name, split)
        assert images.dtype == np.uint8
        assert images.shape == (full.size(name, split), 32, 32, 3)
        assert expected <= len(images) <= expected + 16
        assert set(np.bincount(labels, minlength=classes)) == {images_a_class(classes, split)}
        assert labels[:classes].tolist() == list(range(classes))
        assert images.std(axis=(1, 2, 3)).min() > 5, "an empty image"
        seen |= {image.tobytes() for image in images}
        total += len(images)
    assert len(seen) == total
    assert full.classes(name) == EMBEDDED[name].classes


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_an_image_depends_on_its_seed_and_not_on_process_or_order(
    full: ArraySource, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = arrays(full, name, "test")
    count = len(EMBEDDED[name].classes)
    monkeypatch.setattr(task, "IMAGES", {"train": 1, "test": 1})
    fewer, other = (draw_task(EMBEDDED[name], seed) for seed in (0, 7))
    np.testing.assert_array_equal(fewer.test_images, images[:count])
    np.testing.assert_array_equal(fewer.test_labels, labels[:count])
    np.testing.assert_array_equal(fewer.test_labels, other.test_labels)
    assert not {x.tobytes() for x in other.test_images} & {x.tobytes() for x in images}


def test_it_is_a_source_that_draws_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "rmtllmf_jax.data.sources.embedded.draw_task",
        lambda about, seed: drawn.append(about.name) or draw_task(about, seed),
    )
    monkeypatch.setattr(task, "IMAGES", {"train": 20, "test": 10})
    source = EmbeddedSource(3)
    assert isinstance(source, Source)
    assert source.tasks() == EMBEDDED_NAMES == tuple(sorted(EMBEDDED))
    assert source == EmbeddedSource(3) != EmbeddedSource(2)
    assert drawn == []
    assert source.size("counts", "train") == 27
    *_, last = source.examples("counts", "train")
    assert last.origin == "counts: train_images[26]"
    assert drawn == ["counts"]
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        EmbeddedSource(-1)


@pytest.mark.usefixtures("few")
def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for cached in FILE_CACHES:
        cached.cache_clear()
    for about in EMBEDDED.values():
        draw_task(about, 11)


# Digits and photographs


def test_scans_of_train_and_test_are_disjoint() -> None:
    train, test = (digits.digit_rows(split) for split in SPLITS)
    scans, labels = digits._scans()
    assert len(np.unique(scans.reshape(len(scans), -1), axis=0)) == len(scans)
    assert not set(np.concatenate(train)) & set(np.concatenate(test))
    for split, rows in (("train", train), ("test", test)):
        for label, each in enumerate(rows):
            assert set(labels[each]) == {label}
            assert len(each) >= images_a_class(10, split)


def test_a_digit_is_the_scan_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    scans, labels = digits._scans()
    blank = np.zeros_like(scans)
    row = digits.digit_rows("test")[4][2]
    assert labels[row] == 4
    blank[row] = scans[row]
    monkeypatch.setattr(digits, "_scans", lambda: (blank, labels))
    monkeypatch.setattr(digits, "NOISE", 0.0)
    monkeypatch.setattr(digits, "CLUTTER", 0.0)
    with_ink = [
        (split, label, number)
        for split, label, number in product(SPLITS, (3, 4), range(4))
        if digits.draw(Item(split, label, number), np.random.default_rng(0)).std(axis=(0, 1)).any()
    ]
    assert with_ink == [("test", 4, 2)]


@pytest.mark.parametrize("size", [(384, 191), (741, 500)])
def test_cells_of_train_and_test_cover_a_photograph_once(size: tuple[int, int]) -> None:
    owners = np.zeros(size[::-1], int)
    for split in SPLITS:
        for left, top, right, bottom in photographs.cell_boxes(*size, split):
            owners[top:bottom, left:right] += 1
    np.testing.assert_array_equal(owners, 1)


def test_pieces_hold_pixels_of_their_split_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a photograph that is black where train may look and white where test may."""
    marked = np.zeros((191, 384, 3), np.uint8)
    for left, top, right, bottom in photographs.cell_boxes(384, 191, "test"):
        marked[top:bottom, left:right] = 255
    picture = Image.fromarray(marked)
    rng = np.random.default_rng(0)
    for split, value in (("train", 0.0), ("test", 1.0)):
        for _ in range(200):
            assert set(np.unique(photographs._piece(picture, split, rng))) == {value}


def test_a_missing_file_or_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"the font none\.ttf of the package matplotlib"):
        letters.letter_face("a", "none.ttf")
    with pytest.raises(InputError, match=r"needs none\.png of the package scikit-image"):
        photographs._photograph("none.png")

    def missing(name: str) -> Path:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(photographs, "files", missing)
    photographs._photograph.cache_clear()
    with pytest.raises(
        MissingExtra, match=r"'photographs' needs the package skimage.*\[pipeline\]"
    ):
        first("photographs")


# Drawing


def test_polygons_know_their_inside_and_distance() -> None:
    u, v = canvas.local(16.0, 16.0)
    square = np.array([[-5.0, -5.0], [5.0, -5.0], [5.0, 5.0], [-5.0, 5.0]])
    distance = canvas.polygon(u, v, square)
    np.testing.assert_array_equal(distance < 0, (np.abs(u) < 5) & (np.abs(v) < 5))
    assert distance[16, 16] == pytest.approx(-4.5)
    assert distance[16, 31] == pytest.approx(10.5)
    assert canvas.coverage(distance).sum() == pytest.approx(100, abs=1)


def test_sampling_at_the_pixels_returns_them_and_nothing_outside() -> None:
    face = np.random.default_rng(0).random((32, 32, 4))
    u, v = canvas.local(0.0, 0.0)
    np.testing.assert_allclose(canvas.sample(face, u / 32, v / 32), face, atol=1e-12)
    shifted = canvas.sample(face, u / 32 + 0.5, v / 32)
    np.testing.assert_allclose(shifted[:, :16], face[:, 16:], atol=1e-12)
    assert not shifted[:, 17:].any()


def test_blur_keeps_plain_canvases_and_lowers_contrast() -> None:
    plain = np.full((32, 32, 3), 0.3)
    np.testing.assert_allclose(canvas.blur(plain, 1.0), plain)
    noisy = np.random.default_rng(0).random((32, 32, 3))
    assert canvas.blur(noisy, 1.0).std() < 0.5 * noisy.std()
    np.testing.assert_allclose(canvas.blur(noisy, 0.0), noisy, atol=1e-12)


def test_homographies_take_corners_to_their_targets() -> None:
    rng = np.random.default_rng(0)
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    corners = 20 * square + rng.uniform(-2, 2, (4, 2))
    mapped = np.c_[corners, np.ones(4)] @ signs.homography(corners, square).T
    np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], square, atol=1e-12)


def test_hues() -> None:
    for hue, rgb in ((0.0, (1, 0, 0)), (1 / 3, (0, 1, 0)), (2 / 3, (0, 0, 1)), (1 / 6, (1, 1, 0))):
        np.testing.assert_allclose(canvas.hsv(hue, 1.0, 1.0), rgb, atol=1e-12)
    np.testing.assert_allclose(canvas.hsv(0.4, 0.0, 0.7), 0.7)


def test_two_colours_are_apart_and_the_lighter_is_above_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    pairs = [canvas.two_colours(rng, 0.4, 0.9) for _ in range(400)]
    apart = np.array(
        [canvas.brightness(above) - canvas.brightness(below) for below, above in pairs]
    )
    assert np.abs(apart).min() >= 0.4
    assert 0.85 < (apart > 0).mean() < 0.95


def test_shapes_fit_into_the_unit_circle_and_are_different() -> None:
    v, u = np.mgrid[-60:61, -60:61] / 40.0
    inside = {name: distance(u, v) < 0 for name, distance in shapes.SHAPES.items()}
    for name, mask in inside.items():
        assert 0.1 < mask.mean() * 9 / np.pi < 1, name
        assert not (mask & (np.hypot(u, v) > 1.3)).any(), name
    assert len({mask.tobytes() for mask in inside.values()}) == len(shapes.SHAPES)


@pytest.mark.parametrize("label", range(9))
def test_dice_show_their_number(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOISE", "CLUTTER", "TURN", "SHIFT"):
        monkeypatch.setattr(counts, name, 0.0)
    monkeypatch.setattr(counts, "HALVES", (15.0, 15.0))
    monkeypatch.setattr(counts, "any_colours", lambda rng, count: np.zeros((count, 3)))
    colours = (np.zeros(3), np.ones(3))
    monkeypatch.setattr(counts, "two_colours", lambda *_: colours)
    monkeypatch.setattr(counts, "PIPS", (0.2, 0.2))
    image = counts.draw(Item("train", label, 0), np.random.default_rng(0))
    pips = image[..., 0].sum() / 255 / (np.pi * 3.0**2)
    assert pips == pytest.approx(label + 1, rel=0.03)


def test_sign_faces_are_different_and_clear_at_the_corners() -> None:
    faces = [signs.sign_face(name) for name in signs.TASK.classes]
    assert len({face.tobytes() for face in faces}) == 13
    for face in faces:
        assert face.min() >= 0
        assert face.max() <= 1
        assert not face[[0, 0, -1, -1], [0, -1, 0, -1]].any() or face is faces[7]
        assert face[32, 32, 3] == pytest.approx(1)


def test_unseen_fonts_are_in_test_only(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()
    face = letters.letter_face("A", "DejaVuSans.ttf")
    monkeypatch.setattr(letters, "letter_face", lambda letter, font: used.add(font) or face)
    for split, fonts in (("train", letters.FONTS), ("test", letters.FONTS + letters.UNSEEN_FONTS)):
        used.clear()
        for number in range(100):
            letters.draw(Item(split, 0, number), np.random.default_rng(number))
        assert used == set(fonts)


def test_the_named_colour_covers_most(full: ArraySource) -> None:
    """By the median pixel, which noise and patches of under half leave alone."""
    images, labels = arrays(full, "colours", "test")
    medians = np.median(images.reshape(len(images), -1, 3), axis=1) / 255
    by_name = {
        name: medians[labels == label].mean(axis=0)
        for label, name in enumerate(EMBEDDED["colours"].classes)
    }
    assert by_name["red"].argmax() == 0
    assert by_name["green"].argmax() == 1
    assert by_name["blue"].argmax() == 2
    assert by_name["white"].min() > 0.7 > by_name["grey"].max() > 0.3 > by_name["black"].max()


# In the pipeline


@pytest.mark.usefixtures("few")
def test_it_goes_through_the_cache(tmp_path: Path) -> None:
    name, source = "digits", EmbeddedSource()
    data = load_task(source, name, 32, tmp_path, validation_fraction=0.5)
    again = load_task(EmbeddedSource(), name, 32, tmp_path, validation_fraction=0.5)
    images, labels = arrays(source, name, "test")
    assert data.classes == EMBEDDED[name].classes
    assert len(data.train) + len(data.validation) == source.size(name, "train")
    for loaded in (data, again):
        np.testing.assert_array_equal(loaded.test.images, images)
        np.testing.assert_array_equal(loaded.test.labels, labels)
    assert len(list((tmp_path / "images").glob("[0-9a-f]*"))) == 2
