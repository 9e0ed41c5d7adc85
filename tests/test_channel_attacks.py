"""Attacks: the Gram forms against explicit antenna-side covariances, and P1's optimality."""

import functools
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KEYLESS, complex_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.common.errors import InputError

ANTENNAS, USERS = 16, 8
RECEIVERS = (channel.Sic(), channel.Sic("strongest_first"), channel.Lmmse())

pytestmark = pytest.mark.usefixtures("x64")


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


def water_filling(h, budget, noise):
    """P1's covariance, N_R x N_R, straight from the definition."""
    basis, singular, _ = np.linalg.svd(h, full_matrices=False)
    attack = basis * textbook_sigma(singular**2, budget) @ basis.conj().T
    return attack + noise * np.eye(len(h))


@functools.cache
def mse_and_gradients(name, antennas=ANTENNAS):
    """MSE and (of a weighted sum) gradients in H, budget and noise, for every order."""

    def weighted(h, budget, noise):
        mse = [
            channel.user_mse(h, channel.ATTACKS[name](), budget, noise, receiver)
            for receiver in RECEIVERS
        ]
        return jnp.sum(jnp.stack(mse) @ jnp.arange(1.0, h.shape[1] + 1)), jnp.stack(mse)

    both = jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True)
    return jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(complex, 1e-9), pytest.param(np.complex64, 2e-3, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", KEYLESS)
def test_common_unit_of_power_does_not_matter(name, dtype, rtol):
    h, watts = near_far_channel(np.random.default_rng(4)).astype(dtype), 1e-12
    real = h.real.dtype.type
    function = mse_and_gradients(name)

    def at(unit):
        arguments = h * real(np.sqrt(unit)), real(200.0 * unit), real(unit)
        (_, mse), (in_h, *others) = function(*map(jnp.asarray, arguments))
        # d/dH grows like 1 / sqrt(unit), the two derivatives in a power like 1 / unit.
        return mse, in_h * real(np.sqrt(unit)), jnp.stack(others) * real(unit)

    for reference, scaled in zip(at(1.0), at(watts)):
        assert scaled.dtype == reference.dtype
        atol = rtol * float(np.max(np.abs(reference)))
        np.testing.assert_allclose(scaled, reference, rtol=rtol, atol=atol * 0.1)


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


@pytest.mark.parametrize("powers", [channel.floor_aware_powers, channel.sum_mse_powers])
def test_powers_that_count_the_floor_meet_the_budget(powers):
    lam, budget = spread_cases(4000)
    noise = 10 ** np.random.default_rng(13).uniform(-8, 8, len(lam))
    sigma, _ = jax.jit(jax.vmap(powers))(*map(jnp.array, (lam, budget, noise)))
    sigma = np.asarray(sigma)
    # A budget far below the noise is a difference of numbers of the noise's size.
    largest = np.max(sigma + lam * (powers is channel.sum_mse_powers), axis=1) + noise
    residual = np.abs(sigma.sum(1) - budget)
    assert np.max(residual / np.maximum(budget, largest)) < 1e-12
    assert np.min(sigma) >= 0


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
        values = jnp.linalg.eigvalsh(gram)
        _, nu = channel.sum_rate_powers(values, budget)
        best = float(2 * jnp.sum(jnp.arcsinh(jnp.sqrt(nu * values) / 2)))
        floorless = channel.ATTACKS["sum_rate"]().from_gram(gram, budget, 1e-13, antennas=6)
        np.testing.assert_allclose(channel.sum_rate(floorless), best, rtol=1e-9)

        optimum = water_filling(h, budget, 1e-9)
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


@functools.cache
def sum_rates_and_mses(antennas=ANTENNAS):
    """Sum rate and sum of LMMSE MSEs (attacks, channels) for every attack, in one trace."""

    @chex.assert_max_traces(n=1)
    def of_channel(h, budget, noise):
        gram = channel.gram(h)
        attacks = [channel.ATTACKS[name]() for name in KEYLESS]
        seen = [attack.from_gram(gram, budget, noise, antennas=antennas) for attack in attacks]
        return (
            jnp.stack([channel.sum_rate(g) for g in seen]),
            jnp.stack([jnp.sum(channel.lmmse_mse(g)) for g in seen]),
        )

    vmapped = jax.vmap(of_channel, in_axes=(0, None, None), out_axes=1)
    return jax.jit(vmapped)


def by_name(found):
    return dict(zip(KEYLESS, np.asarray(found)))


@pytest.mark.slow
def test_every_attack_is_worst_by_its_own_measure_in_one_trace_over_2000_cells():
    """Per cell, and on average over the preset: sum_mse >= white_in_range >= sum_rate."""
    paper = channel.get_preset("paper")
    h = jax.jit(channel.draw_channels, static_argnums=(0, 2))(paper, jax.random.key(7), 2000)
    h = h.astype(complex)
    for budget, noise in ((paper.attack_budget, 1.0), (1e4, 0.01), (1.0, 1.0)):
        rates, mses = map(by_name, sum_rates_and_mses()(h, budget, noise))
        for name in KEYLESS:
            assert np.all(mses["sum_mse"] >= mses[name] * (1 - 1e-12)), name
            assert np.all(rates["sum_rate_floor_aware"] <= rates[name] * (1 + 1e-12)), name
            assert np.all(rates["none"] >= rates[name] * (1 - 1e-12)), name
        if noise == 1.0 and budget > 1:
            average = {name: np.mean(mse) / USERS for name, mse in mses.items()}
            assert average["sum_mse"] > average["white_in_range"] > average["sum_rate"]


def test_strongest_user_has_no_cancellation_under_a_tiny_floor():
    h = jnp.array(near_far_channel(np.random.default_rng(8)))
    gram = channel.gram(h)
    strongest = int(jnp.argmax(channel.received_power(gram)))
    effective = channel.ATTACKS["strongest_user"]().from_gram(gram, 1.0, 1e-14, antennas=ANTENNAS)
    np.testing.assert_allclose(effective[:, strongest], gram[:, strongest], rtol=1e-12)
    np.testing.assert_allclose(effective[strongest], gram[strongest], rtol=1e-12)


def test_strongest_user_without_floor_silences_one_user_only():
    h = near_far_channel(np.random.default_rng(12))
    (_, mse), _ = mse_and_gradients("strongest_user")(
        jnp.array(h), jnp.array(1e6, float), jnp.array(1e-12, float)
    )
    strongest = int(np.argmax(np.linalg.norm(h, axis=0)))
    for found in np.asarray(mse):
        assert np.mean(found) <= 1 / USERS
        assert np.max(np.delete(found, strongest)) < 1e-9


@pytest.mark.parametrize("name", KEYLESS)
def test_an_attacker_without_power_is_no_attacker(name):
    h = jnp.array(near_far_channel(np.random.default_rng(9)))
    powers = jnp.array(0.0, float), jnp.array(2.0, float)  # as elsewhere: no program of its own
    (_, silent), _ = mse_and_gradients(name)(h, *powers)
    (_, ideal), _ = mse_and_gradients("none")(h, *powers)
    np.testing.assert_allclose(silent, ideal, rtol=1e-10)


@pytest.mark.parametrize("name", KEYLESS)
@pytest.mark.parametrize(
    "dtype", [jnp.complex64, pytest.param(jnp.complex128, marks=pytest.mark.slow)]
)
def test_silent_users_are_lost_and_nothing_is_nan(name, dtype):
    h = jnp.zeros((4, 3), dtype)
    mse = channel.user_mse(h, channel.ATTACKS[name](), 100.0)
    assert mse.dtype == jnp.zeros((), dtype).real.dtype
    np.testing.assert_allclose(mse, 1, rtol=1e-6)


@pytest.mark.parametrize("rank", [2, 4])
def test_sum_rate_attack_on_rank_deficient_channels(rank):
    rng = np.random.default_rng(10)
    h = complex_normal(rng, ANTENNAS, rank) @ near_far_channel(rng, rank, USERS)
    effective = channel.ATTACKS["sum_rate"]().from_gram(
        channel.gram(jnp.array(h)), 20.0, 1.0, antennas=4
    )
    basis, singular, _ = np.linalg.svd(h)
    sigma = textbook_sigma(singular[:rank] ** 2, 20.0) + 1
    seen = basis[:, :rank].conj().T @ h
    expected = seen.conj().T / sigma @ seen
    # Null eigenvalues come out as rounding noise, of which sigma takes the square root.
    np.testing.assert_allclose(effective, expected, atol=1e-6 * np.abs(expected).max())


@dataclass(frozen=True)
class FirstAntenna:
    """An attack of one's own: no more than `__call__`."""

    def __call__(self, h_tilde, budget, noise=1.0):
        return jnp.zeros((len(h_tilde),) * 2, h_tilde.dtype).at[0, 0].set(budget)


@pytest.mark.parametrize("receiver", [*RECEIVERS, channel.Unaware(channel.Lmmse())])
def test_an_attack_needs_no_more_than_a_covariance(receiver):
    """A deaf antenna: as without it, but for a receiver that does not know."""
    h = jnp.array(near_far_channel(np.random.default_rng(11), antennas=9))
    deaf = channel.user_mse(h, FirstAntenna(), 1e12, receiver=receiver)
    without = channel.user_mse(h[1:], channel.NoAttack(), 0.0, receiver=channel.Lmmse())
    if receiver == channel.Lmmse():
        np.testing.assert_allclose(deaf, without, rtol=1e-6)
    assert np.all(deaf < 1) != (receiver == channel.Unaware(channel.Lmmse()))
    assert uplink.Scenario(FirstAntenna()) == "first_antenna"


def test_one_user_is_attacked_by_number():
    h = jnp.array(near_far_channel(np.random.default_rng(14), users=3))
    power = channel.received_power(channel.gram(h))
    strongest = channel.Towards(int(jnp.argmax(power)))
    for user in range(3):
        towards = channel.Towards(user)(h, 5.0)
        along = h[:, user] / jnp.linalg.norm(h[:, user])
        np.testing.assert_allclose(towards @ along, 5.0 * along, rtol=1e-10)
        # A choice that is given is taken.
        chosen = channel.StrongestUser()(h, 5.0, power=jnp.eye(3)[user])
        np.testing.assert_array_equal(chosen, towards)
    np.testing.assert_array_equal(strongest(h, 5.0), channel.StrongestUser()(h, 5.0))


def test_bad_attacks_are_named():
    gram, two = jnp.eye(2, dtype=complex), jnp.ones((2, 2), complex)
    with pytest.raises(InputError, match="Did you mean 'sum_rate'"):
        uplink.Scenario("sumrate")
    with pytest.raises(InputError, match="antennas"):
        channel.White().from_gram(gram, 1.0, antennas=0)
    with pytest.raises(InputError, match="user of 0 to 1, got 2"):
        channel.Towards(2)(two, 1.0)
    with pytest.raises(InputError, match=r"budget must be finite and >= 0, got -1\.0"):
        channel.SumRate()(two, -1.0)
    with pytest.raises(InputError, match="unknown SIC order"):
        channel.Sic("random")
    with pytest.raises(InputError, match="not more users than antennas; got 2 users and 1"):
        channel.MinMaxRate().from_gram(gram, 1.0, antennas=1)
