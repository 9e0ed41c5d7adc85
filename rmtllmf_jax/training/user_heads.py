"""The users' frozen heads: closed form from features, or zero-shot from the text tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.registry import prompt_classes, prompt_templates
from rmtllmf_jax.data.task_data import TaskData
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import Head, lda_head
from rmtllmf_jax.models.pretrained import load_clip
from rmtllmf_jax.models.tokens import load_tokenizer
from rmtllmf_jax.models.weights import assign, read_safetensors
from rmtllmf_jax.models.zero_shot import (
    cached_zero_shot_head,
    load_head,
    require_classes,
    save_head,
)

_FORMAT = 2  # version of the closed-form heads, part of their names

MakeHead = Callable[[TaskData], tuple[Head, Path]]
"""Returns a task's head and its file in the run folder."""


def closed_form_heads(
    backbone: Backbone, base: PyTree, key: dict[str, Any], folder: Path
) -> MakeHead:
    """Return a maker of shrinkage-LDA heads on the base model's features of the training images.

    `key` holds what features depend on besides the images; it is part of the files' names.
    """

    def make(task: TaskData) -> tuple[Head, Path]:
        content = content_hash({"data": task.train.split.fingerprint, "v": _FORMAT, **key})
        path = folder / f"{task.name}-{content}.safetensors"
        if path.exists():
            head, names = load_head(path)
            require_classes(head, task.classes, path, names)
            return head, path
        images = task.train.images
        features = extract_features(backbone, base, images, description=f"features {task.name}")
        head = lda_head(features, task.train.labels, len(task.classes))
        save_head(path, head, task.classes)
        return head, path

    return make


def zero_shot_heads(model: Path, prompts: str, folder: Path) -> MakeHead:
    """Return a maker of CLIP's zero-shot heads; `prompts` is one of `data.registry.PROMPTS`.

    **Raises:** `InputError` if the model has no text tower or no tokenizer.
    """
    clip, params = load_clip(model)
    tokenizer = load_tokenizer(model, clip.shape.text)

    def make(task: TaskData) -> tuple[Head, Path]:
        templates = prompt_templates(task.name, prompts)
        classes = prompt_classes(task.name, task.classes)
        return cached_zero_shot_head(folder, clip, params, tokenizer, classes, templates)

    return make


def load_user_head(path: Path, width: int, classes: int) -> Head:
    """Return a head from its file.

    **Raises:** `InputError` that names a missing or damaged file, or one of the wrong sizes.
    """
    tensors = read_safetensors(path)
    projection = tensors.get("projection")
    inputs = width if projection is None else int(projection.shape[-1])
    return assign(tensors, _blank(inputs, classes, None if projection is None else width), path)


def _blank(inputs: int, classes: int, width: int | None = None) -> Head:
    projection = None if width is None else jnp.zeros((width, inputs), jnp.float32)
    return Head(
        jnp.zeros((inputs, classes), jnp.float32), jnp.zeros(classes, jnp.float32), projection
    )
