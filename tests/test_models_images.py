"""Images on the device: resized as Pillow does, cropped and normalised as CLIP does."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.images import FITS, _digits, _weights, normalise, resize


def noise(height: int, width: int, channels: int = 3, count: int = 2) -> np.ndarray:
    """Return images whose every pixel is random: ringing and clipping are everywhere."""
    random = np.random.default_rng(height * width)
    return random.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 224), (28, 28, 33), (48, 64, 32), (61, 83, 7), (20, 90, 32), (45, 60, 45), (1, 5, 3)],
)
def test_squashed_images_are_pillow_s(height: int, width: int, size: int):
    images = noise(height, width)
    expected = np.stack([pillow(image, size, size) for image in images])
    np.testing.assert_array_equal(resize(jnp.asarray(images), size, "squash"), expected)


@pytest.mark.parametrize("fit", FITS)
def test_images_of_the_right_size_come_back_as_they_are(fit: str):
    images = noise(24, 24)
    np.testing.assert_array_equal(resize(jnp.asarray(images), 24, fit), images)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(8, 13, 0, 2), (13, 8, 2, 0), (8, 8, 0, 0), (8, 9, 0, 0)]
)
def test_a_crop_is_the_centre(height: int, width: int, top: int, left: int):
    images = noise(height, width)
    expected = images[:, top : top + 8, left : left + 8]
    np.testing.assert_array_equal(resize(jnp.asarray(images), 8), expected)


def test_grey_images_keep_their_one_channel():
    images = noise(30, 40, channels=1)
    expected = np.stack([pillow(image[..., 0], 16, 16) for image in images])[..., None]
    np.testing.assert_array_equal(resize(jnp.asarray(images), 16, "squash"), expected)


@pytest.mark.parametrize(("old", "new"), [(32, 224), (500, 224), (1000, 10), (3, 2)])
def test_the_digits_of_the_weights_lose_nothing_in_bfloat16(old: int, new: int):
    weights = _weights(old, new)
    digits = _digits(weights)
    np.testing.assert_array_equal(digits.astype(jnp.bfloat16).astype(np.float32), digits)
    np.testing.assert_array_equal(np.tensordot([1, 2**8, 2**16], digits, 1), weights)
    assert np.abs(weights.sum(axis=1) - 2**22).max() <= old  # one rounding a weight


def test_an_unknown_fit_is_refused():
    with pytest.raises(InputError, match=r"unknown fit 'squish'. Did you mean 'squash'\?"):
        resize(jnp.asarray(noise(4, 4)), 2, "squish")
    with pytest.raises(InputError, match="size must be at least 1, got 0"):
        resize(jnp.asarray(noise(4, 4)), 0)


def test_normalised_images():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    values = normalise(jnp.asarray(images), [0.5, 0.1, 0.25], [0.5, 0.2, 0.25])
    np.testing.assert_allclose(np.ravel(values), [-1.0, 0.5, 3.0], rtol=1e-6)
    assert values.dtype == jnp.float32
