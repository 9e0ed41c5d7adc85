"""Presets, draws and scenarios: the calibrated averages, and keys that mean one draw each."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError

PAPER = channel.get_preset("paper")


@pytest.fixture(scope="module")
def drops():
    """20,000 cells of the preset: the keys, and who is strongest in each."""
    keys = channel.draw_keys(jax.random.key(0), 20_000)

    def strongest(key):
        return jnp.argmax(channel.received_power(channel.gram(channel.draw_channel(PAPER, key))))

    return keys, np.asarray(jax.jit(jax.vmap(strongest))(keys))


@pytest.mark.parametrize(
    ("scenario", "mean", "attacked", "sum_rate"),
    [
        ("ideal", 0.0129, None, 40.6),
        ("strongest_user", 0.0327, 0.160, 35.4),
        ("sum_rate", 0.2081, None, 15.7),
    ],
)
def test_paper_preset_averages(drops, scenario, mean, attacked, sum_rate):
    keys, strongest = drops
    mse = jax.jit(jax.vmap(lambda key: channel.user_mse(scenario, PAPER, key)))(keys)
    mse = np.asarray(mse, float)
    np.testing.assert_allclose(mse.mean(), mean, rtol=0.02)
    np.testing.assert_allclose(-np.log(mse).sum(1).mean(), sum_rate, rtol=0.02)
    if attacked is not None:
        np.testing.assert_allclose(mse[np.arange(len(mse)), strongest].mean(), attacked, rtol=0.02)


def test_clean_is_without_error():
    mse = channel.user_mse("clean", PAPER, jax.random.key(0))
    np.testing.assert_array_equal(mse, np.zeros(8))


def test_one_trace_under_jit_and_vmap():
    def mse(keys):
        return {
            name: jax.vmap(lambda key, name=name: channel.user_mse(name, PAPER, key))(keys)
            for name in ("clean", "sum_rate", "strongest_user")
        }

    # chex takes a name with "vmap." in it for a transformed function.
    mse.__qualname__ = "mse"
    chex.clear_trace_counter()
    batch = jax.jit(chex.assert_max_traces(mse, n=1))
    keys = channel.draw_keys(jax.random.key(1), 4)
    first = batch(keys)
    batch(channel.draw_keys(jax.random.key(2), 4))
    alone = jax.jit(channel.user_mse, static_argnums=(0, 1))
    assert {mse.shape for mse in first.values()} == {(4, 8)}
    np.testing.assert_allclose(first["sum_rate"][3], alone("sum_rate", PAPER, keys[3]), rtol=1e-4)


def test_a_draw_does_not_depend_on_the_batch():
    key = jax.random.key(4)
    draw = jax.jit(channel.draw_channels, static_argnums=(0, 2))
    few, many = (draw(PAPER, key, draws) for draws in (3, 50))
    np.testing.assert_allclose(few, many[:3], rtol=1e-5)
    alone = channel.draw_channel(PAPER, jax.random.fold_in(key, 2))
    np.testing.assert_allclose(alone, many[2], rtol=1e-5)
    assert not np.allclose(many[0], many[1])


def test_scenarios_share_the_channel():
    key = jax.random.key(5)
    h = channel.draw_channel(PAPER, key)
    for scenario in ("ideal", "white"):
        expected = channel.user_mse_from_channel(
            h, channel.SCENARIOS[scenario], PAPER.attack_budget
        )
        np.testing.assert_allclose(channel.user_mse(scenario, PAPER, key), expected, rtol=1e-5)


def test_mse_is_in_user_order():
    """Relabelling the users relabels their errors, whatever the decoding order."""
    h = channel.draw_channel(PAPER, jax.random.key(6))
    relabel = np.random.default_rng(0).permutation(8)

    @jax.jit
    def all_mse(h):
        return {
            (attack, str(order)): channel.user_mse_from_channel(h, attack, 200.0, order=order)
            for attack in channel.ATTACKS
            for order in (*channel.ORDERS, None)
        }

    mse, moved = all_mse(h), all_mse(h[:, relabel])
    for case in mse:
        np.testing.assert_allclose(moved[case], mse[case][relabel], rtol=1e-3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the CPU's LAPACK kernels")
def test_no_batched_lapack_call():
    """Two of them at once wait for each other's thread for ever, on as few threads."""

    @jax.jit
    def mean_loss(h):
        def loss(h):
            cases = [
                channel.user_mse_from_channel(h, attack, 200.0, order=order)
                for attack in channel.ATTACKS
                for order in ("weakest_first", None)
            ]
            return jnp.sum(jnp.stack(cases))

        return jax.vmap(jax.value_and_grad(loss))(h)

    text = mean_loss.lower(jnp.zeros((77, 16, 8), jnp.complex64)).as_text()
    calls = [line for line in text.splitlines() if "lapack" in line]
    assert "77x" in text
    assert calls
    assert not [line for line in calls if "77x" in line]


