"""Fine-tune a backbone on one task under its frozen head; resumes after kill -9."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.training.batches import epoch_batch
from rmtllmf_jax.training.loop import first_state, gradient_step, run_steps
from rmtllmf_jax.training.recipes import Recipe


@partial(jax.jit, static_argnames=("backbone", "recipe"), donate_argnames="state")
def train_step(
    state: PyTree,
    images: UInt8[Array, "batch size size channels"],
    labels: Int[Array, " batch"],
    head: Head,
    *,
    backbone: Backbone,
    recipe: Recipe,
) -> tuple[PyTree, Float[Array, ""]]:
    """Take one optimiser step on the mean cross-entropy; returns the state and the loss before it.

    `state` is that of `loop.first_state`; `head` may be padded, so that all tasks share one
    compiled step.
    """

    def loss(params: PyTree) -> Float[Array, ""]:
        logits = head(backbone.features(params, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return gradient_step(state, loss, recipe)


def finetune(
    backbone: Backbone,
    base: PyTree,
    head: Head,
    images: UInt8[np.ndarray, "n size size channels"],
    labels: Int[np.ndarray, " n"],
    recipe: Recipe,
    seed: int,
    checkpoints: Path,
    *,
    every: int = 50,
    description: str = "fine-tuning",
) -> PyTree:
    """Fine-tune all parameters of the backbone on one task and return them.

    **Arguments:**

    - `base`: the pretrained parameters; `head`: frozen, possibly padded.
    - `images`, `labels`: the training split; the images may be a memory map; those of another size
      than the backbone's are resized on the device.
    - `seed`: seed of the sample order.
    - `checkpoints`: folder of orbax steps; training resumes from the newest, so that a killed run
      ends at the same parameters as one that was not interrupted.
    - `every`: steps between checkpoints.

    **Raises:** `InputError` if the loss stops being finite.
    """
    # donate_argnames would otherwise free the caller's base parameters.
    state = first_state(jax.tree.map(jnp.copy, base), recipe)

    def take(state: PyTree, step: int) -> tuple[PyTree, Float[Array, ""]]:
        batch = epoch_batch(len(labels), recipe.batch_size, step, seed)
        square = resize(images[batch], backbone.image_size)
        return train_step(state, square, labels[batch], head, backbone=backbone, recipe=recipe)

    state = run_steps(state, take, recipe.steps, checkpoints, every=every, description=description)
    return state["params"]
