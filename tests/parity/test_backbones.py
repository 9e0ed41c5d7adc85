"""DeiT, DINOv2 and SigLIP's vision encoder: features, gradients and classifiers as in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import load_backbone, tower_tensors
from rmtllmf_jax.models.classifier import Classifier, read_classifier
from rmtllmf_jax.models.export import export_model
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.layouts import to_paths
from rmtllmf_jax.models.pretrained import read_pretrained

SIZE, LABELS = 16, 3
TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": 4,
}
TEXT = {
    **TINY,
    "vocab_size": 99,
    "intermediate_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def deit() -> torch.nn.Module:
    return transformers.DeiTForImageClassification(
        transformers.DeiTConfig(**TINY, intermediate_size=40, num_labels=LABELS)
    )


def distilled() -> torch.nn.Module:
    return transformers.DeiTForImageClassificationWithTeacher(
        transformers.DeiTConfig(**TINY, intermediate_size=40, hidden_act="relu")
    )


def dinov2() -> torch.nn.Module:
    return transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(**TINY, mlp_ratio=2, num_labels=LABELS)
    )


def giant() -> torch.nn.Module:
    return transformers.Dinov2Model(
        transformers.Dinov2Config(**TINY, mlp_ratio=3, use_swiglu_ffn=True, qkv_bias=False)
    )


def siglip() -> torch.nn.Module:
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**TINY, intermediate_size=40)
    )


def siglip_of_both_towers() -> torch.nn.Module:
    return transformers.SiglipModel(
        transformers.SiglipConfig(vision_config={**TINY, "intermediate_size": 40}, text_config=TEXT)
    )


def siglip_without_head() -> torch.nn.Module:
    vision = {**TINY, "intermediate_size": 40, "vision_use_head": False, "hidden_act": "gelu"}
    return transformers.SiglipForImageClassification(
        transformers.SiglipConfig(vision_config=vision, text_config=TEXT, num_labels=LABELS)
    )


MODELS = (deit, distilled, dinov2, giant, siglip, siglip_of_both_towers, siglip_without_head)
CLASSIFIERS = (deit, dinov2, siglip_without_head)


def randomised(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Return a model whose every parameter, biases, scales and tokens too, is random."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if parameter.ndim == 1 and ("norm" in name or "lambda" in name):
                parameter.copy_(0.2 * noise + ("bias" not in name))
            elif parameter.ndim in (1, 3):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def tower_of(model: torch.nn.Module) -> torch.nn.Module:
    for name in ("deit", "dinov2", "vision_model"):
        if hasattr(model, name):
            return getattr(model, name)
    return model


def feature(model: torch.nn.Module, pixels: torch.Tensor, **how: Any) -> torch.Tensor:
    """Return what is a feature here, of transformers' outputs."""
    found = tower_of(model)(pixel_values=pixels, **how)
    tokens = found.last_hidden_state
    kind = model.config.model_type
    if kind == "deit":
        return tokens[:, 0]
    if kind == "dinov2":
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
    return tokens.mean(dim=1) if found.pooler_output is None else found.pooler_output


def pixels(size: int = SIZE) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (3, size, size, 3))


def as_torch(images: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2)))


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def close(ours: object, theirs: np.ndarray) -> None:
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_features_are_those_of_transformers(tmp_path: Path, make: Callable):
    """As saved, from the names in memory, and at another image size."""
    model = randomised(make)
    model.save_pretrained(tmp_path)
    images = pixels()
    with torch.no_grad():
        expected = array(feature(model, as_torch(images)))
    backbone, params = load_backbone(tmp_path)
    assert backbone.width == expected.shape[1]
    close(jax.jit(backbone.module.apply)({"params": params}, images), expected)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert state.keys() != load_file(tmp_path / "model.safetensors").keys() or "siglip" in str(make)
    save_file(state, tmp_path / "model.safetensors")
    _, again = load_backbone(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    larger = pixels(SIZE + 8)
    how = {} if model.config.model_type == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = array(feature(model, as_torch(larger), **how))
    backbone, params = load_backbone(tmp_path, SIZE + 8)
    close(backbone.module.apply({"params": params}, larger), expected)


@pytest.mark.parametrize("make", [deit, dinov2, giant, siglip, siglip_without_head])
def test_gradients_are_those_of_torch(tmp_path: Path, make: Callable):
    model = randomised(make)
    model.save_pretrained(tmp_path)
    images = pixels()
    feature(model, as_torch(images)).square().sum().backward()
    found = read_pretrained(tmp_path)
    named = {
        name: array(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    paths = to_paths(named, found.config.kind, torch=True)
    expected = tower_tensors(paths, found.config)
    backbone, params = load_backbone(found)

    @jax.jit
    def loss(params: dict) -> jax.Array:
        return jnp.sum(backbone.module.apply({"params": params}, images) ** 2)

    ours = leaves_by_path(jax.grad(loss)(params))
    assert ours.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for path, gradient in ours.items():
        scale = max(np.abs(expected[path]).max(), 1e-2 * largest)
        np.testing.assert_allclose(
            gradient / scale, expected[path] / scale, rtol=0, atol=1e-5, err_msg=path
        )


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_the_own_classifier_gives_the_logits_of_transformers(tmp_path: Path, make: Callable):
    model = randomised(make)
    model.save_pretrained(tmp_path)
    images = pixels()
    with torch.no_grad():
        expected = array(model(pixel_values=as_torch(images)).logits)
    found = read_pretrained(tmp_path)
    backbone, params = load_backbone(found)
    logits = read_classifier(found).head(backbone.module.apply({"params": params}, images))
    close(logits, expected)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("classifies", [False, True])
def test_an_export_opens_in_transformers(
    tmp_path: Path, make: Callable, classifies: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    model = randomised(make)
    model.save_pretrained(tmp_path / "base")
    base = read_pretrained(tmp_path / "base")
    backbone, params = load_backbone(base)
    moved = jax.tree.map(
        lambda leaf: leaf + 0.01 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    random = np.random.default_rng(0).normal(size=(backbone.width + 1, LABELS)).astype(np.float32)
    head = Head(jnp.asarray(random[1:]), jnp.asarray(random[0]))
    classifier = Classifier(head, ("a", "b", "c")) if classifies else None
    export_model(tmp_path / "out", base, moved, SIZE, fit="squash", classifier=classifier)
    images = pixels()
    ours = backbone.module.apply({"params": moved}, images)
    if not classifies:
        opened = type(model).from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            close(ours, array(feature(opened, as_torch(images))))
        return
    opened, said = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    with torch.no_grad():
        close(head(ours), array(opened.eval()(pixel_values=as_torch(images)).logits))
    assert opened.config.id2label == {0: "a", 1: "b", 2: "c"}
    again = read_classifier(read_pretrained(tmp_path / "out"))
    np.testing.assert_array_equal(again.head.kernel, head.kernel)
