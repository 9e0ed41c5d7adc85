"""Checkpoints by open_clip's names, and other wrappings of weights, against transformers.

open_clip itself is not needed: its names and layouts are those of its published source. Where it is
installed, what it writes is read, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from test_clip import (
    TINY_TEXT,
    TINY_VISION,
    array,
    as_torch,
    clip_model,
    close,
    pixels,
    run,
    tokens,
)
from test_vit import TINY_CONFIG, classifier

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.checkpoint import weight_files
from rmtllmf_jax.models.export import export_model
from rmtllmf_jax.models.pretrained import load_clip, read_pretrained
from rmtllmf_jax.models.processor import read_processor

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
CONFIG = {
    "model_cfg": {
        "embed_dim": 20,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": TINY_VISION["image_size"],
            "patch_size": TINY_VISION["patch_size"],
            "width": TINY_VISION["hidden_size"],
            "layers": TINY_VISION["num_hidden_layers"],
            "head_width": TINY_VISION["hidden_size"] // TINY_VISION["num_attention_heads"],
            "mlp_ratio": TINY_VISION["intermediate_size"] / TINY_VISION["hidden_size"],
        },
        "text_cfg": {
            "context_length": TINY_TEXT["max_position_embeddings"],
            "vocab_size": TINY_TEXT["vocab_size"],
            "width": TINY_TEXT["hidden_size"],
            "heads": TINY_TEXT["num_attention_heads"],
            "layers": TINY_TEXT["num_hidden_layers"],
            "mlp_ratio": TINY_TEXT["intermediate_size"] / TINY_TEXT["hidden_size"],
        },
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bilinear"},
}


def tower_state(tower: torch.nn.Module, layers: int) -> dict[str, torch.Tensor]:
    """Return one of transformers' towers as open_clip's `Transformer` has it."""
    state, found = tower.state_dict(), {}
    for n in range(layers):
        ours, theirs = f"encoder.layers.{n}.", f"transformer.resblocks.{n}."
        for leaf in ("weight", "bias"):
            parts = [state[f"{ours}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"{theirs}attn.in_proj_{leaf}"] = torch.cat(parts)
            for new, old in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{theirs}{new}.{leaf}"] = state[f"{ours}{old}.{leaf}"]
    return found


def open_clip_state(model: transformers.CLIPModel) -> dict[str, torch.Tensor]:
    """Return a model's weights by the names of open_clip's `CLIP`."""
    vision, text = model.vision_model, model.text_model
    visual = tower_state(vision, 2) | {
        "class_embedding": vision.embeddings.class_embedding,
        "positional_embedding": vision.embeddings.position_embedding.weight,
        "conv1.weight": vision.embeddings.patch_embedding.weight,
        "ln_pre.weight": vision.pre_layrnorm.weight,
        "ln_pre.bias": vision.pre_layrnorm.bias,
        "ln_post.weight": vision.post_layernorm.weight,
        "ln_post.bias": vision.post_layernorm.bias,
        "proj": model.visual_projection.weight.T,
    }
    state = {f"visual.{key}": tensor for key, tensor in visual.items()}
    state |= tower_state(text, 2) | {
        "positional_embedding": text.embeddings.position_embedding.weight,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "ln_final.weight": text.final_layer_norm.weight,
        "ln_final.bias": text.final_layer_norm.bias,
        "text_projection": model.text_projection.weight.T,
        "logit_scale": model.logit_scale,
    }
    return {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}


def custom_text(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the names of open_clip's `CustomTextCLIP`."""
    kept = ("visual.", "logit_scale")
    return {key if key.startswith(kept) else f"text.{key}": x for key, x in state.items()}


