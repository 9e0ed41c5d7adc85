"""A tiny CLIP with its tokenizer as a Hugging Face directory, made without torch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.configs import read_config
from rmtllmf_jax.models.layouts import to_torch
from rmtllmf_jax.models.pretrained import abstract_clip
from rmtllmf_jax.models.siglip import two_towers

MERGES = ("p h", "o t", "ph ot", "phot o</w>", "c a", "ca t</w>")
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
CLIP_CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 12,
    "vision_config": _TOWER | {"image_size": 16, "patch_size": 4},
    "text_config": _TOWER | {"vocab_size": 520, "max_position_embeddings": 77, "eos_token_id": 519},
}


def write_tokenizer(folder: Path, *, alphabet: Sequence[str] | None = None) -> Path:
    """Write CLIP's two files with the bytes, their ends of words, and a few merges."""
    letters = sorted(ByteLevel.alphabet()) if alphabet is None else list(alphabet)
    merged = [merge.replace(" ", "") for merge in MERGES]
    words = [*letters, *(letter + "</w>" for letter in letters), *merged, *SPECIAL]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return folder


def write_clip(folder: Path, seed: int = 0, *, near: Path | None = None, **vision: int) -> Path:
    """Write a random CLIP; `vision` changes its image tower.

    With `near` its weights are those of another one and a little more: as if fine-tuned.
    """
    config = copy.deepcopy(CLIP_CONFIG)
    config["vision_config"] |= vision
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, seed, near)
    return folder


def write_weights(folder: Path, seed: int, near: Path | None) -> None:
    """Write random weights for both towers of a configuration, or a little beside another's."""
    towers = two_towers(read_config(folder / "config.json").towers(folder))
    random = np.random.default_rng(seed)
    tensors = {}
    for path, leaf in leaves_by_path(abstract_clip(towers)).items():
        spread = 0.3 * random.normal(size=leaf.shape) + path.endswith("scale")
        key, tensor = to_torch(path, np.asarray(spread, np.float32))
        tensors[key] = np.asarray(tensor, order="C")
    if near is not None:
        before = load_file(near / "model.safetensors")
        tensors = {k: np.asarray(before[k] + 0.01 * tensors[k]) for k in before}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_users(folder: Path, write: Callable[..., Path], tasks: Sequence[str]) -> Path:
    """Write a base model, and one per task that is as if fine-tuned from it."""
    write(folder / "base")
    for seed, task in enumerate(tasks, start=1):
        write(folder / task, seed, near=folder / "base")
    return folder
