"""Attacks: the Gram forms against explicit antenna-side covariances, and P1's optimality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError

ANTENNAS, USERS = 16, 8


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with jax.enable_x64(True):
        yield


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def near_far_channel(rng, antennas=ANTENNAS, users=USERS, spread=1.0):
    return complex_normal(rng, antennas, users) * 10 ** rng.uniform(-spread, spread, users)


def textbook_sigma(lam, budget):
    """The quadratic's positive root as printed, and bisection on log nu for the budget."""

    def sigma(log_nu):
        return (np.sqrt(lam**2 + 4 * lam * np.exp(-log_nu)) - lam) / 2

    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma(middle).sum() > budget else (low, middle)
    return sigma(low)


def explicit_covariance(name, h, budget, noise):
    """C on the antennas, N_R x N_R, straight from the definitions."""
    antennas, users = h.shape
    basis, singular, _ = np.linalg.svd(h, full_matrices=False)
    if name == "none":
        attack = np.zeros((antennas, antennas))
    elif name == "white":
        attack = budget / antennas * np.eye(antennas)
    elif name == "white_in_range":
        attack = budget / users * basis @ basis.conj().T
    elif name == "sum_rate":
        attack = basis @ np.diag(textbook_sigma(singular**2, budget)) @ basis.conj().T
    else:
        strongest = h[:, np.argmax(np.linalg.norm(h, axis=0))]
        direction = strongest / np.linalg.norm(strongest)
        attack = budget * np.outer(direction, direction.conj())
    return attack + noise * np.eye(antennas)


@pytest.mark.parametrize("name", channel.ATTACKS)
@pytest.mark.parametrize(("budget", "noise"), [(230.0, 1.0), (0.3, 2.0), (1e4, 0.1)])
def test_gram_form_is_the_explicit_covariance(name, budget, noise):
    rng = np.random.default_rng(3)
    attack = jax.jit(channel.get_attack(name, antennas=ANTENNAS))
    for _ in range(5):
        h = near_far_channel(rng)
        covariance = explicit_covariance(name, h, budget, noise)
        expected = h.conj().T @ np.linalg.solve(covariance, h)
        effective = attack(channel.gram(jnp.array(h)), budget, noise)
        # Entry by entry on the scale of the two users concerned.
        scale = np.sqrt(np.outer(np.diag(expected).real, np.diag(expected).real))
        assert np.max(np.abs(effective - expected) / scale) < 1e-9


@pytest.mark.parametrize("name", channel.ATTACKS)
def test_common_unit_of_power_does_not_matter(name):
    h = jnp.array(near_far_channel(np.random.default_rng(4)))
    watts = 1e-12
    for order in (*channel.ORDERS, None):
        reference = channel.user_mse_from_channel(h, name, 200.0, 1.0, order)
        scaled = channel.user_mse_from_channel(
            h * np.sqrt(watts), name, 200.0 * watts, watts, order
        )
        np.testing.assert_allclose(scaled, reference, rtol=1e-10)


