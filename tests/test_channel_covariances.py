"""Attackers as covariance matrices over the antennas, and covariances of one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KEYLESS, complex_normal
from hypothesis import given, settings
from hypothesis import strategies as st
from test_channel_gradients import dear

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError

ANTENNAS, USERS = 8, 4
RECEIVERS = (channel.Sic(), channel.Sic("strongest_first"), channel.Lmmse())
LMMSE = channel.Lmmse()
# Compiling costs most of the time here, running little.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

pytestmark = pytest.mark.usefixtures("x64")


def draw(rng, draws=8):
    return complex_normal(rng, draws, ANTENNAS, USERS) * 10 ** rng.uniform(-1, 1, (draws, 1, USERS))


@functools.cache
def both_ways(name):
    def of_channel(h, budget, noise):
        attack, gram = channel.ATTACKS[name](), channel.gram(h)
        covariance = attack(h, budget, noise)
        matrix_free = attack.from_gram(gram, budget, noise, antennas=ANTENNAS)
        mse = [
            (
                channel.mse_of(receiver(h, covariance, noise)),
                channel.user_mse(h, attack, budget, noise, receiver),
            )
            for receiver in RECEIVERS
        ]
        return covariance, channel.effective_gram(h, covariance, noise), matrix_free, jnp.array(mse)

    vmapped = jax.vmap(of_channel, in_axes=(0, None, None))
    return jax.jit(vmapped, compiler_options=FAST_COMPILE)


@pytest.mark.parametrize("name", KEYLESS)
@pytest.mark.parametrize(("budget", "noise"), [(230.0, 1.0), (0.3, 2.0), (1e4, 0.1)])
def test_covariance_is_the_attack(name, budget, noise):
    h = draw(np.random.default_rng(1))
    covariance, seen, matrix_free, mse = map(np.asarray, both_ways(name)(h, budget, noise))
    np.testing.assert_allclose(covariance, covariance.conj().swapaxes(1, 2), atol=1e-13 * budget)
    assert np.min(np.linalg.eigvalsh(covariance)) > -1e-13 * budget
    spent = np.trace(covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(spent, 0 if name == "none" else budget, rtol=1e-12)
    # Entry by entry on the scale of the two users concerned.
    own = np.sqrt(np.diagonal(matrix_free, axis1=1, axis2=2).real)
    assert np.max(np.abs(seen - matrix_free) / (own[:, :, None] * own[:, None])) < 1e-9
    np.testing.assert_allclose(mse[:, :, 0], mse[:, :, 1], rtol=1e-8)


@functools.cache
def seen_from(name):
    """tr(S C) of an attack, its gradient and Hessian along a direction of H, log budget, log n."""

    def seen(x, h, direction, log_budget, seer):
        moved = h + x[0] * direction
        covariance = channel.ATTACKS[name]()(moved, jnp.exp(log_budget + x[1]), jnp.exp(x[2]))
        return jnp.real(jnp.sum(seer * covariance.T))

    def derivatives(*args):
        gradient = jax.grad(seen)
        return seen(*args), gradient(*args), jax.jacfwd(gradient)(*args)

    return jax.jit(jax.vmap(derivatives), compiler_options=FAST_COMPILE)


@pytest.mark.parametrize("name", [dear(name) for name in KEYLESS if name != "none"])
def test_a_covariance_has_the_derivatives_of_finite_differences(name):
    """Against central differences of value and gradient, from weak to strong attackers."""
    rng = np.random.default_rng(5)
    h = np.repeat(draw(rng, 6), 6, axis=0)
    direction = np.repeat(complex_normal(rng, 6, ANTENNAS, USERS), 6, axis=0) * np.abs(h)
    seer = np.repeat([random_covariance(rng, ANTENNAS) for _ in range(6)], 6, axis=0)
    log_budget = np.repeat(np.log([0.01, 1.0, 230.0, 230.0, 1e4, 1e4]), 6)
    step = 1e-4
    points = step * np.tile(np.concatenate([np.eye(3), -np.eye(3)]), (6, 1))
    here = (h[::6], direction[::6], log_budget[::6], seer[::6])
    find = seen_from(name)
    _, gradient, hessian = map(np.asarray, find(np.zeros((6, 3)), *here))
    value, slope, _ = map(np.asarray, find(points, h, direction, log_budget, seer))
    value, slope = value.reshape(6, 2, 3), slope.reshape(6, 2, 3, 3)
    for found, numeric in (
        (gradient, (value[:, 0] - value[:, 1]) / (2 * step)),
        (hessian, (slope[:, 0] - slope[:, 1]) / (2 * step)),
    ):
        size = np.max(np.abs(numeric), axis=tuple(range(1, numeric.ndim)), keepdims=True)
        # Where an attack that counts the floor is at an edge between the points, nothing is.
        agrees = np.abs(found - numeric) <= 1e-5 * size
        assert np.sum(np.all(agrees.reshape(6, -1), axis=1)) >= 5


@pytest.mark.parametrize("name", KEYLESS)
def test_an_attacker_without_power_has_no_covariance(name):
    h = jnp.array(draw(np.random.default_rng(6), 1)[0])
    np.testing.assert_array_equal(channel.ATTACKS[name]()(h, 0.0), 0)
    assert np.all(np.isfinite(jax.grad(lambda b: seen_power(name, h, b))(0.0)))


def seen_power(name, h, budget):
    return jnp.real(jnp.trace(channel.ATTACKS[name]()(h, budget)))


@pytest.mark.parametrize("budget_db", [60, 100])
@pytest.mark.parametrize("name", ["sum_rate", "strongest_user", "white_in_range"])
def test_float32_keeps_the_floor_under_a_strong_jammer(name, budget_db):
    """Covariance, filters and filters' errors against the Gram route in float64, 40 draws."""
    rng = np.random.default_rng(7)
    h = draw(rng, 40).astype(np.complex64)
    budget = 10.0 ** (budget_db / 10)
    with jax.enable_x64(False):
        found = np.asarray(in_float32(name)(h, np.float32(budget)))
    expected = jax.vmap(
        lambda h: channel.user_mse(h, channel.ATTACKS[name](), budget, receiver=LMMSE)
    )(h.astype(complex))
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 3, axis=1), rtol=2e-4)


