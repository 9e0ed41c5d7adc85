"""CLIP against transformers in torch: features, logits, gradients, every layout of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.checkpoint import weight_files
from rmtllmf_jax.models.export import export_model
from rmtllmf_jax.models.layouts import to_paths
from rmtllmf_jax.models.pretrained import load_clip, read_pretrained
from rmtllmf_jax.models.processor import read_processor

END = 98
TINY_TEXT = {
    "vocab_size": 99,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "eos_token_id": END,
    "bos_token_id": 97,
    "pad_token_id": 1,
}
TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}


def clip_model(
    vision: dict | None = None, text: dict | None = None, projection: int = 20
) -> transformers.CLIPModel:
    """Return a model whose every parameter, biases and scales too, is random."""
    config = transformers.CLIPConfig(
        vision_config=TINY_VISION | (vision or {}),
        text_config=TINY_TEXT | (text or {}),
        projection_dim=projection,
    )
    model = transformers.CLIPModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
            elif parameter.ndim:
                parameter.mul_(3)
    return model.eval()


def pixels(size: int, count: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, size, size, 3))


def tokens(length: int, end: int, count: int = 3) -> jax.Array:
    """Return texts of different lengths, padded behind the end token."""
    random = np.random.default_rng(1)
    ids = random.integers(3, min(end, 90), (count, length)).astype(np.int32)
    for row, stop in enumerate(np.linspace(1, length - 1, count).astype(int)):
        ids[row, stop] = end
        ids[row, stop + 1 :] = 1
    return jnp.asarray(ids)


def as_torch(images: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2)))


def run(model: transformers.CLIPModel, images: jax.Array, ids: jax.Array) -> Any:
    """Return what transformers computes."""
    return model(input_ids=torch.from_numpy(np.array(ids)).long(), pixel_values=as_torch(images))


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def close(ours: object, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-4, atol=1e-5)


def assert_same(model: transformers.CLIPModel, folder: Path) -> None:
    """Compare features of both towers and logits after a trip through the disk."""
    model.save_pretrained(folder)
    text = model.config.text_config
    images = pixels(model.config.vision_config.image_size)
    ids = tokens(text.max_position_embeddings, text.vocab_size - 1)
    with torch.no_grad():
        theirs = run(model, images, ids)
        pooled = model.vision_model(pixel_values=as_torch(images)).pooler_output
        image = model.get_image_features(pixel_values=as_torch(images)).pooler_output
        words = model.get_text_features(
            input_ids=torch.from_numpy(np.array(ids)).long()
        ).pooler_output
    clip, params = load_clip(folder)

    @jax.jit
    def ours(params: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        of = {"params": params}
        return (
            clip.apply(of, images, method="image_features"),
            clip.apply(of, ids, method="text_features"),
            clip.apply(of, images, ids),
        )

    for result, expected in zip(ours(params), (image, words, theirs.logits_per_image), strict=True):
        close(result, array(expected))
    tower, own = load_backbone(folder)
    close(tower.module.apply({"params": own}, images), array(pooled))


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {}),
        ({"patch_size": 4, "num_attention_heads": 4, "num_hidden_layers": 1}, {"hidden_size": 32}),
        ({"hidden_act": "gelu", "layer_norm_eps": 0.01}, {"hidden_act": "gelu"}),
        ({"num_hidden_layers": 1}, {"eos_token_id": 2, "num_hidden_layers": 1}),
    ],
    ids=["tiny", "patches and widths", "activation and epsilon", "the old end token"],
)
def test_features_and_logits_of_tiny_models(tmp_path: Path, vision: dict, text: dict):
    assert_same(clip_model(vision, text), tmp_path)


@pytest.mark.slow
def test_features_and_logits_at_full_size(tmp_path: Path):
    text = transformers.CLIPTextConfig().to_dict()
    vision = transformers.CLIPVisionConfig(patch_size=16).to_dict()
    assert_same(clip_model(vision, text, 512), tmp_path)
    _, tower = load_backbone(tmp_path)
    leaves = jax.tree.leaves(tower)
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == (199, 85_799_424)


@pytest.mark.slow
def test_gradients_with_respect_to_every_parameter(tmp_path: Path):
    model = clip_model()
    model.save_pretrained(tmp_path)
    images, ids = pixels(24, 3), tokens(12, END)
    theirs = run(model, images, ids)
    torch.nn.functional.cross_entropy(theirs.logits_per_image, torch.arange(3)).backward()
    named = {name: array(parameter.grad) for name, parameter in model.named_parameters()}
    expected = to_paths(named, "clip", torch=True)
    clip, params = load_clip(tmp_path)

    @jax.jit
    def loss(params: dict) -> jax.Array:
        logits = clip.apply({"params": params}, images, ids)
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))

    ours = leaves_by_path(jax.grad(loss)(params))
    assert ours.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for path, gradient in ours.items():
        # Exactly zero are the gradients of the keys' biases, up to rounding.
        scale = max(np.abs(expected[path]).max(), 1e-2 * largest)
        np.testing.assert_allclose(
            gradient / scale, expected[path] / scale, rtol=1e-3, atol=2e-5, err_msg=path
        )


@pytest.mark.slow
def test_remat_and_bfloat16_change_memory_and_precision_alone(tmp_path: Path):
    clip_model().save_pretrained(tmp_path)
    images = pixels(24)

    def gradient(**options: object) -> tuple[jax.Array, dict]:
        tower, own = load_backbone(tmp_path, **options)
        assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}

        def loss(params: dict) -> tuple[jax.Array, jax.Array]:
            features = tower.module.apply({"params": params}, images)
            return jnp.sum(features**2), features

        (_, features), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(own)
        return features, gradient

    features, expected = gradient()
    same, again = gradient(remat=True)
    close(same, features)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), again, expected
    )
    short, rough = gradient(dtype="bfloat16")
    assert short.dtype == jnp.float32
    assert jax.tree.leaves(rough)[0].dtype == jnp.float32
    error = jnp.linalg.norm(short - features) / jnp.linalg.norm(features)
    assert 1e-4 < error < 0.03  # eight bits of mantissa, and really used


# Every layout of the weights


def bare_vision(model: transformers.CLIPModel, folder: Path) -> None:
    """As transformers 5 writes `CLIPVisionModel`."""
    transformers.CLIPVisionModel(model.config.vision_config).save_pretrained(folder)
    save_file(tower_state(model), folder / "model.safetensors", {"format": "pt"})


def prefixed_vision(model: transformers.CLIPModel, folder: Path) -> None:
    """As transformers 4 wrote it, with the buffer that it kept."""
    bare_vision(model, folder)
    state = {f"vision_model.{key}": value for key, value in tower_state(model).items()}
    state["vision_model.embeddings.position_ids"] = np.arange(10)[None]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def projected_vision(model: transformers.CLIPModel, folder: Path) -> None:
    config = model.config.vision_config
    config.projection_dim = model.config.projection_dim
    whole = transformers.CLIPVisionModelWithProjection(config)
    whole.vision_model.load_state_dict(model.vision_model.state_dict())
    whole.save_pretrained(folder)


def sharded(model: transformers.CLIPModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(weight_files(folder)) > 2


def flax(model: transformers.CLIPModel, folder: Path) -> None:
    """As the flax classes of transformers 4 wrote it: nested dictionaries of their own names."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    tree: dict = {}
    for key, tensor in model.state_dict().items():
        *parents, last = key.split(".")
        value = array(tensor)
        if last == "weight" and parents[-1] in ("token_embedding", "position_embedding"):
            last = "embedding"
        elif last == "weight" and value.ndim == 1:
            last = "scale"
        elif last == "weight":
            last = "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))


