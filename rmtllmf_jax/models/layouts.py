"""Between the keys of checkpoints and the paths of our trees, both ways.

Our paths are those of Hugging Face's flax checkpoints: ``/`` between names, and ``kernel``,
``scale`` or ``embedding`` where torch has ``weight``. Kernels are (inputs, outputs) and, for
convolutions, (height, width, inputs, outputs).
"""

from __future__ import annotations

import re

import numpy as np

from rmtllmf_jax.fusion.files.names import VIT_MODULES
from rmtllmf_jax.fusion.files.names import to_torch as to_torch
from rmtllmf_jax.models.configs import VITS

VISION = "vision_model/"
"""Prefix of the paths of CLIP's vision encoder."""

_VISION_PARTS = ("embeddings/", "encoder/", "pre_layrnorm/", "post_layernorm/", "head/")
_VIT_BLOCK = re.compile(r"(?:layers|encoder/layer)/(\d+)/(.*)/(\w+)")
_TABLES = ("token_embedding/weight", "position_embedding/weight", "embed_tokens/weight")
_TRUNK = ("embed_tokens/", "layers/", "norm/")


def to_paths(tensors: dict[str, np.ndarray], kind: str, torch: bool) -> dict[str, np.ndarray]:
    """Return a checkpoint's tensors by the paths of our trees.

    Takes the layouts of `CLIPModel`, of `CLIPVisionModel` with the prefix ``vision_model.``
    (transformers 4) and without (5), of `CLIPVisionModelWithProjection`, and of `ViTModel` with and
    without ``vit.``, by the names of `save_pretrained` and by those of a state dict of transformers
    5 (``layers.0.mlp.fc1``); buffers (``position_ids``) are left out. DeiT, DINOv2 and SigLIP use
    the same naming.
    """
    is_vit = kind in VITS
    renamed = {}
    for key, tensor in tensors.items():
        path = key.replace(".", "/") if torch else key
        if path.endswith("position_ids"):
            continue
        for prefix in (f"{each}/" for each in (*VITS, "clip")):
            path = path.removeprefix(prefix)
        if not is_vit and path.startswith(_VISION_PARTS):
            path = VISION + path
        if is_vit and (block := _VIT_BLOCK.fullmatch(path)):
            number, module, leaf = block.groups()
            if kind != "dinov2" or module.startswith("attention/"):  # its MLP is named alike
                module = VIT_MODULES.get(module, module)
            path = f"encoder/layer/{number}/{module}/{leaf}"
        if torch:
            path, tensor = _from_torch(path, tensor)
        if path == "logit_scale" and kind == "clip":
            tensor = tensor.reshape(())
        renamed[path] = tensor
    return _gated(renamed) if kind == "dinov2" else renamed


def _gated(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors with gate and value of a SwiGLU as one leaf, as in files."""
    found = {}
    for path, tensor in tensors.items():
        if "/mlp/up_proj/" in path:
            continue
        if "/mlp/gate_proj/" in path:
            other = tensors.get(path.replace("gate_proj", "up_proj"))
            if other is not None:
                path = path.replace("gate_proj", "weights_in")
                tensor = np.concatenate([tensor, other], axis=-1)
        found[path.replace("/mlp/down_proj/", "/mlp/weights_out/")] = tensor
    return found


def to_decoder_paths(
    tensors: dict[str, np.ndarray], tied: bool, torch: bool
) -> dict[str, np.ndarray]:
    """Return the tensors of a decoder's checkpoint by the paths of our trees.

    Takes the layouts of `...ForCausalLM`, and those of `LlamaModel` and similar classes, without
    ``model.``; buffers (``inv_freq``) are left out, and so is a copy of the table in a `tied`
    model.
    """
    renamed = {}
    for key, tensor in tensors.items():
        path = key.replace(".", "/") if torch else key
        if path.endswith("rotary_emb/inv_freq"):
            continue
        if path.startswith(_TRUNK):
            path = f"model/{path}"
        path, tensor = _from_torch(path, tensor)
        renamed[path] = tensor
    head, table = renamed.get("lm_head/kernel"), renamed.get("model/embed_tokens/embedding")
    if tied and head is not None and table is not None and np.array_equal(head.T, table):
        del renamed["lm_head/kernel"]
    return renamed


def _from_torch(path: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    if not path.endswith("/weight"):
        return path, tensor
    stem = path.removesuffix("weight")
    if path.endswith(_TABLES):
        return f"{stem}embedding", tensor
    if tensor.ndim == 4:
        return f"{stem}kernel", tensor.transpose(2, 3, 1, 0)
    if tensor.ndim == 2:
        return f"{stem}kernel", tensor.T
    return f"{stem}scale", tensor
