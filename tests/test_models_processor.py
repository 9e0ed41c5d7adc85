"""Image processors: files of transformers 4 and 5, what is folded, chosen and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_model

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.processor import NESTED, PLAIN, ImageProcessor, read_processor

MEAN, STD = (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)
OWN = {"image_mean": MEAN, "image_std": STD}


def read(folder: Path, kind: str = "clip", **files: Any) -> ImageProcessor:
    for name, content in files.items():
        (folder / f"{name}_config.json").write_text(json.dumps(content))
    return read_processor(folder, kind)


def test_the_file_of_transformers_5_is_read_first(tmp_path: Path):
    other = {"image_mean": [0, 0, 0]}
    found = read(tmp_path, processor={"image_processor": OWN}, preprocessor=other)
    assert (found.mean, found.std, found.origin) == (MEAN, STD, tmp_path / NESTED)
    found = read(tmp_path, processor={"processor_class": "CLIPProcessor"}, preprocessor=OWN)
    assert (found.mean, found.std, found.origin) == (MEAN, STD, tmp_path / PLAIN)


def test_without_a_file_images_are_those_of_the_kind(tmp_path: Path):
    assert read(tmp_path).mean == (0.48145466, 0.4578275, 0.40821073)
    vit = read(tmp_path, "vit")
    assert (vit.mean, vit.std, vit.fit, vit.resample) == ((0.5,) * 3, (0.5,) * 3, "crop", "bicubic")
    assert vit.origin is None


@pytest.mark.parametrize(
    ("steps", "mean", "std"),
    [
        ({}, MEAN, STD),
        ({"do_normalize": None}, MEAN, STD),
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"rescale_factor": 1 / 127.5}, np.divide(MEAN, 2), np.divide(STD, 2)),
        ({"do_rescale": False}, np.divide(MEAN, 255), np.divide(STD, 255)),
        ({"do_rescale": False, "do_normalize": False}, (0, 0, 0), (1 / 255,) * 3),
    ],
    ids=str,
)
def test_rescaling_and_normalising_are_folded(tmp_path: Path, steps: dict, mean: Any, std: Any):
    model = write_model(tmp_path)
    (model / PLAIN).write_text(json.dumps(OWN | steps))
    backbone, _ = load_backbone(model)
    np.testing.assert_allclose(backbone.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(backbone.std, std, rtol=1e-15)
    assert load_backbone(model, normalised=False)[0].std == (1, 1, 1)


SQUARE = {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("kind", "said", "fit", "resample"),
    [
        ("clip", {}, "crop", "bicubic"),
        ("clip", {"size": 32, "crop_size": 32, "resample": 2}, "crop", "bilinear"),
        ("clip", {"size": SQUARE, "do_center_crop": False}, "squash", "bicubic"),
        ("clip", {"size": SQUARE, "crop_size": SQUARE}, "squash", "bicubic"),
        ("clip", {"image_processor_type": "ViTImageProcessorFast"}, "squash", "bilinear"),
        ("vit", {}, "squash", "bilinear"),
        ("vit", {"size": 32, "resample": 3, "do_center_crop": None}, "squash", "bicubic"),
        ("vit", {"feature_extractor_type": "CLIPFeatureExtractor"}, "crop", "bicubic"),
    ],
    ids=str,
)
def test_how_images_become_squares(tmp_path: Path, kind: str, said: dict, fit: str, resample: str):
    found = read(tmp_path, kind, preprocessor=said)
    assert (found.own_fit(), found.resample) == (fit, resample)


@pytest.mark.parametrize(
    ("kind", "said", "fit"),
    [
        ("clip", {"size": {"shortest_edge": 256}}, "crop"),
        ("vit", {"size": 256, "do_center_crop": True, "crop_size": 224}, "squash"),
    ],
    ids=str,
)
def test_a_centre_is_cut_out_of_a_larger_image(tmp_path: Path, kind: str, said: dict, fit: str):
    found = read(tmp_path, kind, preprocessor=said)
    assert (found.own_fit(), found.before_crop) == (fit, (256, 224))
    assert [found.resize_to(size) for size in (224, 112, 64, 7)] == [256, 128, 73, 8]
    again = read(tmp_path, kind, preprocessor=found.description(kind, 112))
    assert (again.fit, again.before_crop) == (fit, (128, 112))


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"do_resize": False}, "do_resize: false"),
        ({"do_center_crop": False}, r"size \{'shortest_edge': 224\} with no do_center_crop"),
        (
            {"size": {"shortest_edge": 200}},
            r"'shortest_edge': 200\} with crop_size \{'height': 224",
        ),
        ({"use_square_size": True}, "use_square_size: true"),
        ({"size": {"height": 32, "width": 48}}, "'width': 48"),
        ({"size": [32, 32]}, r"size \[32, 32\]"),
    ],
    ids=str,
)
def test_other_squares_are_refused_unless_one_is_chosen(tmp_path: Path, said: dict, named: str):
    found = read(tmp_path, preprocessor=said)
    with pytest.raises(InputError, match=rf"{PLAIN}: .*{named}.* is not implemented; choose --fit"):
        found.own_fit()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"image_processor_type": "CLIPImageProcesor"}, "Did you mean 'CLIPImageProcessor'"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is not implemented"),
        ({"do_pad": True}, "do_pad is not implemented"),
        ({"do_normalize": "no"}, "do_normalize must be true or false, got 'no'"),
        ({"resample": 9}, "resample must be the number of one of Pillow's filters, 0 to 5, got 9"),
        ({"rescale_factor": 0}, "rescale_factor also not 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor a number"),
        ({"image_std": [0, 1, 1]}, "image_std and rescale_factor also not 0"),
        ({"image_mean": [float("nan"), 1, 1]}, "image_mean must be finite"),
        ({"image_mean": 0.5}, "image_mean and image_std must be lists of numbers"),
        ({"image_std": ["a", "b", "c"]}, "image_mean and image_std must be lists of numbers"),
        ({"image_mean": [1, 2]}, "a number for each of the model's 3 channels, got 2 and 3"),
        ([], r"an image processor must be an object, got \[\]"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, said: Any, named: str):
    model = write_model(tmp_path)
    (model / NESTED).write_text(json.dumps({"image_processor": said}))
    with pytest.raises(InputError, match=rf"{NESTED}.*{named}"):
        load_backbone(model)


@pytest.mark.parametrize(
    ("kind", "name", "mean", "fit"),
    [
        ("siglip", "SiglipImageProcessor", (0.5, 0.5, 0.5), "squash"),
        ("dinov2", "BitImageProcessor", (0.485, 0.456, 0.406), "crop"),
        ("deit", "DeiTImageProcessor", (0.485, 0.456, 0.406), "squash"),
    ],
)
def test_processors_of_other_models(tmp_path: Path, kind: str, name: str, mean: tuple, fit: object):
    assert read_processor(tmp_path, kind).mean == mean
    said = {"image_processor_type": name, "image_mean": mean}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = read_processor(tmp_path, kind)
    assert (found.mean, found.fit, found.resample) == (mean, fit, "bicubic")
    assert found.resize_to(224) == (256 if kind == "deit" else None)