def test_distances_and_path_loss():
    d = channel.user_distances(jax.random.key(7), 20_000, 200.0, 600.0)
    assert d.min() >= 200
    assert d.max() <= 600
    np.testing.assert_allclose([d.mean(), d.std()], [400, 400 / np.sqrt(12)], rtol=0.02)
    gain = channel.power_law_path_loss(jnp.array([1000.0, 500.0]), 2.1)
    np.testing.assert_allclose(gain, [1, 2**2.1], rtol=1e-6)
    np.testing.assert_allclose(
        channel.path_amplitude(jnp.array([1000.0, 500.0]), 2.1) ** 2, gain, rtol=1e-6
    )


def test_rayleigh_is_circular_with_unit_power():
    h = channel.rayleigh(jax.random.key(8), 200, 200)
    assert h.dtype == jnp.complex64
    np.testing.assert_allclose(jnp.mean(jnp.abs(h) ** 2), 1, atol=0.03)
    np.testing.assert_allclose(jnp.mean(h**2), 0, atol=0.03)
    np.testing.assert_allclose(jnp.mean(h), 0, atol=0.03)
    with jax.enable_x64(True):
        assert channel.rayleigh(jax.random.key(8), 2, 2).dtype == jnp.complex128
        assert channel.rayleigh(jax.random.key(8), 2, 2, jnp.complex64).dtype == jnp.complex64


def test_edge_snr_is_the_snr_at_one_kilometre():
    at_edge = channel.ChannelPreset(min_distance_m=1000.0, max_distance_m=1000.0, edge_snr_db=7.0)
    h = jax.jit(channel.draw_channels, static_argnums=(0, 2))(at_edge, jax.random.key(9), 400)
    np.testing.assert_allclose(10 * np.log10(np.mean(np.abs(h) ** 2)), 7.0, atol=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("users", 0),
        ("antennas", 0),
        ("min_distance_m", 0.0),
        ("min_distance_m", 2000.0),
        ("max_distance_m", float("inf")),
        ("exponent", float("nan")),
        ("edge_snr_db", float("inf")),
        ("attack_budget_db", float("nan")),
        ("order", "loudest_first"),
    ],
)
def test_impossible_presets_are_refused(field, value):
    with pytest.raises(InputError, match="order" if field == "order" else field):
        channel.ChannelPreset(**{field: value})


def test_a_preset_may_have_no_attack_power():
    preset = channel.ChannelPreset(attack_budget_db=-float("inf"), order=None)
    key = jax.random.key(10)
    np.testing.assert_allclose(
        channel.user_mse("sum_rate", preset, key), channel.user_mse("ideal", preset, key), rtol=1e-4
    )


def test_bad_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'paper'"):
        channel.get_preset("papre")
    with pytest.raises(InputError, match="Did you mean 'strongest_user'"):
        channel.user_mse("strongest-user", PAPER, jax.random.key(0))
    with pytest.raises(InputError, match="draws"):
        channel.draw_keys(jax.random.key(0), 0)
