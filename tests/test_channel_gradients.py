"""Derivatives of the MSE in channel, budget and noise, against Richardson finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax import channel

ANTENNAS, USERS = 16, 8
WEIGHTS = np.linspace(1, 2, USERS)


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with jax.enable_x64(True):
        yield


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def scaled_unitary(rng):
    """Orthogonal users of equal power: one eigenvalue, eight times."""
    return 3 * np.linalg.qr(complex_normal(rng, ANTENNAS, USERS))[0]


def near_far(rng):
    """Users at 35 dB from the nearest to the farthest."""
    return complex_normal(rng, ANTENNAS, USERS) * 10 ** (np.linspace(0, 35, USERS) / 20)


def rayleigh(rng):
    return 2 * complex_normal(rng, ANTENNAS, USERS)


def clusters(rng):
    """Two eigenvalues, four times each: divided differences within and across."""
    gains = np.repeat([1.0, 5.0], USERS // 2)
    rotation = np.linalg.qr(complex_normal(rng, USERS, USERS))[0]
    return np.linalg.qr(complex_normal(rng, ANTENNAS, USERS))[0] * gains @ rotation


def losses(attack, h, log_budget, log_noise):
    """Weighted MSE with SIC and with LMMSE; the decoding order is fixed, for a swap is a jump."""
    act = channel.get_attack(attack, antennas=ANTENNAS)
    effective = act(channel.gram(h), jnp.exp(log_budget), jnp.exp(log_noise))
    mse = [channel.sic_mse(effective, jnp.arange(USERS)), channel.lmmse_mse(effective)]
    return jnp.stack(mse) @ jnp.array(WEIGHTS)


def richardson(along, step):
    """Sixth-order central difference at zero of a function of one number."""
    steps = step / 2 ** jnp.arange(3.0)
    plus, minus = jax.vmap(along)(jnp.concatenate([steps, -steps])).reshape(2, 3, -1)
    d = (plus - minus) / (2 * steps[:, None])
    e = (4 * d[1:] - d[:-1]) / 3
    return (16 * e[1] - e[0]) / 15


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, 0, None))
def relative_errors(attack, h, direction, budget):
    """Errors (3, 2) of the reverse mode in H, log budget and log noise, for SIC and for LMMSE."""
    point = (h, jnp.log(budget), jnp.zeros(()))
    gradients = jax.jacrev(losses, argnums=(1, 2, 3))(attack, *point)
    # jax's convention for a real function: the differential is Re sum(grad * dH).
    in_h = jnp.real(jnp.sum(gradients[0] * direction, axis=(1, 2)))
    directions = ((direction, 0, 0), (0, 1, 0), (0, 0, 1))
    numeric = [
        richardson(
            lambda t, way=way: losses(attack, *(x + t * d for x, d in zip(point, way))), step
        )
        for way, step in zip(directions, (0.01, 0.08, 0.08))
    ]
    exact, numeric = jnp.stack([in_h, *gradients[1:]]), jnp.stack(numeric)
    return jnp.abs(exact - numeric) / (jnp.abs(numeric) + 1e-3 * losses(attack, *point))


def errors_over_draws(attack, make, budget, draws=12):
    rng = np.random.default_rng(17)
    h = np.stack([make(rng) for _ in range(draws)])
    # A direction on each user's own scale, so that the far users count.
    direction = complex_normal(rng, *h.shape) * np.linalg.norm(h, axis=1, keepdims=True) / 4
    return np.asarray(relative_errors(attack, jnp.array(h), jnp.array(direction), budget))


@pytest.mark.parametrize("budget", [1.0, 230.0, 1e5])
@pytest.mark.parametrize("make", [rayleigh, scaled_unitary, clusters, near_far])
def test_sum_rate_attack(make, budget):
    errors = errors_over_draws("sum_rate", make, budget)
    assert np.max(errors) < 1e-7
    assert np.median(errors) < 1e-9


def test_strongest_user_attack():
    assert np.max(errors_over_draws("strongest_user", near_far, 230.0)) < 1e-8


def test_forward_and_reverse_mode_agree():
    rng = np.random.default_rng(18)
    h, direction = jnp.array(near_far(rng)), jnp.array(near_far(rng))

    @jax.jit
    def both(h, direction):
        def of_h(h):
            return jnp.sum(losses("sum_rate", h, jnp.log(100.0), 0.0))

        forward = jax.jvp(of_h, (h,), (direction,))[1]
        return forward, jnp.real(jnp.sum(jax.grad(of_h)(h) * direction))

    np.testing.assert_allclose(*both(h, direction), rtol=1e-10)


def test_budget_moves_mse_at_zero_budget():
    h = jnp.array(rayleigh(np.random.default_rng(19)))

    @jax.jit
    def of_budget(budget):
        return jnp.sum(channel.user_mse_from_channel(h, "sum_rate", budget))

    small = 1e-4
    slope = jax.grad(of_budget)(0.0)
    np.testing.assert_allclose(slope, (of_budget(small) - of_budget(0.0)) / small, rtol=1e-3)


def test_float32_gradients_are_finite_over_2000_draws():
    """Of the sum over the attacks that are more than a division: one NaN would show in it."""
    names = ("sum_rate", "strongest_user")

    def total(h, budget, noise):
        mse = [channel.user_mse_from_channel(h, name, budget, noise) for name in names]
        return jnp.sum(jnp.stack(mse))

    both = jax.jit(jax.vmap(jax.value_and_grad(total, argnums=(0, 1, 2)), (0, None, None)))
    with jax.enable_x64(False):
        paper = channel.get_preset("paper")
        h = jax.jit(channel.draw_channels, static_argnums=(0, 2))(paper, jax.random.key(20), 2000)
        value, gradients = both(h, 230.0, 1.0)
        assert value.dtype == jnp.float32
        value, gradients, h = jax.tree.map(np.asarray, (value, gradients, h))
    for leaf in (value, *gradients):
        assert np.all(np.isfinite(leaf))
    exact, (exact_h, *_) = both(jnp.array(h, complex), 230.0, 1.0)
    np.testing.assert_allclose(value, exact, rtol=1e-3)
    error = np.linalg.norm(gradients[0] - exact_h, axis=(1, 2)) / np.linalg.norm(
        exact_h, axis=(1, 2)
    )
    assert np.median(error) < 1e-5
