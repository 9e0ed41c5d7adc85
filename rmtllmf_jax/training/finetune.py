"""Fine-tune a model on one task, images under its frozen head or texts; resumes after kill -9."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_non_negative
from rmtllmf_jax.common.interrupts import interrupts_held
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.samples import Samples
from rmtllmf_jax.evaluation.batches import Batch, padded_batch
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.training.batches import epoch_batch
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.recipes import Recipe
from rmtllmf_jax.uplink import noise_of_sum


class WeightNoise(NamedTuple):
    """White Gaussian noise on all parameters, such as the uplink's errors are."""

    std: Float[ArrayLike, ""]
    """Standard deviation on every parameter, in the parameters' own unit."""
    key: Key[Array, ""]

    def added_to(self, params: PyTree) -> PyTree:
        """Return the parameters plus noise that the key and the leaves' names fix."""
        one = jax.tree.map(lambda leaf: leaf[None], params)
        noise = noise_of_sum(one, (1.0,), (1.0,), jnp.reshape(self.std, 1), self.key)
        return jax.tree.map(jnp.add, params, noise)


def mean_loss(logits: Float[Array, "*batch classes"], batch: Batch) -> Float[Array, ""]:
    """Return the mean cross-entropy of a batch in nats, by its weights: tokens count one each."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
    # A padded row has weight 0, and may be anything.
    total = jnp.sum(jnp.where(batch.weight > 0, batch.weight * losses, 0.0))
    return total / jnp.sum(batch.weight)


@partial(jax.jit, static_argnames=("model", "recipe", "lora"), donate_argnames="state")
def train_step(
    state: PyTree,
    batch: Batch,
    head: Head | None = None,
    noise: WeightNoise | None = None,
    base: PyTree = None,
    *,
    model: SharedModel,
    recipe: Recipe,
    lora: Lora | None = None,
) -> tuple[PyTree, Float[Array, ""]]:
    """Take one optimiser step on the mean cross-entropy; returns the state and the loss before it.

    `state` is that of `first_state`; `head` may be padded, so that all tasks share one
    compiled step. Under `noise` loss and gradient are those at the parameters plus it, and the step
    is taken from the parameters without it. With a `lora` the state is that of the factors, and
    `base` what they are applied to.
    """

    def loss(params: PyTree) -> Float[Array, ""]:
        params = params if lora is None else lora.applied(base, params)
        params = params if noise is None else noise.added_to(params)
        return mean_loss(model.outputs(params, head, batch.inputs), batch)

    return gradient_step(state, loss, recipe)


def finetune(
    model: SharedModel,
    base: PyTree,
    head: Head | None,
    samples: Samples,
    recipe: Recipe,
    seed: int,
    checkpoints: Path,
    *,
    every: int = 50,
    description: str = "fine-tuning",
    weight_noise: float = 0.0,
    name: str = "",
    lora: Lora | None = None,
) -> PyTree:
    """Fine-tune all parameters of a model on one task, or the factors of a LoRA; return them.

    **Arguments:**

    - `base`: the pretrained parameters; `head`: frozen, possibly padded; `None` of texts.
    - `samples`: of the training split; images of another size than the model's are resized on the
      device. A recipe's batch size counts rows of texts.
    - `seed`: seed of the sample order.
    - `checkpoints`: folder of orbax steps; training resumes from the newest, so that a killed run
      ends at the same parameters as one that was not interrupted.
    - `every`: steps between checkpoints.
    - `weight_noise`: standard deviation of Gaussian noise on every parameter at which each step's
      gradient is taken (`WeightNoise`): descent on the loss expected under such noise, towards
      minima that are flat at its scale (as Foret et al., arXiv 2010.01412, with random in place of
      worst perturbations). 0 is plain fine-tuning. The noise follows from seed, `name` and step.
    - `name`: the task's; others have other noise, or it would add up in the merge of task vectors,
      and other first factors.
    - `lora`: the base stays as it is, and the optimiser has a state for the factors alone.

    **Raises:** `InputError` if the loss stops being finite, for a noise below 0, or as
    `Lora.kernels`.
    """
    require_non_negative("weight noise", weight_noise)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    if lora is None:
        # donate_argnames would otherwise free the caller's base parameters.
        state, frozen = first_state(jax.tree.map(jnp.copy, base), recipe), None
    else:
        state, frozen = first_state(lora.first(base, key), recipe), base

    def take(state: PyTree, step: int) -> tuple[PyTree, Float[Array, ""]]:
        rows = epoch_batch(len(samples), recipe.batch_size, step, seed)
        batch = padded_batch(samples.take(rows).arrays(), len(rows)).prepared(model)
        noise = WeightNoise(weight_noise, jax.random.fold_in(key, step)) if weight_noise else None
        how = {"model": model, "recipe": recipe, "lora": lora}
        return train_step(state, batch, head, noise, frozen, **how)

    state = run_steps(state, take, recipe.steps, checkpoints, every=every, description=description)
    return state["params"]


def first_state(params: PyTree, recipe: Recipe) -> Any:
    """Return ``{"params": ..., "optimiser": ...}`` before any step."""
    return {"params": params, "optimiser": recipe.optimiser().init(params)}


def gradient_step(
    state: PyTree, loss: Callable[[PyTree], Float[Array, ""]], recipe: Recipe
) -> tuple[Any, Float[Array, ""]]:
    """Take one optimiser step; returns the state and the loss before it. Pure."""
    value, gradient = jax.value_and_grad(loss)(state["params"])
    updates, optimiser = recipe.optimiser().update(gradient, state["optimiser"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimiser": optimiser}, value


def run_steps(
    state: PyTree,
    take: Callable[[PyTree, int], tuple[PyTree, Float[Array, ""]]],
    steps: int,
    checkpoints: Path,
    *,
    every: int,
    description: str,
) -> PyTree:
    """Return the state after all steps; a killed run resumes and ends in the same state.

    Ctrl-C, and SIGTERM and SIGHUP where they raise KeyboardInterrupt, keep the finished steps.

    **Arguments:**

    - `take`: `(state, step) -> (state, loss)`; it may donate its state.
    - `checkpoints`: folder of orbax steps; the run resumes from the newest undamaged one.
    - `every`: steps between checkpoints.

    **Raises:** `InputError` if the loss stops being finite; `OSError` that names the folder if a
    step cannot be written.
    """
    import orbax.checkpoint as ocp

    from rmtllmf_jax.training.steps import CheckedSteps

    # Not asynchronous: the next step may donate the state's buffers.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, save_interval_steps=every, enable_async_checkpointing=False
    )
    # orbax runs event loops, which Ctrl-C would leave half-made.
    with interrupts_held():
        manager = CheckedSteps(checkpoints, options)
    with manager:
        first = manager.latest_step() or 0
        if first:
            abstract: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            with interrupts_held():
                state = manager.restore(first, args=ocp.args.StandardRestore(abstract))
            logging.getLogger(__name__).info("resuming from step %d of %s", first, checkpoints)
        loss = jnp.zeros(())
        with progress_bar(description, steps, first) as advance:
            done = first
            try:
                for step in range(first, steps):
                    with interrupts_held():  # a step consumes the previous state
                        state, loss = take(state, step)
                        done = step + 1
                    advance(1)
                    if done % every == 0:
                        _require_finite(loss, step, description)
                        with interrupts_held():
                            manager.save(done, args=ocp.args.StandardSave(state))
            except KeyboardInterrupt:
                if done > (manager.latest_step() or 0) and np.isfinite(loss):
                    with interrupts_held():
                        manager.save(done, args=ocp.args.StandardSave(state), force=True)
                raise
    _require_finite(loss, steps - 1, description)
    return state


def _require_finite(loss: Float[Array, ""], step: int, description: str) -> None:
    if not np.isfinite(loss):
        raise InputError(
            f"{description}: the loss is {float(loss)} at step {step + 1}; "
            "lower --learning-rate, or check the weights."
        )
