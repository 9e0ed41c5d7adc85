"""Jammers of few antennas, and attackers who guess the channel, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import complex_normal

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described, parse

FAST_COMPILE = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(5)
KINDS = ("barrage", "worst")

pytestmark = pytest.mark.usefixtures("x64")


def near_far(rng, antennas, users):
    return complex_normal(rng, antennas, users) * 10 ** rng.uniform(-0.7, 0.7, users)


def steering(angles, antennas):
    sines = np.sin(np.deg2rad(np.array(angles)))
    return np.exp(1j * np.pi * np.arange(antennas)[:, None] * sines)


@functools.cache
def compiled(attack):
    """Covariance and effective Gram matrix."""

    def both(h, budget, noise, key):
        covariance = attack(h, budget, noise, key=key)
        return covariance, attack.from_channel(h, budget, noise, key=key)

    return jax.jit(both, compiler_options=FAST_COMPILE)


def seen_by_users(h, attack, noise):
    return h.conj().T @ np.linalg.solve(attack + noise * np.eye(len(h)), h)


def sum_rate(h, attack, noise):
    both = np.linalg.slogdet(attack + noise * np.eye(len(h)) + h @ h.conj().T)[1]
    return both - np.linalg.slogdet(attack + noise * np.eye(len(h)))[1]


@pytest.mark.parametrize("antennas", [3, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jammer_has_the_rank_of_its_antennas_and_the_budget(kind, antennas):
    """Also one with more antennas than the base station, and more than there are users."""
    h = near_far(np.random.default_rng(antennas), 6, 4)
    attack = channel.Jammer(antennas, covariance=kind)
    for budget, noise in ((50.0, 1.0), (0.1, 2.0), (1e6, 0.5)):
        covariance, effective = map(np.asarray, compiled(attack)(h, budget, noise, KEY))
        np.testing.assert_allclose(np.trace(covariance), budget, rtol=1e-12)
        np.testing.assert_allclose(covariance, covariance.conj().T, atol=1e-14 * budget)
        values = np.linalg.eigvalsh(covariance)[::-1]
        assert values[-1] > -1e-12 * budget
        assert np.all(values[antennas:] < 1e-12 * budget)
        expected = seen_by_users(h, covariance, noise)
        np.testing.assert_allclose(effective, expected, rtol=1e-8, atol=1e-8)


def test_barrage_from_directions_is_the_textbook_formula():
    """A = P J J^H / tr J J^H, and G by R, which may be of any scale, and a small inverse."""
    h, angles = near_far(np.random.default_rng(1), 8, 3), (20.0, -35.0)
    j = steering(angles, 8)
    covariance, effective = compiled(channel.Jammer(angles=angles))(h, 30.0, 0.5, None)
    np.testing.assert_allclose(covariance, 30.0 / 16 * j @ j.conj().T, atol=1e-12)
    s, r_inverse = h.conj().T @ j, np.eye(2) * 16 / 30.0
    inner = np.linalg.solve(0.5 * r_inverse + j.conj().T @ j, s.conj().T)
    np.testing.assert_allclose(effective, (h.conj().T @ h - s @ inner) / 0.5, atol=1e-10)


def test_the_worst_covariance_meets_the_conditions_of_the_optimum():
    """The rate is convex in B: D <= nu I and D B = nu B for its slope -D prove the optimum."""
    rng = np.random.default_rng(2)
    for budget in (0.5, 3.0, 20.0, 300.0):
        h = near_far(rng, 6, 4)
        covariance, _ = compiled(channel.Jammer(3, covariance="worst"))(h, budget, 1.0, KEY)
        covariance = np.asarray(covariance)
        basis = np.linalg.svd(compiled(channel.Jammer(3))(h, 1.0, 1.0, KEY)[0])[0][:, :3]
        noise = covariance + np.eye(6)
        slope = np.linalg.inv(noise) - np.linalg.inv(noise + h @ h.conj().T)
        slope = basis.conj().T @ slope @ basis
        own = basis.conj().T @ covariance @ basis
        np.testing.assert_allclose(np.trace(own), budget, rtol=1e-10)
        nu = np.linalg.eigvalsh(slope)[-1]
        np.testing.assert_allclose(slope @ own, nu * own, atol=1e-8 * nu * budget)


def test_no_other_covariance_of_the_jammer_gives_a_lower_sum_rate():
    rng = np.random.default_rng(3)
    h = near_far(rng, 6, 4)
    worst, _ = map(np.asarray, compiled(channel.Jammer(3, covariance="worst"))(h, 30.0, 1.0, KEY))
    barrage, _ = map(np.asarray, compiled(channel.Jammer(3))(h, 30.0, 1.0, KEY))
    best, basis = sum_rate(h, worst, 1.0), np.linalg.svd(barrage)[0][:, :3]
    rivals = []
    for _ in range(300):
        root = basis @ complex_normal(rng, 3, 3)
        rival = root @ root.conj().T
        step = 10 ** rng.uniform(-3, 0)
        mixed = (1 - step) * worst + step * 30.0 * rival / np.trace(rival).real
        rivals.append(sum_rate(h, mixed, 1.0))
    assert best - 1e-9 < min(rivals) < best * 1.001
    assert best < sum_rate(h, barrage, 1.0)


def test_a_jammer_as_large_as_the_base_station_is_the_floor_aware_attack():
    h = near_far(np.random.default_rng(4), 6, 4)
    covariance, effective = compiled(channel.Jammer(9, covariance="worst"))(h, 9.0, 1.0, KEY)
    expected = channel.SumRateFloorAware()(jnp.array(h), 9.0)
    np.testing.assert_allclose(covariance, expected, atol=1e-9)
    expected = channel.attacked_gram(channel.SumRateFloorAware(), jnp.array(h), 9.0)
    np.testing.assert_allclose(effective, expected, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_keeps_the_floor_under_a_strong_jammer(kind):
    """To 90 dB, and with directions that are a third of a degree apart."""
    h = near_far(np.random.default_rng(6), 16, 8)
    attack = channel.Jammer(angles=(20.0, 20.3, -35.0), covariance=kind)
    for budget in (1.0, 1e3, 1e6, 1e9):
        with jax.enable_x64(False):
            single = compiled(attack)(h.astype(np.complex64), np.float32(budget), 1.0, None)[1]
        assert single.dtype == np.complex64
        double = np.asarray(compiled(attack)(h, budget, 1.0, None)[1])
        own = np.sqrt(np.diagonal(double).real)
        assert np.max(np.abs(single - double) / (own[:, None] * own)) < 2e-5
        mse = [np.diagonal(np.linalg.inv(np.eye(8) + g)).real for g in (single, double)]
        np.testing.assert_allclose(*mse, rtol=1e-3)


@functools.cache
def derivatives(attack):
    """A number made of G and C, with its gradient in a step of H, log budget, log n."""

    def seen(x, h, direction, key):
        moved = h + x[0] * direction
        powers = 20 * jnp.exp(x[1]), jnp.exp(x[2])
        covariance = attack(moved, *powers, key=key)
        effective = attack.from_channel(moved, *powers, key=key) if _fast(attack) else covariance
        return jnp.real(jnp.sum(covariance[:3, :3] * h[:3, :3])) + channel.sum_rate(effective)

    return jax.jit(jax.value_and_grad(seen), compiler_options=FAST_COMPILE)


def _fast(attack):
    return hasattr(attack, "from_channel")


@pytest.mark.parametrize(
    "attack",
    [channel.Jammer(3, covariance="worst"), channel.Guessed(csi=0.6)],
    ids=described,
)
def test_derivatives_are_those_of_finite_differences(attack):
    rng = np.random.default_rng(7)
    h, direction = near_far(rng, 6, 4), complex_normal(rng, 6, 4)
    find, step = derivatives(attack), 1e-4
    _, gradient = find(np.zeros(3), h, direction, KEY)
    ends = [[find(sign * step * x, h, direction, KEY)[0] for x in np.eye(3)] for sign in (1, -1)]
    numeric = (np.array(ends[0]) - np.array(ends[1])) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)


def test_jammers_map_over_channels_and_keys():
    rng = np.random.default_rng(8)
    h, keys = np.array([near_far(rng, 6, 4) for _ in range(3)]), jax.random.split(KEY, 3)
    attack = channel.Jammer(3, covariance="worst")
    together = jax.jit(jax.vmap(lambda h, key: attack(h, 7.0, key=key)))(h, keys)
    for each, one, key in zip(together, h, keys):
        np.testing.assert_allclose(each, compiled(attack)(one, 7.0, 1.0, key)[0], atol=1e-12)
    assert np.max(np.abs(together[0] - together[1])) > 0.1


def test_one_who_knows_all_guesses_nothing():
    h = jnp.array(near_far(np.random.default_rng(9), 6, 4))
    for of in (channel.SumRate(), channel.StrongestUser(), channel.Jammer(2, covariance="worst")):
        made = {"key": KEY} if isinstance(of, channel.Jammer) else {}
        guessed = channel.Guessed(of, csi=1.0)(h, 9.0, key=KEY)
        np.testing.assert_array_equal(guessed, of(h, 9.0, **made))
    np.testing.assert_array_equal(channel.Guessed(csi=1.0)(h, 9.0), channel.SumRate()(h, 9.0))


@pytest.mark.parametrize("csi", [0.0, 0.6])
def test_a_guess_has_the_users_powers_and_the_correlation(csi):
    h = near_far(np.random.default_rng(10), 16, 3)
    guess, keys = channel.Guessed(csi=csi).believed, jax.random.split(KEY, 4000)
    believed = np.asarray(jax.vmap(lambda key: guess(jnp.array(h), key))(keys))
    power = np.linalg.norm(h, axis=0) ** 2
    assert np.all(np.abs((np.abs(believed) ** 2).sum(1).mean(0) / power - 1) < 0.02)
    np.testing.assert_allclose(believed.mean(0), csi * h, atol=0.07 * np.sqrt(power.max() / 16))
    fresh = (believed - csi * h) / np.sqrt((1 - csi**2) * power / 16)
    assert abs(np.mean(fresh**2)) < 0.01  # circular
    across = np.einsum("kaq,kbr->aqbr", fresh, fresh.conj()).reshape(48, 48) / 4000
    np.testing.assert_allclose(across, np.eye(48), atol=0.08)


def test_symbols_behind_a_guessed_attack_have_the_mse():
    """Filters that know the covariance, and 200,000 QPSK symbols over the true channel."""
    rng = np.random.default_rng(11)
    h = near_far(rng, 6, 3)
    attack = channel.Guessed(csi=0.7)
    covariance = attack(jnp.array(h), 30.0, key=KEY)
    mse = channel.mse_of(channel.Lmmse()(jnp.array(h), covariance))
    by_hand = channel.SumRate()(attack.believed(jnp.array(h), KEY), 30.0)
    np.testing.assert_array_equal(covariance, by_hand)
    total = np.asarray(covariance) + np.eye(6)
    filters = h.conj().T @ np.linalg.inv(h @ h.conj().T + total)
    sent = rng.choice([1, 1j, -1, -1j], (3, 200_000))
    heard = h @ sent + np.linalg.cholesky(total) @ complex_normal(rng, 6, 200_000)
    error = np.mean(np.abs(filters @ heard - sent) ** 2, axis=1)
    np.testing.assert_allclose(error, mse, rtol=0.02)


def test_jammers_are_read_as_they_are_written():
    for attack in (
        channel.Jammer(),
        channel.Jammer(angles=[20.0, -35.5, 1.0]),
        channel.Guessed(channel.Jammer(3, covariance="worst"), 0.25),
        channel.Guessed(channel.Towards(1)),
    ):
        assert parse(described(attack), channel.ATTACKS, "attack") == attack
        assert hash(attack) == hash(parse(described(attack), channel.ATTACKS, "attack"))
    assert parse("jammer(angles=(9,))", channel.ATTACKS, "attack").antennas == 1


def test_bad_jammers_are_named():
    h = jnp.ones((4, 2), complex)
    for message, make in {
        "jammer draws the channel of its antennas: give it a key, or angles": (
            lambda: channel.Jammer()(h, 1.0)
        ),
        "antennas must be at least 1, got 0": lambda: channel.Jammer(0),
        "angles must be one an antenna, 3, got 2": lambda: channel.Jammer(3, (1.0, 2.0)),
        "number of angles must be at least 1": lambda: channel.Jammer(angles=()),
        "angles must be finite, got nan": lambda: channel.Jammer(angles=(np.nan,)),
        "covariance must be barrage or worst, got wrost": (
            lambda: parse("jammer(covariance=wrost)", channel.ATTACKS, "attack")
        ),
        r"budget must be finite and >= 0, got -1\.0": lambda: channel.Jammer()(h, -1.0, key=KEY),
        r"csi must be finite and >= 0 and <= 1, got 1\.5": lambda: channel.Guessed(csi=1.5),
        r"csi must be finite and >= 0 and <= 1, got -0\.1": lambda: channel.Guessed(csi=-0.1),
        "guessed draws what it guesses: give it a key": lambda: channel.Guessed()(h, 1.0),
        "more users than antennas": (
            lambda: channel.Guessed(channel.MinMaxRate())(h[:1], 1.0, key=KEY)
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(InputError, match="unknown guessed of 'nobody'"):
        parse("guessed(of=nobody)", channel.ATTACKS, "attack")
