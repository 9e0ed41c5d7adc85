"""Preprocessing on the device against CLIP's processor, Pillow's bicubic and torch's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL
import pytest
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil

from rmtllmf_jax.data.decode import decode_image
from rmtllmf_jax.models.images import normalise, resize
from rmtllmf_jax.models.processor import read_processor

PILLOW = int(PIL.__version__.split(".")[0])
TALL = pytest.mark.skipif(PILLOW < 13, reason="older Pillow takes the passes in the other order")
SHAPES = [
    (32, 32),
    (37, 91),
    (224, 300),
    (375, 500),
    (500, 375),
    (223, 224),
    pytest.param((91, 37), marks=TALL),
    pytest.param((500, 161), marks=TALL),
]


def photo(height: int, width: int) -> np.ndarray:
    """Return waves, hard edges, a ramp and grain: what photographs have."""
    y, x = np.mgrid[:height, :width]
    waves = 127 + 127 * np.sin(x / 7 + y / 11)
    edges = 255 * ((x // 9 + y // 5) % 2)
    ramp = 255 * x / max(width - 1, 1)
    grain = np.random.default_rng(0).normal(0, 9, (height, width, 3))
    return np.clip(np.stack([waves, edges, ramp], -1) + grain, 0, 255).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processor(size: int, **options: bool) -> CLIPImageProcessorPil:
    crop = {"height": size, "width": size}
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop, **options)


def processed(image: np.ndarray, size: int, **options: bool) -> np.ndarray:
    values = processor(size, **options)(
        [image], return_tensors="np", input_data_format="channels_last"
    )
    return values["pixel_values"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("make", [photo, noise])
@pytest.mark.parametrize("size", [224, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_those_of_the_processor(shape: tuple[int, int], size: int, make):
    image = make(*shape)
    expected = processed(image, size, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(resize(jnp.asarray(image[None]), size), expected)


@pytest.mark.parametrize("shape", [(32, 32), (375, 500)], ids=str)
def test_the_whole_pipeline(shape: tuple[int, int]):
    image, clip = photo(*shape), processor(224)
    pixels = resize(jnp.asarray(image[None]), 224)
    values = normalise(pixels, clip.image_mean, clip.image_std)
    np.testing.assert_allclose(values, processed(image, 224), rtol=1e-5, atol=1e-6)


SQUARE = {"height": 24, "width": 24}
CROP = {"size": {"shortest_edge": 24}, "crop_size": SQUARE}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("CLIP", CROP),
        ("CLIP", CROP | {"do_normalize": False}),
        ("CLIP", CROP | {"do_rescale": False}),
        ("CLIP", CROP | {"rescale_factor": 1 / 127.5, "resample": 1}),
        ("CLIP", {"size": SQUARE, "do_center_crop": False}),
        ("ViT", {"size": SQUARE}),
        ("ViT", {"size": SQUARE, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.8, 0.9]}),
        ("ViT", CROP | {"do_center_crop": True, "do_convert_rgb": True}),
        ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
        ("ViT", {"size": {"height": 29, "width": 29}, "crop_size": SQUARE, "do_center_crop": True}),
        ("ViT", {"size": SQUARE, "resample": 0, "do_rescale": False, "do_normalize": False}),
        ("ViT", {"size": SQUARE, "resample": 5}),
        ("DeiT", {"size": {"height": 28, "width": 28}, "crop_size": SQUARE}),
        ("Bit", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}),
        ("Siglip", {"size": SQUARE}),
    ],
    ids=str,
)
def test_a_saved_processor_is_read_and_described(tmp_path: Path, kind: str, options: dict):
    image, classes = Image.fromarray(photo(37, 91)), {"CLIP": "clip", "ViT": "vit"}
    classes |= {"DeiT": "deit", "Bit": "dinov2", "Siglip": "siglip"}
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    theirs.save_pretrained(tmp_path)

    def values(processor: Any) -> np.ndarray:
        return np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)

    ours = read_processor(tmp_path, classes[kind])
    how = ours.own_fit(), ours.resample
    pixels = decode_image(np.asarray(image), 24, "here", *how, resize_to=ours.resize_to(24))
    whole = theirs.__class__(**options | {"do_rescale": False, "do_normalize": False})
    np.testing.assert_array_equal(pixels, values(whole))  # not one grey level apart
    np.testing.assert_allclose(
        normalise(jnp.asarray(pixels), ours.mean, ours.std), values(theirs), rtol=1e-5, atol=1e-5
    )
    described = json.dumps(ours.description(classes[kind], 24))
    (tmp_path / "preprocessor_config.json").write_text(described)
    opened = type(theirs).from_pretrained(tmp_path)
    np.testing.assert_allclose(values(opened), values(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_what_a_file_leaves_out_is_as_in_transformers(tmp_path: Path, kind: str):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    left_out = read_processor(tmp_path, kind)
    classes = {"clip": CLIPImageProcessorPil, "vit": transformers.ViTImageProcessorPil}
    classes[kind]().save_pretrained(tmp_path)
    assert read_processor(tmp_path, kind) == left_out


@pytest.mark.parametrize("make", [photo, noise])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_squashed_pixels_are_pillow_s(shape: tuple[int, int], make):
    image = make(*shape)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(jnp.asarray(image[None]), 224, "squash")[0], expected)
