"""open_clip's directories and hub repositories: their configuration and names as Hugging Face's.

Names and layouts are those of its `CLIP` and `CustomTextCLIP` with a `VisionTransformer`
(github.com/mlfoundations/open_clip, src/open_clip/model.py and transformer.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError, require_known

CONFIG = "open_clip_config.json"
SAFETENSORS, TORCH = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
"""Weight files, in the order in which open_clip looks for them."""

_VISION = ("layers", "width", "patch_size", "image_size", "head_width", "mlp_ratio")
_TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
_PLAIN: dict[str, tuple[Any, ...]] = {
    "pool_type": ("tok", "argmax"),
    "tokenizer_kwargs": ({}, None),
    "quick_gelu": (True, False),
}
"""Fields that change nothing here if they have one of these values; `False`, `None`, 0 never do."""

_MARK = "visual.class_embedding"
_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "logit_scale": "logit_scale",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_BUFFERS = ("attn_mask",)


def is_open_clip(tensors: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's keys are open_clip's."""
    return _MARK in tensors


def as_hugging_face(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return an open_clip checkpoint's tensors by the names of `transformers.CLIPModel`.

    Keys that belong to no known part keep their names, so that they are reported as unexpected.
    """
    found: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("text.")  # of CustomTextCLIP
        if name in _BUFFERS:
            continue
        block = _BLOCK.fullmatch(name)
        stem, _, last = name.rpartition(".")
        if block:
            found |= _block(block, tensor)
        elif name in _PROJECTIONS:  # a parameter (width, features), as the product takes it
            found[_PROJECTIONS[name]] = tensor.T
        elif stem in _NORMS:
            found[f"{_NORMS[stem]}.{last}"] = tensor
        else:
            found[_TOP.get(name, key)] = tensor
    return found


def _block(block: re.Match[str], tensor: np.ndarray) -> dict[str, np.ndarray]:
    visual, number, rest = block.groups()
    layer = f"{'vision_model' if visual else 'text_model'}.encoder.layers.{number}"
    module, _, last = rest.rpartition(".")
    if module == "attn" and last.startswith("in_proj_"):
        parts = np.split(tensor, 3)
        leaf = last.removeprefix("in_proj_")
        names = ("q_proj", "k_proj", "v_proj")
        return {f"{layer}.self_attn.{n}.{leaf}": part for n, part in zip(names, parts)}
    return {f"{layer}.{_MODULES.get(module, module)}.{last}": tensor}


def hugging_face_config(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return an `open_clip_config.json` as the `config.json` of a `CLIPModel`.

    **Raises:** `InputError` that names the file and what makes it a different model.
    """
    cfg = content.get("model_cfg")
    if not isinstance(cfg, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= cfg.keys():
        raise InputError(f"{path}: expected `model_cfg` with embed_dim, vision_cfg and text_cfg.")
    vision = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224} | cfg["vision_cfg"]
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    text |= cfg["text_cfg"]
    _require_plain(cfg, ("embed_dim", "vision_cfg", "text_cfg", "custom_text"), path, "model_cfg")
    _require_plain(vision, _VISION, path, "vision_cfg")
    _require_plain(text, _TEXT, path, "text_cfg")
    if isinstance(vision["layers"], list):
        raise InputError(f"{path}: vision_cfg describes a ResNet; expected a Vision Transformer.")
    activation = "quick_gelu" if cfg.get("quick_gelu") else "gelu"
    heads = vision["width"] // vision.get("head_width", 64)
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": cfg["embed_dim"],
        "vision_config": _tower(vision, heads, activation)
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        "text_config": _tower(text, text["heads"], activation)
        | {
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "eos_token_id": text["vocab_size"] - 1,  # the largest, at which the text is read
            "bos_token_id": text["vocab_size"] - 2,
        },
    }


def _tower(cfg: Mapping[str, Any], heads: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": cfg["width"],
        "num_hidden_layers": cfg["layers"],
        "num_attention_heads": heads,
        "intermediate_size": int(cfg["width"] * cfg.get("mlp_ratio", 4.0)),
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def _require_plain(cfg: Mapping[str, Any], read: tuple[str, ...], path: Path, where: str) -> None:
    """Check that no field makes a model other than CLIP's two transformers."""
    for field, value in cfg.items():
        if field in read or not value or value in _PLAIN.get(field, ()):
            continue
        raise InputError(
            f"{path}: {where} has {field} = {value!r}, which is not implemented; expected "
            "open_clip's own Vision Transformer and text transformer."
        )


def processor(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return an `open_clip_config.json` as the `preprocessor_config.json` of its images."""
    cfg = dict(content.get("preprocess_cfg") or {})
    size = hugging_face_config(content, path)["vision_config"]["image_size"]
    modes = {"shortest": True, "squash": False}
    crops = modes[
        require_known(f"resize_mode of {path}", cfg.get("resize_mode") or "shortest", modes)
    ]
    filters = {"bicubic": 3, "bilinear": 2, "random": 3}
    name = require_known(f"interpolation of {path}", cfg.get("interpolation") or "bicubic", filters)
    square = {"height": size, "width": size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size} if crops else square,
        "do_center_crop": crops,
        "crop_size": square,
        "resample": filters[name],
        "image_mean": cfg.get("mean"),
        "image_std": cfg.get("std"),
    }