@functools.cache
def in_float32(name):
    def of_channel(h, budget):
        attack = channel.ATTACKS[name]()(h, budget)
        equaliser = channel.mmse_equaliser(h, attack, 1.0, None)
        errors = channel.error_covariance_of(equaliser, h, attack, 1.0)
        mse = channel.mse_of(LMMSE(h, attack))
        return jnp.array([mse, equaliser.mse, jnp.real(jnp.diagonal(errors))])

    return jax.jit(jax.vmap(of_channel, (0, None)), compiler_options=FAST_COMPILE)


def random_covariance(rng, rank):
    root = complex_normal(rng, ANTENNAS, rank)
    return root @ root.conj().T


@functools.partial(jax.jit, static_argnums=3, compiler_options=FAST_COMPILE)
def matched_and_mismatched(h, attack, noise, receiver):
    both = receiver, channel.Unaware(receiver)
    return [channel.mse_of(each(h, attack, noise)) for each in both]


@settings(deadline=None, max_examples=40)
@given(
    rank=st.integers(0, ANTENNAS),
    power_db=st.floats(-30, 40),
    receiver=st.sampled_from(RECEIVERS),
    seed=st.integers(0, 2**32 - 1),
)
def test_not_knowing_the_attacker_never_helps(rank, power_db, receiver, seed):
    rng = np.random.default_rng(seed)
    h = jnp.array(draw(rng, 1)[0])
    attack = jnp.array(random_covariance(rng, rank)) * 10 ** (power_db / 10)
    matched, mismatched = map(np.asarray, matched_and_mismatched(h, attack, 1.0, receiver))
    assert np.all(mismatched >= matched * (1 - 1e-9))
    quiet, same = matched_and_mismatched(h, 0 * attack, 1.0, receiver)
    np.testing.assert_allclose(quiet, same, rtol=1e-10)


def test_an_unaware_receiver_is_the_textbook_filter():
    rng = np.random.default_rng(2)
    h, attack = draw(rng, 1)[0], random_covariance(rng, 2)
    filter_ = h.conj().T @ np.linalg.inv(h @ h.conj().T + 0.5 * np.eye(ANTENNAS))
    left = filter_ @ h - np.eye(USERS)
    noise = filter_ @ (attack + 0.5 * np.eye(ANTENNAS)) @ filter_.conj().T
    expected = np.diagonal(left @ left.conj().T + noise).real
    found = channel.mse_of(channel.Unaware(LMMSE)(jnp.array(h), jnp.array(attack), 0.5))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_an_own_covariance_can_be_differentiated():
    rng = np.random.default_rng(3)
    h, attack = jnp.array(draw(rng, 1)[0]), jnp.array(random_covariance(rng, 3))

    @jax.jit
    def of_power(power):
        return jax.value_and_grad(
            lambda power: jnp.sum(channel.mse_of(channel.SIC(h, power * attack)))
        )(power)

    numeric = (of_power(1.001)[0] - of_power(0.999)[0]) / 0.002
    np.testing.assert_allclose(of_power(1.0)[1], numeric, rtol=1e-5)


def test_covariances_that_cannot_be_are_refused_with_what_was_seen():
    h = jnp.array(draw(np.random.default_rng(4), 1)[0])
    skew = jnp.eye(ANTENNAS, dtype=complex).at[0, 1].set(0.5)
    negative = jnp.diag(jnp.arange(ANTENNAS) - 2.0).astype(complex)
    functions = (
        lambda h, attack, noise=1.0: channel.effective_gram(h, attack, noise),
        lambda h, attack, noise=1.0: channel.mmse_equaliser(h, attack, noise, None),
        channel.Sic(),
        channel.Unaware(),
    )
    for function in functions:
        with pytest.raises(InputError, match=r"Hermitian: \[0, 1\] is \(0.5\+0j\)"):
            function(h, skew)
        with pytest.raises(InputError, match=r"positive semidefinite, got the eigenvalue -2"):
            function(h, negative)
    with pytest.raises(InputError, match="finite"):
        channel.effective_gram(h, skew.at[0, 0].set(jnp.nan), 1.0)
    # The tests' own shape checks may come before the function's.
    for function in functions:
        with pytest.raises((InputError, TypeError), match=r"3 x 3|\(3, 3\)|3,3"):
            function(h, jnp.eye(3, dtype=complex))
    for function in functions:
        with pytest.raises(InputError, match=r"noise must be finite and > 0, got 0.0"):
            function(h, jnp.eye(ANTENNAS, dtype=complex), 0.0)