def write_safetensors(state: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(state, folder / "open_clip_model.safetensors")


def write_bin(state: dict[str, torch.Tensor], folder: Path) -> None:
    torch.save(state, folder / "open_clip_pytorch_model.bin")


def write_training(state: dict[str, torch.Tensor], folder: Path) -> None:
    """As open_clip's trainer saves a checkpoint of several processes."""
    whole = {"epoch": 3, "state_dict": {f"module.{key}": x for key, x in state.items()}}
    torch.save(whole, folder / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize("write", [write_safetensors, write_bin, write_training])
@pytest.mark.parametrize("names", [dict, custom_text])
def test_open_clip_is_the_same_model(tmp_path: Path, write: Callable, names: Callable):
    model = clip_model(vision={"hidden_act": "quick_gelu"}, text={"hidden_act": "quick_gelu"})
    write(names(open_clip_state(model)), tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    images, ids = pixels(24), tokens(12, 98)
    with torch.no_grad():
        theirs = run(model, images, ids)
    clip, params = load_clip(tmp_path)
    close(jax.jit(clip.apply)({"params": params}, images, ids), array(theirs.logits_per_image))
    said = read_processor(tmp_path, "clip")
    assert (list(said.mean), list(said.std)) == (MEAN, STD)
    assert (said.own_fit(), said.resample) == ("crop", "bilinear")
    backbone, tower = load_backbone(tmp_path)
    assert (list(backbone.mean), backbone.image_size) == (MEAN, 24)
    export_model(tmp_path / "out", read_pretrained(tmp_path), tower, 24)
    opened = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        again = run(opened, images, ids)
    np.testing.assert_array_equal(array(again.logits_per_image), array(theirs.logits_per_image))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("custom", [False, True])
def test_what_open_clip_itself_writes_is_the_same_model(tmp_path: Path, safe: bool, custom: bool):
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    hub = pytest.importorskip("open_clip.push_to_hf_hub")
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(**CONFIG["model_cfg"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    open_clip.model.set_model_preprocess_cfg(model, CONFIG["preprocess_cfg"])
    tokenizer = type("Tokenizer", (), {"save_pretrained": lambda self, folder: None})()
    hub.save_for_hf(model, tokenizer, CONFIG["model_cfg"], tmp_path, safe_serialization=safe)
    images, ids = pixels(24), tokens(12, 98)
    with torch.no_grad():
        image = model.encode_image(as_torch(images), normalize=True)
        text = model.encode_text(torch.from_numpy(np.array(ids)), normalize=True)
        theirs = array(model.logit_scale.exp() * image @ text.T)
    assert np.ptp(theirs) > 0.5
    clip, params = load_clip(tmp_path)
    close(jax.jit(clip.apply)({"params": params}, images, ids), theirs)
    assert list(read_processor(tmp_path, "clip").mean) == MEAN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"vision_cfg": {"timm_model_name": "vit_base"}},
            "vision_cfg has timm_model_name",
        ),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "vision_cfg describes a ResNet"),
        (
            {"vision_cfg": {"global_average_pool": True}},
            "vision_cfg has global_average",
        ),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg has pool_type = 'avg'"),
        ({"text_cfg": {"hf_model_name": "roberta"}}, "text_cfg has hf_model_name = 'roberta'"),
        ({"multimodal_cfg": {"width": 3}}, "model_cfg has multimodal_cfg ="),
        ({"init_logit_bias": -10}, "model_cfg has init_logit_bias = -10"),
    ],
)
def test_other_models_of_open_clip_are_refused(tmp_path: Path, change: dict[str, Any], says: str):
    config = json.loads(json.dumps(CONFIG))
    for key, value in change.items():
        old = config["model_cfg"].get(key)
        config["model_cfg"][key] = old | value if isinstance(old, dict) else value
    write_safetensors(open_clip_state(clip_model()), tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"open_clip_config.json: {says}"):
        load_backbone(tmp_path)


# Other wrappings, of a ViT


def sharded(model: torch.nn.Module, folder: Path) -> None:
    """As transformers wrote shards before safetensors."""
    state = model.state_dict()
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    places = {key: names[index % 2] for index, key in enumerate(state)}
    for name in names:
        torch.save({key: x for key, x in state.items() if places[key] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert len(weight_files(folder)) == 2


def plain(model: torch.nn.Module, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def of_the_tower_alone(model: torch.nn.Module, folder: Path) -> None:
    torch.save(model.vit.state_dict(), folder / "pytorch_model.bin")


def wrapped(model: torch.nn.Module, folder: Path) -> None:
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, folder / "pytorch_model.bin")


def compiled(model: torch.nn.Module, folder: Path) -> None:
    state = {f"module._orig_mod.{key}": x.clone() for key, x in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("write", [sharded, plain, of_the_tower_alone, wrapped, compiled])
def test_every_wrapping_gives_the_same_tower(tmp_path: Path, write: Callable):
    model = classifier(TINY_CONFIG)
    model.config.save_pretrained(tmp_path)
    write(model, tmp_path)
    images = pixels(16)
    with torch.no_grad():
        expected = model.vit(pixel_values=as_torch(images)).last_hidden_state[:, 0]
    backbone, params = load_backbone(tmp_path)
    close(backbone.module.apply({"params": params}, images), array(expected))


def test_what_holds_no_tensors_is_refused(tmp_path: Path):
    model = classifier(TINY_CONFIG)
    model.config.save_pretrained(tmp_path)
    torch.save({"epoch": 1, "optimiser": {}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"expected tensors by name.*found epoch, optimiser"):
        load_backbone(tmp_path)


def test_quantised_weights_are_refused_by_name(tmp_path: Path):
    model = classifier(TINY_CONFIG)
    model.config.save_pretrained(tmp_path)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    key = "vit.layers.0.mlp.fc1.weight"
    state[key] = state[key].to(torch.int8)
    for name, save in (("model.safetensors", save_file), ("pytorch_model.bin", torch.save)):
        save(state, tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: quantised weights: {key} is int8"):
            load_backbone(tmp_path)
        (tmp_path / name).unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain(model, tmp_path)
    with pytest.raises(InputError, match=r"quantised weights \(quantization_config, bitsandbytes"):
        load_backbone(tmp_path)


def test_a_configuration_of_another_image_size_is_refused(tmp_path: Path):
    model = classifier(TINY_CONFIG)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_size": 32}))
    with pytest.raises(InputError, match=r"16 position embeddings .* says image_size 32 .* is 64"):
        load_backbone(tmp_path)
    clip_model().save_pretrained(tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["vision_config"]["image_size"] = 32
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"9 position embeddings .* says image_size 32 .* is 16"):
        load_backbone(tmp_path / "clip")
