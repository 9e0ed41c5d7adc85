"""Placement of users, and path loss against Friis and the tables of 3GPP TR 38.901."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rmtllmf_jax.channel.checks import require_positive, require_within
from rmtllmf_jax.channel.path_loss import (
    PLACEMENTS,
    FreeSpace,
    PathLoss,
    PowerLaw,
    UrbanMacro,
    UrbanMicro,
    distances_from_positions,
    user_distances,
    user_distances_by_area,
)
from rmtllmf_jax.common.errors import InputError

pytestmark = pytest.mark.usefixtures("x64")

MODELS = (
    PowerLaw(2.1),
    FreeSpace(3.5e9),
    *(
        model(frequency, line_of_sight=sight)
        for model, frequency, sight in itertools.product(
            (UrbanMicro, UrbanMacro), (3.5e9, 28e9), (True, False)
        )
    ),
)


# Placement


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements_have_their_distribution(placement):
    """Kolmogorov-Smirnov; the seed is fixed, so that the test does not flicker."""
    d = PLACEMENTS[placement](jax.random.key(7), 20_000, 200.0, 600.0)
    assert d.min() >= 200
    assert d.max() <= 600
    power = {"distance": 1, "area": 2}[placement]
    share = (np.asarray(d) ** power - 200.0**power) / (600.0**power - 200.0**power)
    assert stats.kstest(share, "uniform").pvalue > 0.01


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_ring_of_no_width_is_one_distance(placement):
    with jax.enable_x64(False):
        d = PLACEMENTS[placement](jax.random.key(0), 100, 333.3, 333.3)
        np.testing.assert_array_equal(d, np.full(100, np.float32(333.3)))


@pytest.mark.parametrize("place", [user_distances, user_distances_by_area])
def test_rings_that_hold_nobody_are_refused(place):
    key = jax.random.key(0)
    with pytest.raises(InputError, match="users must be at least 1"):
        place(key, 0)
    nan = float("nan")
    for ring in ((0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (nan, 1.0), (1.0, nan), (1.0, np.inf)):
        with pytest.raises(InputError, match="0 < minimum <= maximum"):
            place(key, 2, *ring)


def test_distances_from_positions():
    positions = jnp.array([[3.0, 4.0, 1.5], [0.0, 0.0, 1.5]])
    base = jnp.array([0.0, 0.0, 25.0])
    expected = [np.sqrt(25 + 23.5**2), 23.5]
    np.testing.assert_allclose(distances_from_positions(positions, base), expected)
    flat = distances_from_positions(positions[:1, :2], base[:2])
    np.testing.assert_allclose(flat, [5.0])
    slope = jax.grad(lambda p: distances_from_positions(p, base).sum())(positions)
    np.testing.assert_allclose(slope[0], (positions[0] - base) / expected[0])


def test_positions_that_are_none_are_refused():
    with pytest.raises(InputError, match="same two or three coordinates, got 3 and 2"):
        distances_from_positions(jnp.ones((4, 3)), jnp.ones(2))
    with pytest.raises(InputError, match="got 1 and 1"):
        distances_from_positions(jnp.ones((4, 1)), jnp.ones(1))
    with pytest.raises(InputError, match=r"> 0, got 0\.0"):
        distances_from_positions(jnp.ones((4, 2)), jnp.ones(2))


# Path loss


# Loss in dB computed by hand from Table 7.4.1-1: distance in m, GHz, height of the user in m, then
# UMi and UMa with line of sight, UMi and UMa without. d'_BP at 3.5 GHz is 210 m and 560 m.
TABLE = [
    (10.0, 3.5, 1.5, 66.761, 69.840, 73.457, 79.415),
    (100.0, 3.5, 1.5, 85.314, 83.138, 104.644, 103.038),
    (1000.0, 3.5, 1.5, 119.153, 109.412, 139.889, 141.666),
    (100.0, 28.0, 1.5, 103.376, 101.200, 123.880, 121.099),
    (5000.0, 28.0, 6.0, 139.022, 138.321, 182.448, 184.339),
    (15.0, 3.5, 10.0, 67.979, 68.067, 72.955, 71.165),
]


@pytest.mark.parametrize("row", TABLE)
def test_urban_losses_are_those_of_the_tr(row):
    distance, ghz, height, *expected = row
    models = [
        model(ghz * 1e9, line_of_sight=sight, user_height_m=height)
        for sight, model in itertools.product((True, False), (UrbanMicro, UrbanMacro))
    ]
    loss_db = [-10 * np.log10(model(distance)) for model in models]
    np.testing.assert_allclose(loss_db, expected, atol=6e-4)


@pytest.mark.parametrize(("model", "breakpoint_m"), [(UrbanMicro, 210.0), (UrbanMacro, 560.0)])
def test_line_of_sight_is_continuous_at_the_breakpoint(model, breakpoint_m):
    los = model(3.5e9, line_of_sight=True)
    np.testing.assert_allclose(los.breakpoint_m, breakpoint_m)
    below, above = los(breakpoint_m * (1 - 1e-9)), los(breakpoint_m * (1 + 1e-9))
    np.testing.assert_allclose(below, above, rtol=1e-7)
    # The exponent over the distance in space goes from about two to four.
    climb = los.base_height_m - los.user_height_m

    def exponent(distance):
        slope = jax.grad(lambda d: jnp.log(los(d)))(distance)
        return -slope * (distance**2 + climb**2) / distance

    near = {UrbanMicro: 2.1, UrbanMacro: 2.2}[model]
    np.testing.assert_allclose(exponent(breakpoint_m * 0.99), near, rtol=1e-9)
    np.testing.assert_allclose(exponent(breakpoint_m * 1.01), 4.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "at_36", "at_180", "with_sight", "without"),
    [
        # 18 / d + exp(-d / decay) (1 - 18 / d)
        (UrbanMicro, 0.5 + 0.5 * np.exp(-1), 0.1 + 0.9 * np.exp(-5), 4.0, 7.82),
        (UrbanMacro, 0.5 + 0.5 * np.exp(-36 / 63), 0.1 + 0.9 * np.exp(-180 / 63), 4.0, 6.0),
    ],
)
def test_line_of_sight_probability_and_shadowing(model, at_36, at_180, with_sight, without):
    sight, none = (model(3.5e9, line_of_sight=sight) for sight in (True, False))
    probability = sight.line_of_sight_probability(jnp.array([10.0, 18.0, 36.0, 180.0]))
    np.testing.assert_allclose(probability, [1, 1, at_36, at_180], rtol=1e-12)
    assert (sight.shadowing_std_db, none.shadowing_std_db) == (with_sight, without)


def test_free_space_is_friis():
    """92.45 dB + 20 log10(km GHz), as in the handbooks."""
    loss_db = -10 * np.log10(FreeSpace(3.5e9)(jnp.array([1000.0, 20.0])))
    np.testing.assert_allclose(loss_db, 92.448 + 20 * np.log10([3.5, 3.5 * 0.02]), atol=1e-3)


def test_power_law_is_relative_to_one_kilometre():
    gain = PowerLaw(2.1)(jnp.array([1000.0, 500.0]))
    np.testing.assert_allclose(gain, [1, 2**2.1], rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    model=st.sampled_from(MODELS),
    distance=st.floats(10, 5000),
    factor=st.floats(1.001, 2),
)
def test_gain_falls_with_distance(model, distance, factor):
    farther = min(distance * factor, 5000.0)
    near, far = model(jnp.array([distance, farther]))
    assert 0 < far <= near
    assert isinstance(model, PowerLaw) or near < 1
    assert near / far <= (farther / distance) ** 4 * (1 + 1e-9)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_derivatives_in_distance(model):
    # 30 m and 900 m are on either side of every breakpoint at 3.5 GHz.
    distances = jnp.array([30.0, 150.0, 900.0, 3000.0])

    def log_gain(distance):
        return jnp.log(model(distance))

    step = 1e-4 * distances
    numeric = (log_gain(distances + step) - log_gain(distances - step)) / (2 * step)
    exact = jax.vmap(jax.grad(log_gain))(distances)
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_path_losses_are_static_arguments_and_follow_the_dtype(model):
    assert isinstance(model, PathLoss)
    chex.clear_trace_counter()
    # Two equal models are one static argument: one trace, not two.
    gain = jax.jit(chex.assert_max_traces(lambda m, d: m(d), n=1), static_argnums=0)
    distances = jnp.array([50.0, 700.0])
    first = gain(model, distances)
    np.testing.assert_array_equal(gain(dataclasses.replace(model), distances), first)
    single = jax.jit(model)(distances.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, first, rtol=2e-5)


def test_distances_outside_a_model_are_refused_where_they_are_known():
    for model in MODELS:
        for distance in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match="distances"):
                model(jnp.array([100.0, distance]))
    urban = UrbanMicro(3.5e9, line_of_sight=False)
    with pytest.raises(InputError, match=r"got 9\.9"):
        urban(9.9)
    with pytest.raises(InputError, match=r"got 5001\.0"):
        urban(5001.0)
    with pytest.raises(InputError, match="distances"):
        urban.line_of_sight_probability(0.0)
    jax.jit(urban)(9.9)  # a traced distance has no value to check


@pytest.mark.parametrize("model", [UrbanMicro, UrbanMacro])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_hz", 0.4e9),
        ("frequency_hz", 101e9),
        ("frequency_hz", float("nan")),
        ("base_height_m", 1.0),
        ("base_height_m", float("inf")),
        ("user_height_m", 1.4),
        ("user_height_m", 23.0),
    ],
)
def test_impossible_urban_models_are_refused(model, field, value):
    with pytest.raises(InputError, match=field):
        model(**{"frequency_hz": 3.5e9, "line_of_sight": True, field: value})


def test_a_macro_user_stands_at_13_metres_at_most():
    UrbanMicro(3.5e9, line_of_sight=True, user_height_m=14.0)
    with pytest.raises(InputError, match=r"user_height_m must be finite and >= 1\.5 and <= 13"):
        UrbanMacro(3.5e9, line_of_sight=True, user_height_m=14.0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(InputError, match="exponent"):
        PowerLaw(bad)
    with pytest.raises(InputError, match="frequency_hz"):
        FreeSpace(bad)


def test_checks_say_what_was_seen_and_expected():
    with pytest.raises(InputError, match=r"^x must be finite and >= 0 and <= 1, got 2.0.$"):
        require_within("x", (0.5, 2.0), 0.0, 1.0)
    with pytest.raises(InputError, match=r"^x must be finite, got inf.$"):
        require_within("x", np.inf, -np.inf, np.inf)
    with pytest.raises(InputError, match=r"^x must be finite and > 0, got 0.0.$"):
        require_positive("x", jnp.zeros(3))
    require_within("x", jnp.array([0.0, 1.0]), 0.0, 1.0)