def spread_cases(count, low=-8, high=8):
    rng = np.random.default_rng(5)
    lam = 10 ** rng.uniform(low, high, (count, USERS))
    # The corners too: all eigenvalues equal, and one alone in front.
    lam[: count // 4] = lam[: count // 4, :1]
    lam[count // 4 : count // 2, 1:] = 10.0**low
    return lam, 10 ** rng.uniform(low, high, count)


def test_sum_rate_powers_meet_budget_and_kkt_over_160_db():
    lam, budget = spread_cases(4000)
    sigma, nu = jax.jit(jax.vmap(channel.sum_rate_powers))(jnp.array(lam), jnp.array(budget))
    sigma, nu = np.asarray(sigma), np.asarray(nu)[:, None]
    assert np.max(np.abs(sigma.sum(1) / budget - 1)) < 1e-12
    assert np.min(sigma) > 0
    # sigma^2 + lambda sigma = lambda / nu, relative to its right side.
    assert np.max(np.abs(sigma * (sigma + lam) * nu / lam - 1)) < 1e-12
    rate = np.log1p(lam / sigma).sum(1)
    np.testing.assert_allclose(2 * np.arcsinh(np.sqrt(nu * lam) / 2).sum(1), rate, rtol=1e-12)


def test_sum_rate_powers_in_float32():
    lam, budget = spread_cases(4000)
    sigma, _ = jax.jit(jax.vmap(channel.sum_rate_powers))(
        jnp.array(lam, jnp.float32), jnp.array(budget, jnp.float32)
    )
    assert sigma.dtype == jnp.float32
    assert np.max(np.abs(np.asarray(sigma, float).sum(1) / budget - 1)) < 2e-6


powers_jit = jax.jit(channel.sum_rate_powers)


@settings(deadline=None, max_examples=40)
@given(
    log_lam=st.lists(st.floats(-8, 8), min_size=5, max_size=5),
    log_budget=st.floats(-8, 8),
)
def test_sum_rate_powers_grow_with_the_eigenvalue(log_lam, log_budget):
    lam, budget = 10 ** np.sort(log_lam), 10**log_budget
    sigma, _ = powers_jit(jnp.array(lam), budget)
    assert abs(float(jnp.sum(sigma)) / budget - 1) < 1e-12
    assert np.all(np.diff(sigma) >= -1e-12 * budget)


def test_no_other_covariance_of_the_trace_gives_a_lower_sum_rate():
    rng = np.random.default_rng(6)
    budget = 50.0
    for _ in range(5):
        h = near_far_channel(rng, antennas=6, users=4)
        gram = channel.gram(jnp.array(h))
        _, nu = channel.sum_rate_powers(jnp.linalg.eigvalsh(gram), budget)
        best = float(2 * jnp.sum(jnp.arcsinh(jnp.sqrt(nu * jnp.linalg.eigvalsh(gram)) / 2)))
        floorless = channel.get_attack("sum_rate", antennas=6)(gram, budget, 0.0)
        np.testing.assert_allclose(channel.sum_rate(floorless), best, rtol=1e-9)

        optimum = explicit_covariance("sum_rate", h, budget, 1e-9)
        root = complex_normal(rng, 500, 6, 6)
        rivals = root @ root.conj().swapaxes(1, 2)
        rivals *= budget / np.trace(rivals, axis1=1, axis2=2).real[:, None, None]
        step = 10 ** rng.uniform(-4, 0, 500)[:, None, None]
        rivals = (1 - step) * optimum + step * rivals
        seen = h.conj().T @ np.linalg.solve(rivals, np.broadcast_to(h, (500, *h.shape)))
        rates = np.linalg.slogdet(np.eye(4) + seen)[1]
        # `optimum` carries a floor of 1e-9 to be invertible, which lowers its rate by as little.
        assert np.min(rates) > best - 1e-7
        # The rivals are near enough to notice an optimum that is off by 1 %.
        assert np.min(rates) < best * 1.001


def test_sum_rate_attack_hurts_the_sum_rate_most():
    gram = channel.gram(jnp.array(near_far_channel(np.random.default_rng(7))))
    rates = {
        name: float(channel.sum_rate(channel.get_attack(name, antennas=ANTENNAS)(gram, 1e4, 1e-3)))
        for name in channel.ATTACKS
    }
    assert min(rates, key=rates.get) == "sum_rate"
    assert max(rates, key=rates.get) == "none"


def test_strongest_user_has_no_cancellation_under_a_tiny_floor():
    h = jnp.array(near_far_channel(np.random.default_rng(8)))
    gram = channel.gram(h)
    strongest = int(jnp.argmax(channel.received_power(gram)))
    effective = channel.get_attack("strongest_user", antennas=ANTENNAS)(gram, 1.0, 1e-14)
    np.testing.assert_allclose(effective[:, strongest], gram[:, strongest], rtol=1e-12)
    np.testing.assert_allclose(effective[strongest], gram[strongest], rtol=1e-12)


@pytest.mark.parametrize("name", channel.ATTACKS)
def test_an_attacker_without_power_is_no_attacker(name):
    h = jnp.array(near_far_channel(np.random.default_rng(9)))
    silent = channel.user_mse_from_channel(h, name, 0.0, 2.0)
    np.testing.assert_allclose(
        silent, channel.user_mse_from_channel(h, "none", 0.0, 2.0), rtol=1e-10
    )


@pytest.mark.parametrize("name", channel.ATTACKS)
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.complex128])
def test_silent_users_are_lost_and_nothing_is_nan(name, dtype):
    h = jnp.zeros((4, 3), dtype)
    mse = channel.user_mse_from_channel(h, name, 100.0)
    assert mse.dtype == jnp.zeros((), dtype).real.dtype
    np.testing.assert_allclose(mse, 1, rtol=1e-6)


def test_sum_rate_attack_on_more_users_than_antennas():
    h = near_far_channel(np.random.default_rng(10), antennas=4, users=6)
    effective = channel.get_attack("sum_rate", antennas=4)(channel.gram(jnp.array(h)), 20.0, 1.0)
    covariance = explicit_covariance("sum_rate", h, 20.0, 1.0)
    expected = h.conj().T @ np.linalg.solve(covariance, h)
    # Null eigenvalues come out of eigh as rounding noise, of which sigma takes the square root.
    np.testing.assert_allclose(effective, expected, atol=1e-6 * np.abs(expected).max())


def test_a_function_can_be_the_attack():
    h = jnp.array(near_far_channel(np.random.default_rng(11)))
    half = channel.user_mse_from_channel(h, lambda k, budget, noise: k / (2 * noise), 1.0)
    np.testing.assert_allclose(half, channel.user_mse_from_channel(h, "none", 1.0, 2.0))


def test_bad_attacks_are_named():
    with pytest.raises(InputError, match="Did you mean 'sum_rate'"):
        channel.get_attack("sumrate", antennas=4)
    with pytest.raises(InputError, match="antennas"):
        channel.get_attack("white", antennas=0)
    with pytest.raises(InputError, match="unknown attack"):
        channel.user_mse_from_channel(jnp.ones((2, 2), complex), "jam", 1.0)
    with pytest.raises(InputError, match="unknown SIC order"):
        channel.user_mse_from_channel(jnp.ones((2, 2), complex), "none", 1.0, order="random")
