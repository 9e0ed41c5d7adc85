"""Names of tensors: in checkpoint files, in transformers 5 in memory, and in our own trees."""

from __future__ import annotations

import re

import numpy as np

VIT_MODULES = {
    "attention/q_proj": "attention/attention/query",
    "attention/k_proj": "attention/attention/key",
    "attention/v_proj": "attention/attention/value",
    "attention/o_proj": "attention/output/dense",
    "mlp/fc1": "intermediate/dense",
    "mlp/fc2": "output/dense",
}
"""A ViT's modules of a block: their names in a state dict of transformers 5, and in files."""

_BLOCK = re.compile(r"((?:.*\.)?)(?:layers|encoder\.layer)\.(\d+)\.(.*)\.(\w+)")


def as_in_files(key: str) -> str:
    """Return a key of a ViT's or DINOv2's state dict in transformers 5 as written in files.

    >>> as_in_files("vit.layers.0.attention.q_proj.weight")
    'vit.encoder.layer.0.attention.attention.query.weight'
    """
    found = _BLOCK.fullmatch(key)
    if not found:
        return key
    before, number, module, last = found.groups()
    module = VIT_MODULES.get(module.replace(".", "/"), module).replace("/", ".")
    return f"{before}encoder.layer.{number}.{module}.{last}"


def as_in_memory(module: str) -> str:
    """Return the name of a ViT's layer in files as named by transformers 5 in memory.

    >>> as_in_memory("vit.encoder.layer.0.attention.attention.query")
    'vit.layers.0.attention.q_proj'
    """
    found = re.fullmatch(r"((?:.*\.)?)encoder\.layer\.(\d+)\.(.*)", module)
    if not found:
        return module
    before, number, rest = found.groups()
    known = {new.replace("/", "."): old.replace("/", ".") for old, new in VIT_MODULES.items()}
    return f"{before}layers.{number}.{known.get(rest, rest)}"


def to_torch(path: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """Return a leaf with torch's name and layout; undoes `models.layouts.to_paths` for one leaf.

    Also in torch's memory layout: safetensors writes memory verbatim, ignoring strides.
    """
    stem, _, last = path.rpartition("/")
    name = path.replace("/", ".")
    if last not in ("kernel", "scale", "embedding"):
        return name, np.asarray(tensor, order="C")
    name = f"{stem.replace('/', '.')}.weight"
    if last == "kernel":
        tensor = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
    return name, np.asarray(tensor, order="C")
