"""Loading a backbone, its layers, and weights on disk; tests/parity has the comparison to torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG, assert_trees_equal, hugging_face_tensors, write_model
from safetensors.numpy import load_file, save_file
from tiny_clip import CLIP_CONFIG, write_clip

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models import weights
from rmtllmf_jax.models.backbone import Backbone, abstract_params, load_backbone
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.layers import LayerNorm
from rmtllmf_jax.models.positions import interpolate_positions
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


def test_leaves_carry_the_names_and_layouts_of_the_checkpoint(tiny: tuple[Backbone, dict]):
    backbone, params = tiny
    leaves = leaves_by_path(params)
    tensors = hugging_face_tensors(TINY_CONFIG)
    query = "encoder.layer.1.attention.attention.query"
    np.testing.assert_array_equal(
        leaves[f"{query}.kernel".replace(".", "/")], tensors[f"vit.{query}.weight"].T
    )
    np.testing.assert_array_equal(leaves["layernorm/scale"], tensors["vit.layernorm.weight"])
    patch = leaves["embeddings/patch_embeddings/projection/kernel"]
    kernel = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(patch, kernel.transpose(2, 3, 1, 0))
    assert not any("classifier" in path for path in leaves)
    assert len(leaves) == len(tensors) - 2
    assert (backbone.image_size, backbone.width) == (16, 16)


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


def test_half_precision_weights_become_float32(tmp_path: Path, tiny: tuple[Backbone, dict]):
    model = write_model(tmp_path)
    tensors = load_file(model / "model.safetensors")
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, model / "model.safetensors")
    _, params = load_backbone(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), tiny[1])
    assert_trees_equal(params, halved)


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


def test_a_missing_config_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_backbone(tmp_path)


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


def test_a_config_that_is_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json: cannot be read \(Is a directory\)"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
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


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
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


# Layers and positions


def test_layer_norm_is_flaxs():
    random = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * random.normal(size=(2, 3, 8)), jnp.float32)
    params = {
        "scale": jnp.asarray(random.normal(size=8), jnp.float32),
        "bias": jnp.asarray(random.normal(size=8), jnp.float32),
    }
    ours, theirs = LayerNorm(epsilon=1e-3), nn.LayerNorm(epsilon=1e-3)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)["params"]) == {
        "scale": (8,),
        "bias": (8,),
    }

    def value_and_gradients(module: nn.Module) -> tuple:
        def loss(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = module.apply({"params": params}, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        value_and_gradients(ours),
        value_and_gradients(theirs),
    )


def test_positions_of_the_own_grid_are_kept():
    positions = np.random.default_rng(0).normal(size=(1, 17, 3)).astype(np.float32)
    assert interpolate_positions(positions, 4) is positions


@pytest.mark.parametrize("grid", [2, 3, 7])
def test_interpolation_keeps_the_class_token_and_constants(grid: int):
    positions = np.full((1, 26, 2), 0.7, np.float32)
    positions[0, 0] = [3.0, -4.0]
    result = interpolate_positions(positions, grid)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[0, 0], positions[0, 0])
    np.testing.assert_allclose(result[0, 1:], 0.7, rtol=1e-6)
    assert result.shape == (1, grid**2 + 1, 2)


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


def test_another_tree_is_refused_key_by_key(tmp_path: Path):
    save_tree(tmp_path / "a", {"x": jnp.zeros(3), "y": {"z": jnp.zeros(2)}})
    with pytest.raises(InputError) as caught:
        load_tree(tmp_path / "a", {"x": jnp.zeros(4), "w": jnp.zeros(1)})
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "missing: w (1,)",
        "unexpected: y/z",
        "misshapen: x is (3,), expected (4,)",
    ]


def test_a_write_that_fails_leaves_the_old_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, tree = tmp_path / "a.safetensors", {"x": jnp.arange(3.0)}
    save_tree(path, tree)

    def out_of_space(tensors: dict, file: Path, metadata: dict | None) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "save_file", out_of_space)
    with pytest.raises(OSError, match="No space left"):
        save_tree(path, {"x": jnp.zeros(3)})
    assert_trees_equal(load_tree(path, tree), tree)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_metadata_of_what_is_no_safetensors_file_is_refused(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"nothing")
    with pytest.raises(InputError, match="a: not a readable safetensors file"):
        read_metadata(tmp_path / "a")
    with pytest.raises(InputError, match="b"):
        read_metadata(tmp_path / "b")
