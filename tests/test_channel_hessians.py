"""Second derivatives of MSE and rates under the attacks, against differences of the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_channel_gradients import (
    ANTENNAS,
    FAST_COMPILE,
    KINDS,
    USERS,
    complex_normal,
    dear,
    is_smooth,
    losses,
    richardson,
    stencil,
)

SMOOTH = ("sum_rate", "sum_rate_floor_aware", "sum_mse", "min_max_rate")
# Two directions of H, log budget, log noise.
STEPS = np.array([0.001, 0.001, 0.01, 0.01])

pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def derivatives(attack):
    """Loss, gradient and Hessians of a case and its point: forward, then reverse, over reverse."""

    def of_case(h, directions, log_budget, point):
        def loss(x):
            moved = h + jnp.tensordot(x[:2], directions, 1)
            return jnp.sum(losses(attack, moved, jnp.zeros(USERS), log_budget + x[2], x[3]))

        gradient = jax.grad(loss)
        forward, reverse = jax.jacfwd(gradient), jax.jacrev(gradient)
        return loss(point), gradient(point), forward(point), reverse(point)

    return jax.jit(jax.vmap(of_case), compiler_options=FAST_COMPILE)


@pytest.mark.parametrize("attack", [dear(attack) for attack in SMOOTH])
def test_hessians_in_channel_budget_and_noise(attack):
    rng = np.random.default_rng(30)
    h = np.array([make(rng) for make in KINDS.values() for _ in range(5)])
    scale = np.linalg.norm(h, axis=1)[:, None, None] / 4
    directions = complex_normal(rng, len(h), 2, ANTENNAS, USERS) * scale
    points = stencil(STEPS)
    log_budget = np.log(np.tile([1.0, 230.0, 230.0, 230.0, 1e4], len(KINDS)))

    cases = [np.repeat(x, len(points), axis=0) for x in (h, directions, log_budget)]
    found = derivatives(attack)(*map(jnp.asarray, (*cases, np.tile(points, (len(h), 1)))))
    loss, gradient, forward, reverse = (
        np.asarray(leaf).reshape(len(h), len(points), *leaf.shape[1:]) for leaf in found
    )
    assert np.all(np.isfinite(forward))
    assert np.all(np.isfinite(reverse))

    moved = h[:, None] + np.einsum("pd,cdau->cpau", points[:, :2], directions)
    kept = is_smooth(attack, moved, log_budget[:, None] + points[:, 2], 0 * loss + points[:, 3])
    assert np.all(np.sum(kept.reshape(len(KINDS), -1), axis=1) >= 3)
    numeric, forward, reverse = (
        richardson(gradient, STEPS)[kept],
        forward[kept, 0],
        reverse[kept, 0],
    )
    size = np.max(np.abs(numeric), axis=(1, 2), keepdims=True)
    # There is curvature to be seen.
    assert np.all(size[:, 0, 0] > 1e-3 * np.abs(loss[kept, 0]))
    assert np.max(np.abs(forward - numeric) / size) < 1e-8
    assert np.max(np.abs(reverse - forward) / size) < 1e-11
    assert np.max(np.abs(forward - forward.swapaxes(1, 2)) / size) < 1e-11


@pytest.mark.parametrize("attack", [dear(attack) for attack in SMOOTH])
def test_a_loop_over_draws_keeps_second_derivatives(attack):
    """Reverse mode through `lax.map` and `scan` against forward mode under `vmap`."""
    rng = np.random.default_rng(31)
    draws = jnp.asarray(complex_normal(rng, 2, 2, ANTENNAS, USERS))

    def loss(x, draw):
        moved = draw[0] + x[0] * draw[1]
        return jnp.sum(losses(attack, moved, jnp.zeros(USERS), 3 + x[1], x[2]))

    def mapped(x):
        return jnp.sum(jax.lax.map(lambda draw: loss(x, draw), draws))

    def scanned(x):
        return jax.lax.scan(lambda sum, draw: (sum + loss(x, draw), None), 0.0, draws)[0]

    def batched(x):
        return jnp.sum(jax.vmap(loss, (None, 0))(x, draws))

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def hessians(x):
        expected = jax.jacfwd(jax.jacfwd(batched))(x)
        return expected, jax.hessian(mapped)(x), jax.jacrev(jax.grad(scanned))(x)

    expected, *found = map(np.asarray, hessians(jnp.zeros(3)))
    assert np.max(np.abs(expected)) > 1e-3
    for hessian in found:
        np.testing.assert_allclose(hessian, expected, rtol=1e-9, atol=1e-9)
