"""Augmentation: what may happen to an image, how often, and for which task."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.tasks import EMBEDDED_NAMES, REGISTERED
from rmtllmf_jax.training.augment import MIRRORED, Crop, Flip, augmented, parse_augmentations

KEY = jax.random.key(3)


def images(count: int, size: int = 8) -> jax.Array:
    random = np.random.default_rng(0)
    return jnp.asarray(random.integers(0, 256, (count, size, size, 3), np.uint8))


def test_a_crop_is_a_part_of_the_image_with_repeated_edges():
    """Every image is one of the nine that moves by at most one pixel give, and all occur."""
    before = images(120)
    after = np.asarray(Crop(share=0.1)(before, KEY))
    assert after.shape == before.shape
    assert after.dtype == np.uint8
    padded = np.pad(np.asarray(before), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    places = {}
    for index, image in enumerate(after):
        for row in range(3):
            for column in range(3):
                if np.array_equal(padded[index, row : row + 8, column : column + 8], image):
                    places[index] = (row, column)
    assert len(places) == len(after)
    assert len(set(places.values())) == 9


def test_half_of_the_images_are_mirrored():
    before = images(400)
    after = np.asarray(Flip()(before, KEY))
    same = (after == before).all(axis=(1, 2, 3))
    mirrored = (after == np.asarray(before)[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


def test_the_key_alone_decides():
    before, both = images(20), (Crop(), Flip())
    one = augmented(before, KEY, augmentations=both)
    np.testing.assert_array_equal(one, augmented(before, KEY, augmentations=both))
    assert not np.array_equal(one, augmented(before, jax.random.key(4), augmentations=both))
    expected = Flip()(Crop()(before, jax.random.fold_in(KEY, 0)), jax.random.fold_in(KEY, 1))
    np.testing.assert_array_equal(one, expected)


def test_auto_mirrors_no_digits():
    assert parse_augmentations(("auto",), "mnist") == (Crop(),)
    assert parse_augmentations(("auto",), "my-own") == (Crop(),)
    assert parse_augmentations(("auto",), "sun397") == (Crop(), Flip())
    assert parse_augmentations((), "sun397") == ()


def test_tasks_that_may_be_mirrored_go_by_the_names_that_runs_know():
    assert set(MIRRORED) - {*REGISTERED, *EMBEDDED_NAMES} == set()


def test_values_are_taken_as_they_are():
    def own(images: jax.Array, key: jax.Array) -> jax.Array:
        return images

    assert parse_augmentations((Flip(), own, "crop"), "mnist") == (Flip(), own, Crop())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flop", "unknown augmentation 'flop'. Did you mean 'flip'"),
        ("crop(share=1)", "share of a crop must be above 0 and below 1, got 1.0"),
        ("flip(0.5)", "augmentation flip has no options"),
    ],
)
def test_what_is_no_augmentation_is_refused(text: str, says: str):
    with pytest.raises(InputError, match=says):
        parse_augmentations((text,), "dtd")
