"""Fine-tune a model on one task: images under its frozen head, or texts. Resumes after kill -9."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from dataclasses import replace
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
from rmtllmf_jax.common.progress import note, progress_bar
from rmtllmf_jax.data.samples import Samples
from rmtllmf_jax.evaluation.batches import Batch, batches_of, padded_batch
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.training.augment import Augmentation, augmented
from rmtllmf_jax.training.batches import epoch_batch
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.parallel import ONE_PART, Placement, Split, value_and_gradient
from rmtllmf_jax.training.recipes import Recipe
from rmtllmf_jax.training.watch import VALIDATION_ACCURACY, VALIDATION_LOSS, Score, Watch
from rmtllmf_jax.uplink import noise_of_sum

_AUGMENTATION = 2**31 - 1  # no step's number: noise has the keys of those


class WeightNoise(NamedTuple):
    """White Gaussian noise on all parameters, like the uplink's errors."""

    std: Float[ArrayLike, ""]
    """Standard deviation on every parameter, in the parameters' own unit."""
    key: Key[Array, ""]

    def added_to(self, params: PyTree) -> PyTree:
        """Return the parameters plus noise that the key and the leaves' names fix."""
        one = jax.tree.map(lambda leaf: leaf[None], params)
        noise = noise_of_sum(one, (1.0,), (1.0,), jnp.reshape(self.std, 1), self.key)
        return jax.tree.map(jnp.add, params, noise)


def total_loss(logits: Float[Array, "*batch classes"], batch: Batch) -> Float[Array, ""]:
    """Return the weighted sum of a batch's cross-entropy in nats; tokens have weight one each."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
    # A padded row has weight 0, and may be anything.
    return jnp.sum(jnp.where(batch.weight > 0, batch.weight * losses, 0.0))


def mean_loss(logits: Float[Array, "*batch classes"], batch: Batch) -> Float[Array, ""]:
    """Return the weighted mean cross-entropy of a batch in nats."""
    return total_loss(logits, batch) / jnp.sum(batch.weight)


@partial(jax.jit, static_argnames=("model", "recipe", "lora", "parts"), donate_argnames="state")
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
    parts: int = 1,
) -> tuple[PyTree, Float[Array, ""]]:
    """Take one optimiser step on the mean cross-entropy; returns the state and the loss before it.

    `state` is that of `first_state`; `head` may be padded, so that all tasks share one
    compiled step. Under `noise`, loss and gradient are taken at the parameters plus noise, and the
    step from the parameters without it. With a `lora` the state is that of the factors, which are
    applied to `base`. The gradient is summed over `parts` of the batch, computed one after another.
    """
    weight = jnp.sum(batch.weight)

    def loss(params: PyTree, part: Batch) -> Float[Array, ""]:
        params = params if lora is None else lora.applied(base, params)
        params = params if noise is None else noise.added_to(params)
        return total_loss(model.outputs(params, head, part.inputs), part) / weight

    value, gradient = value_and_gradient(loss, state["params"], batch, parts)
    return descended(state, gradient, recipe), value


@partial(jax.jit, static_argnames=("model", "lora"))
def _scored(
    trained: PyTree,
    batch: Batch,
    head: Head | None,
    base: PyTree,
    *,
    model: SharedModel,
    lora: Lora | None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return a batch's loss, its hits, and the total weight of both."""
    params = trained if lora is None else lora.applied(base, trained)
    logits = model.outputs(params, head, batch.inputs)
    hits = jnp.sum(batch.weight * (jnp.argmax(logits, axis=-1) == batch.target))
    return total_loss(logits, batch), hits, jnp.sum(batch.weight)


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
    augmentations: tuple[Augmentation, ...] = (),
    split: Split = ONE_PART,
    watch: Watch | None = None,
) -> PyTree:
    """Fine-tune all parameters of a model on one task, or the factors of a LoRA; return them.

    **Arguments:**

    - `base`: the pretrained parameters; `head`: frozen, possibly padded; `None` for texts.
    - `samples`: of the training split; images of a size other than the model's are resized on the
      device. For texts, a recipe's batch size counts rows.
    - `seed`: seed of the sample order.
    - `checkpoints`: folder of orbax steps; training resumes from the newest, so that a killed run
      ends at the same parameters as one that was not interrupted.
    - `every`: steps between checkpoints.
    - `weight_noise`: standard deviation of Gaussian noise on every parameter when each step's
      gradient is taken (`WeightNoise`): descent on the expected loss under such noise, towards
      minima that are flat at its scale (like Foret et al., arXiv 2010.01412, with random instead of
      worst-case perturbations). 0 is plain fine-tuning. The noise follows from seed, `name` and
      step.
    - `name`: that of the task. Other tasks have different noise, or it would add up in the merge of
      task vectors, and different initial factors.
    - `lora`: the base is not changed, and the optimiser has a state only for the factors.
    - `augmentations`: of the training images (`training.augment`), drawn anew at every step.
    - `split`: the devices and parts over which a batch is computed.
    - `watch`: writes the curve, and decides which step is kept and when training ends early.

    **Raises:** `InputError` if the loss stops being finite, for a noise below 0, or as
    `Lora.kernels`.
    """
    require_non_negative("weight noise", weight_noise)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    drawn = jax.random.fold_in(key, _AUGMENTATION)
    if lora is None:
        # donate_argnames would otherwise free the caller's base parameters.
        state, frozen = first_state(jax.tree.map(jnp.copy, base), recipe), None
    else:
        state, frozen = first_state(lora.first(base, key), recipe), base
    place = Placement(split.devices(recipe.batch_size))
    state, frozen, head = place.everywhere((state, frozen, head))

    def take(state: PyTree, step: int) -> tuple[PyTree, Float[Array, ""]]:
        rows = epoch_batch(len(samples), recipe.batch_size, step, seed)
        batch = padded_batch(samples.take(rows).arrays(), len(rows)).prepared(model)
        if augmentations:
            inputs, of_step = batch.inputs, jax.random.fold_in(drawn, step)
            images = augmented(inputs["images"], of_step, augmentations=augmentations)
            batch = replace(batch, inputs={**inputs, "images": images})
        noise = WeightNoise(weight_noise, jax.random.fold_in(key, step)) if weight_noise else None
        how = {"model": model, "recipe": recipe, "lora": lora, "parts": split.parts}
        return train_step(state, place.cut(batch), head, noise, frozen, **how)

    how: dict[str, Any] = {"every": every, "description": description, "watch": watch}
    state = run_steps(state, take, recipe.steps, checkpoints, **how)
    last = place.together(state["params"])
    return last if watch is None else watch.chosen(last)


