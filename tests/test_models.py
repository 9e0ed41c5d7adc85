"""Loading a backbone, its layers, and weights on disk; tests/parity has the comparison to torch."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG, assert_trees_equal, write_model
from safetensors.numpy import load_file, save_file
from tiny_clip import CLIP_CONFIG, write_clip

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import (
    Backbone,
    abstract_params,
    load_backbone,
)
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.pretrained import load_clip
from rmtllmf_jax.models.weights import load_tree, read_metadata, save_tree


def images(count: int = 5, size: int = 16) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def rewrite(model: Path, **changes: np.ndarray | None) -> None:
    """Replace tensors of a model, or remove them with None."""
    tensors = load_file(model / "model.safetensors")
    for key, value in changes.items():
        tensors.pop(key, None)
        if value is not None:
            tensors[key] = value
    save_file(tensors, model / "model.safetensors")


# A directory that is whole


def test_abstract_parameters_are_the_loaded_ones_shapes(tiny: tuple[Backbone, dict]):
    backbone, params = tiny
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(backbone)) == shapes


def test_images_are_normalised_by_the_models_own_statistics(
    tmp_path: Path, tiny: tuple[Backbone, dict]
):
    model = write_model(tmp_path)
    backbone, params = tiny
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.8, 0.9]}
    (model / "preprocessor_config.json").write_text(json.dumps(statistics))
    own, _ = load_backbone(model)
    assert (own.mean, own.std) == ((0.1, 0.2, 0.3), (0.7, 0.8, 0.9))

    pixels = images()
    normalised = (pixels / 255 - np.array(own.mean)) / np.array(own.std)
    apply = jax.jit(own.module.apply)
    expected = apply({"params": params}, jnp.asarray(normalised, jnp.float32))
    features = jax.jit(own.features)(params, jnp.asarray(pixels))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_another_image_size_changes_the_positions_alone(
    tiny_model: Path, tiny: tuple[Backbone, dict]
):
    backbone, params = load_backbone(tiny_model, 24)
    assert backbone.image_size == 24
    larger, own = leaves_by_path(params), leaves_by_path(tiny[1])
    assert larger.pop("embeddings/position_embeddings").shape == (1, 37, 16)
    own.pop("embeddings/position_embeddings")
    assert_trees_equal(larger, own)
    features = jax.jit(backbone.features)(params, jnp.asarray(images(2, 24)))
    assert features.shape == (2, 16)
    assert np.isfinite(features).all()


def test_features_do_not_depend_on_how_images_are_batched(tiny: tuple[Backbone, dict]):
    backbone, params = tiny
    pixels = images(7)
    direct = jax.jit(backbone.features)(params, jnp.asarray(pixels))
    batched = extract_features(backbone, params, pixels, batch_size=3)
    assert batched.shape == (7, 16)
    np.testing.assert_allclose(batched, direct, rtol=1e-4, atol=1e-5)


# A directory that cannot be used


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="gone: no such directory"):
        load_backbone(tmp_path / "gone")


@pytest.mark.parametrize("model_type", ["bert", None])
def test_another_kind_of_model_is_refused(tmp_path: Path, model_type: str | None):
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG | {"model_type": model_type}))
    with pytest.raises(InputError, match=rf"config\.json: model_type is {model_type!r}; expected"):
        load_backbone(tmp_path)


def test_an_unknown_activation_is_refused_with_the_known_ones(tmp_path: Path):
    model = write_model(tmp_path, TINY_CONFIG | {"hidden_act": "gelu_neu"})
    with pytest.raises(
        InputError, match=r"hidden_act of .*config.json 'gelu_neu'. Did you mean 'gelu_new"
    ):
        load_backbone(model)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": "large"},
        {"hidden_size": None},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"patch_size": 0},
        {"image_size": [16, 16]},
        {"layer_norm_eps": "small"},
        {"layer_norm_eps": -1e-6},
        {"layer_norm_eps": float("nan")},
        {"num_hidden_layers": -1},
        {"hidden_size": 17},
    ],
    ids=str,
)
def test_a_config_that_describes_no_model_is_refused(tmp_path: Path, change: dict):
    model = write_model(tmp_path)
    (model / "config.json").write_text(json.dumps(TINY_CONFIG | change))
    with pytest.raises(InputError, match=rf"config\.json.*{next(iter(change))}"):
        load_backbone(model)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("vision_config", {"num_attention_heads": 0}),
        ("text_config", {"num_attention_heads": 0}),
        ("text_config", {"num_hidden_layers": -2}),
        ("text_config", {"eos_token_id": 520}),
    ],
    ids=str,
)
def test_a_config_of_no_clip_is_refused(tmp_path: Path, section: str, change: dict):
    model = write_clip(tmp_path)
    config = CLIP_CONFIG | {section: CLIP_CONFIG[section] | change}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json: .*{next(iter(change))}"):
        load_clip(model)


def test_a_config_that_is_no_object_is_refused(tmp_path: Path):
    config = tmp_path / "config.json"
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_backbone(tmp_path)
    config.mkdir()
    with pytest.raises(InputError, match=r"config\.json: cannot be read \(Is a directory\)"):
        load_backbone(tmp_path)
    config.rmdir()
    config.write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: expected a JSON object"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("size", [0, -4, 3, 18])
def test_image_sizes_that_do_not_fit_the_patches_are_refused(tiny_model: Path, size: int):
    with pytest.raises(InputError, match=f"image size {size} .* patch size 4"):
        load_backbone(tiny_model, size)


def test_missing_weights_are_named(tmp_path: Path):
    model = write_model(tmp_path)
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights; expected one of model\.safetensors, "):
        load_backbone(model)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_weights_are_named(tmp_path: Path, keep: int):
    model = write_model(tmp_path)
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable safetensors file"):
        load_backbone(model)


def test_all_keys_that_do_not_fit_are_listed_at_once(tmp_path: Path):
    model = write_model(tmp_path)
    layer = "vit.encoder.layer.0"
    rewrite(
        model,
        **{
            f"{layer}.output.dense.bias": None,
            "vit.layernorm.weight": None,
            "vit.extra.weight": np.zeros((2, 3), np.float32),
            f"{layer}.intermediate.dense.weight": np.zeros((5, 16), np.float32),
            "vit.embeddings.cls_token": np.zeros((1, 16), np.float32),
        },
    )
    with pytest.raises(InputError) as caught:
        load_backbone(model)
    first, *rest = str(caught.value).splitlines()
    assert "model.safetensors: the weights do not fit" in first
    assert sorted(line.strip() for line in rest) == [
        "misshapen: embeddings/cls_token is (1, 16), expected (1, 1, 16)",
        "misshapen: encoder/layer/0/intermediate/dense/kernel is (16, 5), expected (16, 32)",
        "missing: encoder/layer/0/output/dense/bias (16,)",
        "missing: layernorm/scale (16,)",
        "unexpected: extra/kernel",
    ]


@pytest.mark.parametrize("shape", [(1, 8, 16), (1, 0, 16), (17, 16), (1, 17, 8)])
def test_positions_of_no_square_image_are_misshapen(tmp_path: Path, shape: tuple[int, ...]):
    model = write_model(tmp_path)
    key = "vit.embeddings.position_embeddings"
    rewrite(model, **{key: np.zeros(shape, np.float32)})
    with pytest.raises(InputError, match="misshapen: embeddings/position_embeddings is"):
        load_backbone(model)


# Weights on disk


def test_a_tree_survives_the_disk_bitwise(tmp_path: Path):
    random = np.random.default_rng(0)
    tree = {
        "float": {
            "32": random.normal(size=(3, 4)).astype(np.float32),
            "16": np.ones(2, np.float16),
        },
        "bfloat": jnp.asarray(random.normal(size=5), jnp.bfloat16),
        "int": np.arange(6, dtype=np.int32).reshape(2, 3),
        "scalar": np.float32(2.5),
        "turned": np.asarray(random.normal(size=(3, 4)), np.float32).T,
    }
    tree = jax.tree.map(jnp.asarray, tree) | {"turned": tree["turned"]}
    path = tmp_path / "new" / "tree.safetensors"
    save_tree(path, tree, {"task": "mnist"})
    back = load_tree(path, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree)))
    assert_trees_equal(back, tree)
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, tree)
    assert read_metadata(path) == {"task": "mnist"}


def test_a_loaded_tree_has_the_dtypes_asked_for(tmp_path: Path):
    save_tree(tmp_path / "a", {"x": jnp.arange(3.0)})
    like = {"x": jax.ShapeDtypeStruct((3,), jnp.float16)}
    assert load_tree(tmp_path / "a", like)["x"].dtype == jnp.float16


def test_metadata_of_what_is_no_safetensors_file_is_refused(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"nothing")
    with pytest.raises(InputError, match="a: not a readable safetensors file"):
        read_metadata(tmp_path / "a")
    with pytest.raises(InputError, match="b"):
        read_metadata(tmp_path / "b")
