"""Fine-tune a decoder on the texts of a task; resumes after kill -9."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.data.texts.packing import PackedTexts
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.evaluation.language import (
    NegativeLogLikelihood,
    language_outputs,
    text_batches,
)
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.training.batches import epoch_batch
from rmtllmf_jax.training.finetune import first_state, gradient_step, run_steps
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.recipes import Recipe


@partial(jax.jit, static_argnames=("decoder", "recipe", "lora"), donate_argnames="state")
def text_step(
    state: PyTree,
    batch: Batch,
    base: PyTree = None,
    *,
    decoder: Decoder,
    recipe: Recipe,
    lora: Lora | None = None,
) -> tuple[PyTree, Float[Array, ""]]:
    """Take one optimiser step on the mean loss of the tokens that count, in nats.

    Returns the state and the loss before the step. `state` is that of `first_state`; with a `lora`
    it is that of the factors, and `base` what they are applied to.
    """

    def loss(params: PyTree) -> Float[Array, ""]:
        params = params if lora is None else lora.applied(base, params)
        total, weight = NegativeLogLikelihood()(language_outputs(decoder, params), batch)
        return total / weight

    return gradient_step(state, loss, recipe)


def finetune_decoder(
    decoder: Decoder,
    base: PyTree,
    texts: PackedTexts,
    recipe: Recipe,
    seed: int,
    checkpoints: Path,
    *,
    every: int = 50,
    description: str = "fine-tuning",
    name: str = "",
    lora: Lora | None = None,
) -> PyTree:
    """Fine-tune all parameters of a decoder on texts, or the factors of a LoRA; return them.

    **Arguments:**

    - `base`: the pretrained parameters.
    - `texts`: rows of the training split, which may be a memory map.
    - `recipe`: its batch size counts rows.
    - `seed`: seed of the order of rows.
    - `checkpoints`: folder of orbax steps; training resumes from the newest, so that a killed run
      ends at the same parameters as one that was not interrupted.
    - `every`: steps between checkpoints.
    - `name`: the task's; others have other first factors.
    - `lora`: the base stays as it is, and the optimiser has a state for the factors alone.

    **Raises:** `InputError` if the loss stops being finite, or as `Lora.kernels`.
    """
    if lora is None:
        # donate_argnames would otherwise free the caller's base parameters.
        state, frozen = first_state(jax.tree.map(jnp.copy, base), recipe), None
    else:
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        state, frozen = first_state(lora.first(base, key), recipe), base

    def take(state: PyTree, step: int) -> tuple[PyTree, Float[Array, ""]]:
        rows = epoch_batch(len(texts), recipe.batch_size, step, seed)
        (batch,) = text_batches(texts.take(np.asarray(rows)), recipe.batch_size)
        return text_step(state, batch, frozen, decoder=decoder, recipe=recipe, lora=lora)

    state = run_steps(state, take, recipe.steps, checkpoints, every=every, description=description)
    return state["params"]