def validation_score(
    model: SharedModel,
    base: PyTree,
    head: Head | None,
    samples: Samples,
    batch_size: int,
    lora: Lora | None = None,
) -> Score:
    """Return the score of the trained parameters or factors on validation samples."""
    frozen = None if lora is None else base

    def score(trained: PyTree) -> dict[str, float]:
        sums = np.zeros(3)
        for batch in batches_of(samples, batch_size):
            how = {"model": model, "lora": lora}
            sums += np.array(_scored(trained, batch.prepared(model), head, frozen, **how))
        loss, hits, weight = sums.tolist()
        return {VALIDATION_LOSS: loss / weight} | (
            {} if head is None else {VALIDATION_ACCURACY: hits / weight}
        )

    return score


def first_state(params: PyTree, recipe: Recipe) -> Any:
    """Return ``{"params": ..., "optimiser": ...}`` before any step."""
    return {"params": params, "optimiser": recipe.optimiser().init(params)}


def gradient_step(
    state: PyTree, loss: Callable[[PyTree], Float[Array, ""]], recipe: Recipe
) -> tuple[Any, Float[Array, ""]]:
    """Take one optimiser step; returns the state and the loss before it. Pure."""
    value, gradient = jax.value_and_grad(loss)(state["params"])
    return descended(state, gradient, recipe), value


def descended(state: PyTree, gradient: PyTree, recipe: Recipe) -> Any:
    """Return the state after the optimiser's step along a gradient. Pure."""
    updates, optimiser = recipe.optimiser().update(gradient, state["optimiser"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimiser": optimiser}


def run_steps(
    state: PyTree,
    take: Callable[[PyTree, int], tuple[PyTree, Float[Array, ""]]],
    steps: int,
    checkpoints: Path,
    *,
    every: int,
    description: str,
    watch: Watch | None = None,
) -> PyTree:
    """Return the state after all steps; a killed run resumes and ends in the same state.

    Ctrl-C, and SIGTERM and SIGHUP if they raise KeyboardInterrupt, keep the finished steps.

    **Arguments:**

    - `take`: `(state, step) -> (state, loss)`; it may donate its state.
    - `checkpoints`: folder of orbax steps; the run resumes from the newest undamaged one.
    - `every`: steps between checkpoints.
    - `watch`: sees every step, and the state at checkpoints and at the end; it may end training.

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
        if watch is not None:
            watch.resume(first)
        loss = jnp.zeros(())
        with progress_bar(description, steps, first) as advance:
            done = first
            try:
                for step in range(first, steps):
                    if watch is not None and watch.stops:
                        note(f"{description}: ends after step {step}, see --patience.")
                        break
                    with interrupts_held():  # a step consumes the previous state
                        state, loss = take(state, step)
                        done = step + 1
                    advance(1)
                    if watch is not None:
                        watch.saw(done, loss)
                    if done % every == 0:
                        _require_finite(loss, step, description)
                        if watch is not None:
                            watch.look(done, state["params"])
                        with interrupts_held():
                            manager.save(done, args=ocp.args.StandardSave(state))
            except KeyboardInterrupt:
                if done > (manager.latest_step() or 0) and np.isfinite(loss):
                    with interrupts_held():
                        if watch is not None:
                            watch.write()
                        manager.save(done, args=ocp.args.StandardSave(state), force=True)
                raise
    _require_finite(loss, steps - 1, description)
    if watch is not None and done % every:
        watch.look(done, state["params"])
    return state


def _require_finite(loss: Float[Array, ""], step: int, description: str) -> None:
    if not np.isfinite(loss):
        raise InputError(
            f"{description}: the loss is {float(loss)} at step {step + 1}; "
            "lower --learning-rate, or check the weights."
        )
