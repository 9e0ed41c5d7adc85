"""The Vision Transformer and its loader against Hugging Face's in torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from conftest import TINY_CONFIG
from safetensors.torch import load_file, save_file

from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import interpolate_positions, load_backbone
from rmtllmf_jax.models.pretrained import read_pretrained

LABELS = 3


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter, biases too, random values that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "layernorm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 3 or parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def classifier(config: dict, seed: int = 0) -> torch.nn.Module:
    full = transformers.ViTConfig(**config, num_labels=LABELS)
    return randomised(transformers.ViTForImageClassification(full), seed)


def raw_images(size: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def pixel_values(images: np.ndarray) -> torch.Tensor:
    """Normalise as Hugging Face's ViT processor does: mean and std of one half."""
    return torch.from_numpy((images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def assert_same_logits(
    model: torch.nn.Module, folder: Path, size: int, image_size: int | None = None
) -> None:
    model.save_pretrained(folder)
    images = raw_images(size)
    with torch.no_grad():
        interpolate = image_size is not None
        expected = model(pixel_values(images), interpolate_pos_encoding=interpolate).logits
    backbone, params = load_backbone(folder, image_size)
    features = jax.jit(backbone.features)(params, jnp.asarray(images))
    logits = np.asarray(features) @ array(model.classifier.weight).T + array(model.classifier.bias)
    np.testing.assert_allclose(logits, array(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "relu"},
        {"qkv_bias": False},
        {"layer_norm_eps": 0.1},
        {"num_attention_heads": 4, "patch_size": 8},
    ],
    ids=str,
)
def test_logits(tmp_path: Path, change: dict):
    depth = {"num_hidden_layers": 1} if change else {}
    assert_same_logits(classifier(TINY_CONFIG | depth | change), tmp_path, 16)


def test_logits_of_a_vit_ti_at_64_pixels(tmp_path: Path):
    config = {
        "image_size": 224,
        "patch_size": 16,
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    }
    assert_same_logits(classifier(config), tmp_path, 64, image_size=64)


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_of_a_classifier(tmp_path: Path, bias: bool):
    model = classifier(TINY_CONFIG | {"qkv_bias": bias})
    assert_same_logits(model, tmp_path / "saved", 16)
    plain = tmp_path / "plain"  # which transformers 5 names otherwise than what it saves
    plain.mkdir()
    shutil.copy(tmp_path / "saved" / "config.json", plain)
    save_file(model.state_dict(), plain / "model.safetensors")
    saved, found = (read_pretrained(tmp_path / name).tensors for name in ("saved", "plain"))
    assert saved.keys() == found.keys()
    for path, tensor in saved.items():
        np.testing.assert_array_equal(found[path], tensor)


@pytest.mark.parametrize("plain", [False, True])
def test_features_of_a_bare_model(tmp_path: Path, plain: bool):
    full = transformers.ViTConfig(**TINY_CONFIG)
    model = randomised(transformers.ViTModel(full))  # with a pooler, which is left out
    model.save_pretrained(tmp_path)
    if plain:
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert not any(key.startswith("vit.") for key in load_file(tmp_path / "model.safetensors"))
    images = raw_images(16)
    with torch.no_grad():
        expected = model(pixel_values(images)).last_hidden_state[:, 0]
    backbone, params = load_backbone(tmp_path)
    features = jax.jit(backbone.features)(params, jnp.asarray(images))
    np.testing.assert_allclose(features, array(expected), rtol=1e-4, atol=1e-5)


def test_gradients_of_every_parameter(tmp_path: Path):
    model = classifier(TINY_CONFIG)
    model.save_pretrained(tmp_path)
    images, labels = raw_images(16, count=4), np.array([0, 1, 2, 1])
    logits = model(pixel_values(images)).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()

    backbone, params = load_backbone(tmp_path)
    kernel, bias = array(model.classifier.weight).T, array(model.classifier.bias)

    def loss(params: dict) -> jax.Array:
        logits = backbone.features(params, jnp.asarray(images)) @ kernel + bias
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), labels])

    gradients = jax.jit(jax.grad(loss))(params)

    # The gradients in torch become the weights of a checkpoint, for the loader to bring over.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    _, expected = load_backbone(tmp_path / "gradients")
    left, right = leaves_by_path(gradients), leaves_by_path(expected)
    assert left.keys() == right.keys()
    for path, gradient in left.items():
        np.testing.assert_allclose(gradient, right[path], rtol=1e-3, atol=1e-6, err_msg=path)
        if not path.endswith("key/bias"):  # softmax does not see it
            assert np.abs(right[path]).max() > 1e-4, path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_checkpoints(tmp_path: Path, dtype: torch.dtype):
    classifier(TINY_CONFIG).to(dtype).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    _, params = load_backbone(tmp_path)
    for name in ("cls_token", "position_embeddings"):
        leaf = params["embeddings"][name]
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, array(tensors[f"vit.embeddings.{name}"].float()))
    load_backbone(tmp_path, 24)


@pytest.mark.parametrize(("old", "new"), [(14, 4), (4, 6), (4, 14), (7, 7), (3, 2), (2, 5), (1, 3)])
def test_positions_are_interpolated_as_in_torch(old: int, new: int):
    positions = np.random.default_rng(2).normal(size=(1, old**2 + 1, 6)).astype(np.float32)
    result = interpolate_positions(positions, new)
    image = torch.from_numpy(positions[:, 1:].reshape(1, old, old, 6)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        image, size=(new, new), mode="bicubic", align_corners=False
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, new**2, 6).numpy()
    np.testing.assert_allclose(result[:, 1:], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result[:, :1], positions[:, :1])
