"""Link budgets against textbook numbers, and power control against its definition."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.channel import power_control
from rmtllmf_jax.channel.path_loss import (
    FreeSpace,
    LinkBudget,
    PowerLaw,
    UrbanMacro,
    UrbanMicro,
)
from rmtllmf_jax.channel.power_control import POWER_CONTROLS
from rmtllmf_jax.channel.presets import PRESETS
from rmtllmf_jax.common.errors import InputError

pytestmark = pytest.mark.usefixtures("x64")


# Link budget


def test_noise_of_one_hertz_at_290_kelvin():
    """-173.98 dBm/Hz, and 50 dB more in 100 kHz."""
    one = LinkBudget(0.0, 1.0, noise_figure_db=0.0)
    np.testing.assert_allclose(one.noise_power_dbm, -173.975, atol=1e-3)
    wide = LinkBudget(0.0, 1e5, noise_figure_db=7.0)
    np.testing.assert_allclose(wide.noise_power_dbm, -173.975 + 50 + 7, atol=1e-3)
    cold = LinkBudget(0.0, 1.0, noise_figure_db=0.0, temperature_k=29.0)
    np.testing.assert_allclose(cold.noise_power_dbm, -183.975, atol=1e-3)


def test_the_papers_edge_snr():
    """0.1 mW, 3.5 GHz, line of sight at 1 km, noise figure 5 dB, 128 kHz: about 4.5 dB."""
    budget = LinkBudget(transmit_power_dbm=-10.0, bandwidth_hz=128e3, noise_figure_db=5.0)
    by_hand = -10 - 103.329 - (-173.975 + 51.072 + 5)
    np.testing.assert_allclose(budget.edge_snr_db(FreeSpace(3.5e9)), by_hand, atol=2e-3)
    np.testing.assert_allclose(budget.edge_snr_db(FreeSpace(3.5e9)), 4.5, atol=0.1)
    np.testing.assert_allclose(budget.edge_snr_db(FreeSpace(3.5e9), 100.0), by_hand + 20, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "power_dbm", "bandwidth_hz", "path_loss"),
    [
        ("free_space", -10.0, 128e3, FreeSpace(3.5e9)),
        ("umi_nlos", 23.0, 360e3, UrbanMicro(3.5e9, line_of_sight=False)),
        ("uma_los", 23.0, 20e6, UrbanMacro(3.5e9, line_of_sight=True)),
    ],
)
def test_presets_have_the_edge_snr_of_their_link_budget(name, power_dbm, bandwidth_hz, path_loss):
    preset = PRESETS[name]
    assert preset.path_loss == path_loss
    edge_snr_db = LinkBudget(power_dbm, bandwidth_hz).edge_snr_db(path_loss)
    np.testing.assert_allclose(preset.edge_snr_db, edge_snr_db, atol=0.005)


@settings(deadline=None, max_examples=40)
@given(
    power_dbm=st.floats(-30, 60),
    gains_dbi=st.tuples(st.floats(-10, 30), st.floats(-10, 30)),
    figure_db=st.floats(0, 20),
    log_bandwidth=st.floats(0, 9),
    gain_db=st.floats(-180, 0),
)
def test_every_decibel_counts_once(power_dbm, gains_dbi, figure_db, log_bandwidth, gain_db):
    budget = LinkBudget(power_dbm, 10**log_bandwidth, figure_db, *gains_dbi)
    snr = budget.snr(jnp.array(10 ** (gain_db / 10)))
    noise_w = 1.380649e-23 * 290 * 10**log_bandwidth * 10 ** (figure_db / 10)
    signal_w = 1e-3 * 10 ** ((power_dbm + sum(gains_dbi) + gain_db) / 10)
    np.testing.assert_allclose(snr, signal_w / noise_w, rtol=1e-9)


def test_snr_does_not_underflow_in_single_precision():
    budget = LinkBudget(-10.0, 128e3)
    gains = FreeSpace(3.5e9)(jnp.array([1e3, 1e5], jnp.float32))
    snr = jax.jit(budget.snr)(gains)
    assert snr.dtype == jnp.float32
    exact = budget.snr(FreeSpace(3.5e9)(jnp.array([1e3, 1e5])))
    np.testing.assert_allclose(snr, exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("transmit_power_dbm", (float("nan"), float("inf"), 301.0)),
        ("transmit_gain_dbi", (float("nan"),)),
        ("receive_gain_dbi", (-float("inf"),)),
        ("noise_figure_db", (-0.1, float("nan"))),
        ("bandwidth_hz", (0.0, -1.0, float("nan"), float("inf"))),
        ("temperature_k", (0.0, -1.0)),
    ],
)
def test_impossible_links_are_refused(field, values):
    good = LinkBudget(0.0, 1e6)
    for value in values:
        with pytest.raises(InputError, match=field):
            dataclasses.replace(good, **{field: value})


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan")])
def test_impossible_gains_are_refused(gain):
    with pytest.raises(InputError, match="path_gain"):
        LinkBudget(0.0, 1e6).snr(jnp.array([1.0, gain]))


# Power control


GAIN = PowerLaw(3.5)
WEAKEST = 1e3


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(POWER_CONTROLS)),
    distances=st.lists(st.floats(10, 5000), min_size=1, max_size=5),
    alpha=st.floats(0, 1),
    unit=st.floats(1e-14, 1e3),
)
def test_shares_of_the_full_power(name, distances, alpha, unit):
    gain, weakest = GAIN(jnp.array(distances)), GAIN(jnp.array(WEAKEST))
    share = POWER_CONTROLS[name](gain, weakest, alpha)
    assert np.all((share > 0) & (share <= 1))
    # At the weakest location and beyond it, all power there is.
    np.testing.assert_array_equal(share[np.array(distances) >= WEAKEST], 1)
    exponent = {"none": 0.0, "full": 1.0, "fractional": alpha}[name]
    by_distance = np.minimum((np.array(distances) / WEAKEST) ** (3.5 * exponent), 1)
    np.testing.assert_allclose(share, by_distance, rtol=1e-9)
    # The unit of the gain cancels.
    moved = POWER_CONTROLS[name](gain * unit, weakest * unit, alpha)
    np.testing.assert_allclose(moved, share, rtol=1e-9)


def test_full_inversion_makes_all_users_equal():
    gain, weakest = GAIN(jnp.array([50.0, 300.0, 999.0])), GAIN(jnp.array(WEAKEST))
    received = power_control.full(gain, weakest, 0.0) * gain
    np.testing.assert_allclose(received, float(weakest), rtol=1e-12)


@pytest.mark.parametrize("name", POWER_CONTROLS)
def test_power_control_has_derivatives(name):
    weakest = GAIN(jnp.array(WEAKEST))

    def log_share(log_gain, alpha):
        return jnp.log(POWER_CONTROLS[name](jnp.exp(log_gain), weakest, alpha)).sum()

    point = jnp.log(GAIN(jnp.array([50.0, 300.0, 2000.0])))
    by_gain, by_alpha = jax.jit(jax.grad(log_share, argnums=(0, 1)))(point, 0.7)
    exponent = {"none": 0.0, "full": 1.0, "fractional": 0.7}[name]
    np.testing.assert_allclose(by_gain, [-exponent, -exponent, 0.0], atol=1e-12)
    step = 1e-5
    numeric = (log_share(point, 0.7 + step) - log_share(point, 0.7 - step)) / (2 * step)
    np.testing.assert_allclose(by_alpha, numeric, atol=1e-8)


def test_power_control_under_vmap_in_one_trace():
    def share(gain, alpha):
        return power_control.fractional(gain, 1e-3, alpha)

    chex.clear_trace_counter()
    batch = jax.jit(jax.vmap(chex.assert_max_traces(share, n=1)))
    gains = jnp.array([[1.0, 1e-2], [1e-1, 1e-5]], jnp.float32)
    shares = batch(gains, jnp.array([0.5, 1.0], jnp.float32))
    assert shares.dtype == jnp.float32
    expected = [[10**-1.5, 10**-0.5], [1e-2, 1.0]]
    np.testing.assert_allclose(shares, expected, rtol=1e-5)
    np.testing.assert_allclose(batch(gains, jnp.zeros(2, jnp.float32)), 1, rtol=1e-6)


def test_impossible_power_controls_are_refused():
    gain = jnp.ones(2)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="alpha"):
            power_control.fractional(gain, 1.0, alpha)
    with pytest.raises(InputError, match="path_gain"):
        power_control.full(jnp.array([1.0, -1.0]), 1.0, 1.0)
    with pytest.raises(InputError, match="weakest_gain"):
        power_control.full(gain, 0.0, 1.0)
