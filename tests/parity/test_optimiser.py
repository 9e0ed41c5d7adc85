"""Recipes against torch's optimisers: the same parameters step by step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmtllmf_jax.training.recipes import RUN_RECIPES, Recipe

torch = pytest.importorskip("torch")

STEPS, ROWS = 20, 32


def problem() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return inputs, labels and the parameters of a network with one hidden layer."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    inputs, labels = normal(ROWS, 6), random.integers(0, 3, ROWS)
    first = {"w": normal(6, 8), "b": normal(8), "v": normal(8, 3), "frozen": normal(4)}
    return inputs, labels, first


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the rate of a step, from the definition."""
    warm = round(recipe.warmup * recipe.steps)
    if step < warm:
        return recipe.learning_rate * step / warm
    angle = math.pi * (step - warm) / (recipe.steps - warm)
    return recipe.learning_rate * (1 + math.cos(angle)) / 2


def with_optax(recipe: Recipe, scale: float) -> list[dict[str, np.ndarray]]:
    """Return the parameters after every step; `scale` multiplies the loss."""
    inputs, labels, first = problem()
    optimiser = recipe.optimiser()

    def loss(params: dict) -> jax.Array:
        logits = jnp.tanh(inputs @ params["w"] + params["b"]) @ params["v"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
        return scale * losses.mean() + 0 * params["frozen"].sum()

    @jax.jit
    def step(params: dict, state: optax.OptState) -> tuple[dict, optax.OptState]:
        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, first)
    state, path = optimiser.init(params), []
    for _ in range(STEPS):
        params, state = step(params, state)
        path.append(jax.tree.map(np.asarray, params))
    return path


def with_torch(recipe: Recipe, scale: float, kind: str) -> list[dict[str, np.ndarray]]:
    """Return the same from torch, as the field's training loops are written."""
    inputs, labels, first = problem()
    params = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in first.items()}
    weight_decay = {"weight_decay": recipe.weight_decay} if kind == "AdamW" else {}
    optimiser = getattr(torch.optim, kind)(list(params.values()), lr=1.0, **weight_decay)
    x, y, path = torch.from_numpy(inputs), torch.from_numpy(labels), []
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = learning_rate(recipe, step)
        optimiser.zero_grad()
        logits = torch.tanh(x @ params["w"] + params["b"]) @ params["v"]
        loss = scale * torch.nn.functional.cross_entropy(logits, y) + 0 * params["frozen"].sum()
        loss.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(params.values()), recipe.clip_norm)
        optimiser.step()
        path.append({name: p.detach().numpy().copy() for name, p in params.items()})
    return path


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["small gradients", "clipped gradients"])
@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (Recipe(STEPS, 1, 1e-2, 0.1, warmup=0.1, clip_norm=1.0), "AdamW"),
        (Recipe(STEPS, 1, 1e-2, 0.1, warmup=0.25, clip_norm=1.0), "AdamW"),
        (Recipe(STEPS, 1, 1e-2, 0.0, warmup=0.0, clip_norm=None), "Adam"),
        (Recipe(STEPS, 1, 1e-2, 0.1, warmup=0.1, clip_norm=None), "AdamW"),
    ],
    ids=list(RUN_RECIPES),
)
def test_parameters_follow_torch_step_by_step(recipe: Recipe, kind: str, scale: float):
    ours, theirs = with_optax(recipe, scale), with_torch(recipe, scale, kind)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=2e-6, err_msg=f"{step}")
    assert max(np.abs(ours[-1][name] - problem()[2][name]).max() for name in ("w", "v")) > 0.02


def test_the_cosine_is_torchs():
    recipe = Recipe(STEPS, 1, 1e-2, 0.0, warmup=0.0)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=STEPS)
    ours = recipe.schedule()
    for step in range(STEPS):
        np.testing.assert_allclose(ours(step), schedule.get_last_lr()[0], rtol=1e-5)
        optimiser.step()
        schedule.step()


def test_clipping_differs_from_torchs_by_its_epsilon():
    """Where the norm is of the size of torch's 1e-6, the two part, as the docstring says."""
    gradient = np.full(4, 1e-6, np.float32)
    optimiser = optax.clip_by_global_norm(1e-6)
    ours, _ = optimiser.update(jnp.asarray(gradient), optimiser.init(jnp.asarray(gradient)))
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_([parameter], 1e-6)
    np.testing.assert_allclose(ours, gradient / 2, rtol=1e-5)
    np.testing.assert_allclose(parameter.grad.numpy(), gradient / 3, rtol=1e-5)
