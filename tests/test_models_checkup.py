"""A look at checkpoints: wrong configurations and broken tensors, each planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CONFIG, hugging_face_tensors, write_model
from safetensors.numpy import load_file, save_file
from tiny_clip import write_clip

from rmtllmf_jax.models.checkup import check_model, check_tensors, prompt_reader

KERNEL = "vit.encoder.layer.1.intermediate.dense.weight"
LEAF = "encoder/layer/1/intermediate/dense/kernel"


def changed(folder: Path, **tensors: np.ndarray) -> Path:
    """Write the tiny model with some tensors replaced (`__` stands for a dot)."""
    write_model(folder)
    all_tensors = hugging_face_tensors(TINY_CONFIG)
    all_tensors |= {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    save_file(all_tensors, folder / "model.safetensors")
    return folder


def kernel() -> np.ndarray:
    return hugging_face_tensors(TINY_CONFIG)[KERNEL].copy()


def test_a_sound_checkpoint_has_no_fault(tiny_model: Path):
    checkup = check_model(tiny_model)
    assert checkup.faults == ()
    assert checkup.kind == "vit"
    expected = hugging_face_tensors(TINY_CONFIG)
    assert checkup.tensors == len(expected)
    assert checkup.parameters == sum(tensor.size for tensor in expected.values())


def test_a_checkpoint_of_another_depth_does_not_fit_its_config(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"num_hidden_layers": 3}))
    (fault,) = check_model(folder).faults
    assert (fault.level, fault.check) == ("error", "fit")
    assert "missing: encoder/layer/2/" in fault.what
    assert "cannot be loaded" in fault.follows


def test_clip_without_its_text_tower_fits_as_an_image_tower_alone(tmp_path: Path):
    write_clip(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    checkup = check_model(tmp_path)
    assert (checkup.faults, checkup.kind) == ((), "clip")
    assert checkup.parameters == sum(tensor.size for tensor in tensors.values())
    vision = {key: tensor for key, tensor in tensors.items() if "text_" not in key}
    save_file(vision, tmp_path / "model.safetensors")
    (fault,) = check_model(tmp_path).faults
    assert (fault.level, fault.check) == ("warning", "fit")
    assert "missing: text_model/" in fault.what
    assert "zero-shot" in fault.follows


def test_a_missing_tokenizer_costs_zero_shot_heads_alone(tmp_path: Path):
    write_clip(tmp_path)
    reader = prompt_reader(tmp_path)
    assert reader is not None
    assert reader(["a photo", "a cat photo"]).shape == (2, 16)
    (tmp_path / "merges.txt").unlink()
    (fault,) = check_model(tmp_path).faults
    assert (fault.level, fault.check) == ("warning", "tokenizer")
    assert "merges.txt" in fault.what
    assert "no zero-shot heads" in fault.follows


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_found_by_leaf(value: float, tmp_path: Path):
    broken = kernel()
    broken[3, :2] = value
    (fault,) = check_model(changed(tmp_path / "model", **{KERNEL: broken})).faults
    assert (fault.level, fault.check) == ("error", "finite")
    tensors = len(hugging_face_tensors(TINY_CONFIG))
    assert fault.what == f"1 of {tensors} tensors hold NaN or infinite values: {LEAF} (2 of 512)"


def test_a_layer_of_zeros_is_an_error_and_one_value_throughout_a_warning(tmp_path: Path):
    zero = check_model(changed(tmp_path / "zero", **{KERNEL: 0 * kernel()})).faults
    assert [(fault.level, fault.check) for fault in zero] == [("error", "zero")]
    assert LEAF in zero[0].what
    constant = check_model(changed(tmp_path / "constant", **{KERNEL: 0 * kernel() + 3})).faults
    assert [(fault.level, fault.check) for fault in constant] == [("warning", "constant")]


def test_untrained_vectors_are_noted_together():
    tensors = {f"layer/{x}/bias": np.zeros(4, np.float32) for x in range(5)}
    tensors["norm/scale"] = np.ones(4, np.float32)
    (fault,) = check_tensors(tensors)
    assert (fault.level, fault.check) == ("note", "constant")
    assert fault.what == (
        "6 of 6 tensors are vectors of one value: layer/0/bias, layer/1/bias, layer/2/bias "
        "and 3 more"
    )


def test_a_single_number_is_not_a_constant_vector():
    assert check_tensors({"logit_scale": np.array(4.6, np.float32)}) == []


def test_half_precision_is_noted(tmp_path: Path):
    half = {key: x.astype(np.float16) for key, x in hugging_face_tensors(TINY_CONFIG).items()}
    folder = write_model(tmp_path / "model")
    save_file(half, folder / "model.safetensors")
    (fault,) = check_model(folder).faults
    assert (fault.level, fault.check) == ("note", "dtype")
    assert fault.what.startswith(f"{len(half)} of {len(half)} tensors are float16")
