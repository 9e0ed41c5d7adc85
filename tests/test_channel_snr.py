"""SNR definitions: against noise that is measured, and against the paper's printed values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import complex_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.channel.snr import (
    db,
    from_db,
    parameter_snr,
    receive_snr,
    unbiased_sinr,
    worst_user,
)
from rmtllmf_jax.common.errors import InputError

PAPER = channel.get_preset("paper")
C0_DB = -31.0

pytestmark = pytest.mark.usefixtures("x64")


# dB


@settings(deadline=None, max_examples=40)
@given(a=st.floats(-300, 300), b=st.floats(-300, 300))
def test_db_turns_products_into_sums(a, b):
    one, other = from_db(jnp.array(a)), from_db(jnp.array(b))
    np.testing.assert_allclose(db(one), a, atol=1e-10)
    np.testing.assert_allclose(db(one * other), a + b, atol=1e-10)


def test_db_of_known_ratios():
    np.testing.assert_allclose(
        db(jnp.array([2.0, 10.0, 1e-3, 0.0])), [3.0102999566, 10, -30, -np.inf]
    )
    np.testing.assert_allclose(from_db(jnp.array([-31.0, 4.5])), [7.943282347e-4, 2.818382931])


# At the antennas


@pytest.mark.parametrize("budget", [0.0, 40.0])
def test_receive_snr_is_measured_at_the_antennas(budget):
    """Power of one user's signal over that of the noise, averaged over antennas and symbols."""
    rng, antennas, noise, symbols = np.random.default_rng(0), 6, 0.5, 40_000
    h = complex_normal(rng, antennas, 3) * [0.3, 1.0, 4.0]
    jammer = complex_normal(rng, antennas)
    jammer *= np.sqrt(budget) / np.linalg.norm(jammer)
    x = np.exp(2j * np.pi * rng.uniform(size=(3, symbols)))
    z = np.sqrt(noise) * complex_normal(rng, antennas, symbols)
    z += jammer[:, None] * complex_normal(rng, symbols)
    signals = [np.mean(np.abs(h[:, [user]] * x[user]) ** 2) for user in range(3)]
    measured = np.array(signals) / np.mean(np.abs(z) ** 2)
    power = jnp.sum(jnp.abs(jnp.array(h)) ** 2, axis=0)
    # The measured noise power has a relative error of at most 1 / sqrt(symbols).
    np.testing.assert_allclose(receive_snr(power, antennas, budget, noise), measured, rtol=0.025)


def test_receive_snr_averages_to_the_edge_snr_at_one_kilometre():
    edge = channel.ChannelPreset(min_distance_m=1000.0, max_distance_m=1000.0)

    @jax.vmap
    def snr(key):
        power = channel.received_power(channel.gram(channel.draw_channel(edge, key)))
        return receive_snr(power, edge.antennas)

    values = jax.jit(snr)(channel.draw_keys(jax.random.key(0), 1000))
    # 128,000 exponential gains: relative error 1 / sqrt(128000) = .0028, five of them.
    np.testing.assert_allclose(jnp.mean(values), edge.edge_snr, rtol=0.014)


def test_no_antenna_is_refused():
    with pytest.raises(InputError, match="antennas must be at least 1, got 0"):
        receive_snr(jnp.ones(2), 0)


# Behind the equaliser and in the parameters


def test_post_equaliser_sinr_is_that_of_the_mmse_filter():
    rng = np.random.default_rng(3)
    h = complex_normal(rng, 6, 3) * [0.3, 1.0, 4.0]
    mse = channel.lmmse_mse(channel.gram(jnp.array(h)))
    for user in range(3):
        others = np.delete(h, user, axis=1)
        interference = others @ others.conj().T + np.eye(6)
        sinr = np.real(h[:, user].conj() @ np.linalg.solve(interference, h[:, user]))
        np.testing.assert_allclose(unbiased_sinr(mse)[user], sinr, rtol=1e-9)