def pickled(model: transformers.CLIPModel, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def tower_state(model: transformers.CLIPModel) -> dict[str, np.ndarray]:
    return {key: array(value) for key, value in model.vision_model.state_dict().items()}


@pytest.mark.parametrize(
    "write", [bare_vision, prefixed_vision, projected_vision, sharded, flax, pickled]
)
def test_every_layout_gives_the_same_tower(tmp_path: Path, write: object):
    model = clip_model()
    write(model, tmp_path)
    images = pixels(24)
    with torch.no_grad():
        expected = model.vision_model(pixel_values=as_torch(images)).pooler_output
    backbone, params = load_backbone(tmp_path)
    close(jax.jit(backbone.module.apply)({"params": params}, images), array(expected))


@pytest.mark.parametrize("write", [sharded, flax, pickled])
def test_every_format_gives_the_whole_model(tmp_path: Path, write: object):
    model = clip_model()
    write(model, tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    (_, ours), (_, expected) = load_clip(tmp_path / "a"), load_clip(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_safetensors_come_before_the_other_formats(tmp_path: Path):
    model = clip_model()
    flax(model, tmp_path)
    pickled(clip_model(), tmp_path)
    assert weight_files(tmp_path)[0].name == "flax_model.msgpack"
    model.save_pretrained(tmp_path)
    assert weight_files(tmp_path)[0].name == "model.safetensors"


def test_positions_for_another_image_size_are_transformers(tmp_path: Path):
    model = clip_model()
    model.save_pretrained(tmp_path)
    images = pixels(40)
    with torch.no_grad():
        expected = model.vision_model(
            pixel_values=as_torch(images), interpolate_pos_encoding=True
        ).pooler_output
    backbone, params = load_backbone(tmp_path, 40)
    close(backbone.module.apply({"params": params}, images), array(expected))


# Export


@pytest.mark.parametrize("write", [None, bare_vision, prefixed_vision, projected_vision, flax])
def test_an_exported_model_opens_in_transformers(tmp_path: Path, write: object):
    model = clip_model()
    model.save_pretrained(tmp_path / "base") if write is None else write(model, tmp_path / "base")
    (tmp_path / "base" / "merges.txt").write_text("kept")
    tower, params = load_backbone(tmp_path / "base")
    moved = jax.tree.map(
        lambda leaf: leaf + 0.01 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    export_model(tmp_path / "out", read_pretrained(tmp_path / "base"), moved, 24)
    images, ids = pixels(24), tokens(12, END)
    ours = tower.module.apply({"params": moved}, images)
    opened = transformers.CLIPVisionModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        close(ours, array(opened(pixel_values=as_torch(images)).pooler_output))
    assert (tmp_path / "out" / "merges.txt").read_text() == "kept"
    if write is None or write is flax:
        whole = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            theirs = run(whole, images, ids)
        clip, both = load_clip(tmp_path / "out")
        close(clip.apply({"params": both}, images, ids), array(theirs.logits_per_image))
        assert not np.allclose(
            array(theirs.logits_per_image),
            array(run(model, images, ids).logits_per_image),
            atol=1e-3,
        )


def test_an_export_knows_its_own_image_size(tmp_path: Path):
    model = clip_model()
    model.save_pretrained(tmp_path / "base")
    said = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(said))
    backbone, params = load_backbone(tmp_path / "base", 40)
    export_model(tmp_path / "out", read_pretrained(tmp_path / "base"), params, 40)
    opened = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    images = pixels(40)
    with torch.no_grad():
        expected = opened.vision_model(pixel_values=as_torch(images)).pooler_output
    close(backbone.module.apply({"params": params}, images), array(expected))
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 40}
    assert processor["crop_size"] == {"height": 40, "width": 40}


def test_an_export_says_which_images_it_takes(tmp_path: Path):
    clip_model().save_pretrained(tmp_path / "base")
    said = {"image_mean": [0.1, 0.2, 0.3], "size": {"height": 24, "width": 24}, "resample": 2}
    said |= {"do_center_crop": False, "rescale_factor": 1 / 127.5}
    nested = {"processor_class": "CLIPProcessor", "image_processor": said}
    (tmp_path / "base" / "processor_config.json").write_text(json.dumps(nested))
    base = read_pretrained(tmp_path / "base")
    backbone, params = load_backbone(tmp_path / "base")
    for name, options in (("own", {}), ("other", {"fit": "crop", "normalised": False})):
        export_model(tmp_path / name, base, params, 24, **options)
        own, bare = (
            json.loads((tmp_path / name / file).read_text())
            for file in ("processor_config.json", "preprocessor_config.json")
        )
        assert own == {"processor_class": "CLIPProcessor", "image_processor": bare}
    assert load_backbone(tmp_path / "own")[0] == backbone
    assert read_processor(tmp_path / "own", "clip").own_fit() == "squash"
    assert load_backbone(tmp_path / "other")[0].std == (1, 1, 1)
    assert read_processor(tmp_path / "other", "clip").own_fit() == "crop"


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_an_exported_vit_opens_in_transformers(tmp_path: Path, kind: str):
    sizes = TINY_VISION | {"hidden_act": "gelu"}
    model = getattr(transformers, kind)(transformers.ViTConfig(**sizes)).eval()
    model.save_pretrained(tmp_path / "base")
    backbone, params = load_backbone(tmp_path / "base")
    export_model(tmp_path / "out", read_pretrained(tmp_path / "base"), params, 24)
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(tmp_path / "base" / "model.safetensors").keys()
    )
    opened = transformers.ViTModel.from_pretrained(tmp_path / "out").eval()
    images = pixels(24)
    with torch.no_grad():
        expected = opened(pixel_values=as_torch(images)).last_hidden_state[:, 0]
    close(backbone.module.apply({"params": params}, images), array(expected))
