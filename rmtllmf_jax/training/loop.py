"""Optimiser steps, and training runs that survive a kill -9: progress, checkpoints, resuming."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.interrupts import interrupts_held
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.training.recipes import Recipe


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
