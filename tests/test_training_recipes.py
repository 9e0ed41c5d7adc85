"""Recipes, and those of whole runs of CLIP at full size."""

from __future__ import annotations

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.tasks import TASK_NAMES
from rmtllmf_jax.training.recipes import (
    CLIP,
    FINETUNE,
    REALIGN,
    REALIGN_CLIP,
    RUN_RECIPES,
    Recipe,
)


def first_update(recipe: Recipe, gradient: float) -> tuple[float, float]:
    """Return an update and the first moment after it, for one parameter at 1."""
    optimiser, parameter = recipe.optimiser(), jnp.ones(())
    state = optimiser.init(parameter)
    update, state = optimiser.update(jnp.asarray(gradient), state, parameter)
    moment = next(float(x) for x in _floats(state))
    return float(update), moment


def _floats(state: object) -> list:
    return [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]


# Recipes


def test_old_recipes_hash_as_before():
    """Names of artefacts on disk are made of these hashes: they must never move."""
    assert content_hash(asdict(FINETUNE)) == "86fccb95c3962357"
    assert content_hash(asdict(REALIGN)) == "5356e7a9506288c8"


@pytest.mark.parametrize(("clip_norm", "expected"), [(1.0, 0.1), (None, 5.0), (100.0, 5.0)])
def test_no_clipping_leaves_a_large_gradient_alone(clip_norm: float | None, expected: float):
    recipe = Recipe(10, 1, 0.1, 0.0, warmup=0.0, clip_norm=clip_norm)
    _, moment = first_update(recipe, 50.0)  # the first moment is a tenth of the clipped gradient
    assert moment == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_peak():
    recipe = Recipe(10, 1, 0.1, 0.0, warmup=0.0, clip_norm=None)
    assert first_update(recipe, 3.0)[0] == pytest.approx(
        -0.1, rel=1e-5
    )  # Adam's first step is the rate
    assert recipe.warmup_steps == 0


def test_weight_decay_is_multiplied_by_the_rate():
    plain, decayed = (Recipe(10, 1, 0.1, decay, warmup=0.0) for decay in (0.0, 0.2))
    difference = first_update(decayed, 3.0)[0] - first_update(plain, 3.0)[0]
    assert difference == pytest.approx(-0.1 * 0.2, rel=1e-5)


# Of whole runs


@pytest.mark.parametrize(
    ("name", "steps", "batch", "decay", "warm", "clip", "prompts", "fit", "normalise"),
    [
        ("paper", 2000, 128, 0.1, 200, 1.0, "ensemble", "crop", True),
        ("task_vectors", 2000, 128, 0.1, 500, 1.0, "ensemble", "crop", True),
        ("fusion_bench", 4000, 128, 0.0, 0, None, "ensemble", "crop", True),
        ("peta", 6000, 64, 0.1, 600, None, "single", "squash", False),
    ],
)
def test_run_recipes_carry_the_published_numbers(
    name: str,
    steps: int,
    batch: int,
    decay: float,
    warm: int,
    clip: float | None,
    prompts: str,
    fit: str,
    normalise: bool,
):
    preset = RUN_RECIPES[name]
    recipe = preset.finetune
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate) == (steps, batch, 1e-5)
    assert (recipe.weight_decay, recipe.warmup_steps, recipe.clip_norm) == (decay, warm, clip)
    assert (preset.prompts, preset.fit, preset.normalise) == (prompts, fit, normalise)
    assert (preset.model, preset.image_size) == (CLIP, 224)
    rates = [float(recipe.schedule()(step)) for step in range(steps + 1)]
    assert np.argmax(rates) == warm
    assert max(rates) == pytest.approx(1e-5)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    half = warm + (steps - warm) // 2
    assert rates[half] == pytest.approx(0.5e-5, rel=1e-3)


def test_realignment_of_clip_sees_its_samples_as_often_as_stated():
    """The docstring's numbers, from the registry: ten samples per class."""
    pool = 10 * sum(len(task_facts(task).classes) for task in TASK_NAMES)
    two = 10 * sum(len(task_facts(task).classes) for task in ("cars", "dtd"))
    seen = REALIGN_CLIP.steps * REALIGN_CLIP.batch_size
    assert (pool, round(seen / pool, 1)) == (7580, 3.4)
    assert (two, round(seen / two, 1)) == (2430, 10.5)
    assert REALIGN_CLIP.learning_rate == 1e-5
    assert all(preset.realign == REALIGN_CLIP for preset in RUN_RECIPES.values())