@pytest.mark.parametrize("c0_db", [C0_DB, 0.0, 12.5])
def test_parameter_snr_is_measured_in_the_parameters(c0_db):
    rng, mse = np.random.default_rng(1), np.array([0.0129, 0.16, 0.9])
    tau = rng.normal(size=(3, 50_000)) * [[1e-3], [0.2], [7.0]]
    power = np.mean(tau**2, axis=1)
    kappa = np.sqrt(power) * 10 ** (-c0_db / 20)
    error = (kappa * np.sqrt(mse))[:, None] * rng.normal(size=tau.shape)
    snr = parameter_snr(jnp.array(mse), c0_db)
    # The measured power has a relative error of sqrt(2 / 50000) = .0063; five of them.
    np.testing.assert_allclose(snr, power / np.mean(error**2, axis=1), rtol=0.032)
    np.testing.assert_allclose(db(snr), -10 * np.log10(mse) + c0_db, rtol=1e-12)


def test_parameter_snr_of_a_perfect_uplink_is_infinite():
    assert parameter_snr(jnp.zeros(1), C0_DB)[0] == np.inf


def test_worst_user_is_per_drop():
    snr = jnp.array([[3.0, 1.0, 2.0], [5.0, 7.0, 6.0]])
    np.testing.assert_array_equal(worst_user(snr), [1.0, 5.0])


# The paper


@pytest.fixture(scope="module")
def mse_of_drops():
    keys = channel.draw_keys(jax.random.key(0), 5000)

    def mse(scenario):
        return np.asarray(
            jax.jit(
                jax.vmap(lambda key: channel.Link(PAPER, uplink.Scenario(scenario).attack).mse(key))
            )(keys)
        )

    return {name: mse(name) for name in ("ideal", "strongest_user", "sum_rate")}


@pytest.mark.parametrize(
    ("scenario", "printed", "design", "reached"),
    [
        ("ideal", -16.2, -16.5, -16.47),
        ("strongest_user", -21.7, -21.5, -21.93),
        ("sum_rate", -27.3, -27.1, -27.15),
    ],
)
def test_the_worst_users_parameter_snr_is_the_papers(
    mse_of_drops, scenario, printed, design, reached
):
    each_drop_db = db(worst_user(parameter_snr(jnp.array(mse_of_drops[scenario]), C0_DB)))
    mean_db = float(jnp.mean(each_drop_db))
    assert abs(mean_db - printed) < 0.5
    assert abs(mean_db - design) < 0.5
    # `reached` is over 20,000 drops; a drop's spread is up to 3 dB: four standard errors.
    assert abs(mean_db - reached) < 4 * 3.0 / np.sqrt(5000)


def test_the_average_is_of_db_and_not_of_mse(mse_of_drops):
    worst = jnp.max(jnp.array(mse_of_drops["strongest_user"]), axis=1)
    assert db(parameter_snr(jnp.mean(worst), C0_DB)) < -21.7 - 1


# Transformations


def everything(power, mse, budget, c0_db):
    snr = receive_snr(power, 4, budget), unbiased_sinr(mse), parameter_snr(mse, c0_db)
    return jnp.stack([worst_user(value) for value in snr])


ARGUMENTS = (jnp.array([3.0, 2.0, 8.0]), jnp.array([0.3, 0.2, 0.7]), 5.0, C0_DB)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_trace_under_jit_and_vmap_in_the_inputs_precision(dtype):
    chex.clear_trace_counter()
    power, mse, budget, c0_db = (jnp.asarray(value, dtype) for value in ARGUMENTS)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def batch(*arguments):
        return jax.vmap(everything, (None, 0, None, None))(*arguments)

    many = jnp.stack([mse, mse / 2])
    for scale in (1.0, 0.5):
        result = batch(power, many * scale, budget, c0_db)
        assert result.dtype == dtype
        expected = [everything(power, row * scale, budget, c0_db) for row in many]
        np.testing.assert_allclose(result, jnp.stack(expected), rtol=1e-6)


@pytest.mark.parametrize("argument", range(4))
def test_gradients_are_finite_differences(argument):
    def total(value):
        chosen = [jnp.asarray(a, "float64") for a in ARGUMENTS]
        chosen[argument] = value
        return jnp.sum(jnp.log(everything(*chosen)))

    value = jnp.asarray(ARGUMENTS[argument], "float64")
    gradient = jnp.ravel(jax.grad(total)(value))
    for index in range(value.size):
        step = 1e-5 * jnp.eye(value.size)[index].reshape(value.shape)
        numeric = (total(value + step) - total(value - step)) / 2e-5
        np.testing.assert_allclose(gradient[index], numeric, rtol=1e-7, atol=1e-9)
