"""Presets, draws and scenarios: the calibrated averages, and keys that mean one draw each."""

import dataclasses
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KEYLESS

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.channel.fading import Kronecker, Rician
from rmtllmf_jax.channel.path_loss import FreeSpace, PowerLaw, UrbanMicro
from rmtllmf_jax.channel.power_control import POWER_CONTROLS
from rmtllmf_jax.channel.presets import (
    PRESETS,
    ChannelPreset,
    DirectPreset,
    Preset,
    get_preset,
)
from rmtllmf_jax.channel.realisation import channel_at, draw_distances
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described

PAPER = PRESETS["paper"]

# Compiled once for all tests: called eagerly, every operation would be compiled alone.
draw_channel = jax.jit(channel.draw_channel, static_argnums=0)
draw_channels = jax.jit(channel.draw_channels, static_argnums=(0, 2))
LMMSE = channel.Lmmse()


def mse(scenario, preset, key):
    return channel.Link(preset, uplink.Scenario(scenario).attack).mse(key)


user_mse = jax.jit(mse, static_argnums=(0, 1))


@contextmanager
def optimised(on):
    """Compile with or without XLA's optimisations: for few calls these cost more than they save."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not on)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True, scope="module")
def _compiled_fast():
    with optimised(False):
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def drops():
    """20,000 cells of the preset in one trace: the keys, who is strongest, and the MSEs."""

    def cell(key):
        strongest = jnp.argmax(
            channel.received_power(channel.gram(channel.draw_channel(PAPER, key)))
        )
        names = ("ideal", "strongest_user", "sum_rate")
        return strongest, {name: mse(name, PAPER, key) for name in names}

    def cells(keys):
        return jax.vmap(cell)(keys)

    chex.clear_trace_counter()
    batch = jax.jit(chex.assert_max_traces(cells, n=1))
    keys = channel.draw_keys(jax.random.key(0), 20_000)
    with optimised(True):
        halves = [jax.device_get(batch(half)) for half in (keys[:10_000], keys[10_000:])]
    return keys, *jax.tree.map(lambda *parts: np.concatenate(parts), *halves)


@pytest.mark.parametrize(
    ("scenario", "mean", "attacked", "sum_rate"),
    [
        ("ideal", 0.0129, None, 40.6),
        ("strongest_user", 0.0327, 0.160, 35.4),
        ("sum_rate", 0.2081, None, 15.7),
    ],
)
def test_paper_preset_averages(drops, scenario, mean, attacked, sum_rate):
    _, strongest, found = drops
    mse = found[scenario].astype(float)
    np.testing.assert_allclose(mse.mean(), mean, rtol=0.02)
    np.testing.assert_allclose(-np.log(mse).sum(1).mean(), sum_rate, rtol=0.02)
    if attacked is not None:
        np.testing.assert_allclose(mse[np.arange(len(mse)), strongest].mean(), attacked, rtol=0.02)


def test_a_batch_is_its_cells(drops):
    keys, _, batch = drops
    assert {mse.shape for mse in batch.values()} == {(20_000, 8)}
    for scenario in ("strongest_user", "sum_rate"):
        alone = user_mse(scenario, PAPER, keys[12_345])
        np.testing.assert_allclose(batch[scenario][12_345], alone, rtol=1e-4)


def test_a_draw_does_not_depend_on_the_batch():
    key = jax.random.key(4)
    few, many = (draw_channels(PAPER, key, draws) for draws in (3, 50))
    np.testing.assert_allclose(few, many[:3], rtol=1e-5)
    alone = draw_channel(PAPER, jax.random.fold_in(key, 2))
    np.testing.assert_allclose(alone, many[2], rtol=1e-5)
    assert not np.allclose(many[0], many[1])


def test_draws_go_on_where_others_ended():
    key = jax.random.key(4)
    later, all_of_them = channel.draw_keys(key, 3, first=2), channel.draw_keys(key, 5)
    np.testing.assert_array_equal(*map(jax.random.key_data, (later, all_of_them[2:])))


def test_scenarios_share_the_channel():
    key = jax.random.key(5)
    h = draw_channel(PAPER, key)
    over_channel = jax.jit(channel.user_mse, static_argnums=1)
    for scenario in ("ideal", "white"):
        expected = over_channel(h, uplink.Scenario(scenario).attack, PAPER.attack_budget)
        np.testing.assert_allclose(user_mse(scenario, PAPER, key), expected, rtol=1e-5)


def every_mse(h):
    """MSE of the users under every attack, behind every receiver."""
    found = {}
    for name in set(KEYLESS) - {"towards"}:  # which tells users by number
        jammed = channel.ATTACKS[name]().from_gram(channel.gram(h), 200.0, 1.0, antennas=16)
        power = channel.received_power(channel.gram(h))
        for receiver in (channel.Sic(), channel.Sic("strongest_first"), channel.Lmmse()):
            found[name, str(receiver)] = channel.mse_of(receiver.from_gram(jammed, power))
    return found


def test_mse_is_in_user_order():
    """Relabelling the users relabels their errors, whatever the decoding order."""
    h = draw_channel(PAPER, jax.random.key(6))
    relabel = np.random.default_rng(0).permutation(8)
    mse_of = jax.jit(every_mse)
    mse, moved = (jax.device_get(mse_of(users)) for users in (h, h[:, relabel]))
    for case in mse:
        np.testing.assert_allclose(moved[case], mse[case][relabel], rtol=1e-3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the CPU's LAPACK kernels")
def test_no_lapack_call():
    """Two batches of them at once wait for each other's thread for ever, on as few threads."""

    def lapack_calls(function):
        text = jax.jit(function).lower(jnp.zeros((16, 8), jnp.complex64)).as_text()
        return [line for line in text.splitlines() if "lapack" in line]

    assert lapack_calls(jnp.linalg.svd)
    assert not lapack_calls(jax.value_and_grad(lambda h: sum(map(jnp.sum, every_mse(h).values()))))


def test_the_papers_draws_keep_their_numbers():
    key = jax.random.key(0)
    h = draw_channel(PAPER, key)
    expected = [
        [0.27728754 - 1.8619324j, -3.699545 - 1.6935363j],
        [-1.0364227 - 0.33889952j, 5.470082 - 4.568032j],
    ]
    np.testing.assert_allclose(h[:2, :2], expected, rtol=1e-6)
    np.testing.assert_allclose(h[15, 7], 12.116537 - 3.8624341j, rtol=1e-6)
    distances = [858.0827, 264.14078, 304.4603, 208.65308, 272.6321, 749.81354, 788.901, 237.2864]
    np.testing.assert_allclose(draw_distances(PAPER, key), distances, rtol=1e-6)


def test_every_cell_works_without_attack():
    keys = channel.draw_keys(jax.random.key(1), 500)

    @jax.jit
    @jax.vmap
    def mean_mse(key):
        return jnp.array([channel.Link(preset).mse(key).mean() for preset in cells])

    cells = [preset for name, preset in PRESETS.items() if name != "paper"]
    mean = np.asarray(mean_mse(keys)).mean(0)
    assert np.all((mean > 0.002) & (mean < 0.02))


# Given distances


def test_a_draw_is_the_channel_at_its_distances():
    @jax.jit
    def both(key):
        return [
            (
                channel.draw_channel(preset, key),
                channel_at(preset, draw_distances(preset, key), key),
            )
            for preset in PRESETS.values()
        ]

    for drawn, at_distances in both(jax.random.key(11)):
        np.testing.assert_array_equal(drawn, at_distances)


def test_given_distances_are_used_by_every_draw():
    given = tuple(np.linspace(100.0, 1000.0, 8).tolist())
    preset = dataclasses.replace(PAPER, distances_m=given, edge_snr_db=0.0)
    np.testing.assert_array_equal(
        draw_distances(preset, jax.random.key(0)), np.array(given, np.float32)
    )
    h = draw_channels(preset, jax.random.key(12), 1000)
    power = np.mean(np.abs(h) ** 2, axis=(0, 1))
    # 16,000 coefficients a user: 5 errors of the mean are 4 %.
    np.testing.assert_allclose(power, (np.array(given) / 1000) ** -2.1, rtol=0.04)
    assert preset.farthest_m == 1000.0


@pytest.mark.parametrize("control", POWER_CONTROLS)
def test_power_control_shapes_the_received_power(control):
    """Relative to the farthest place, 500 m here, whose users need the full power."""
    preset = dataclasses.replace(
        PAPER,
        users=3,
        max_distance_m=500.0,
        path_loss=PowerLaw(3.0),
        edge_snr_db=0.0,
        power_control=control,
        power_control_alpha=0.5,
    )
    distances = jnp.array([125.0, 250.0, 500.0])
    fading = dataclasses.replace(preset, path_loss=PowerLaw(0.0))
    key = jax.random.key(13)
    gain = np.abs(channel_at(preset, distances, key) / channel_at(fading, distances, key)) ** 2
    share = {"none": 0, "full": 3, "fractional": 1.5}[control]
    expected = np.array([512, 64, 8]) * np.array([0.25, 0.5, 1]) ** share
    np.testing.assert_allclose(gain, np.broadcast_to(expected, (16, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    "preset",
    [PAPER, dataclasses.replace(PRESETS["uma_los"], power_control="fractional")],
    ids=["paper", "uma_los with fractional power control"],
)
def test_derivative_of_the_mse_in_the_distances(preset):
    """Against central differences; a joint receiver, for the decoding order's swaps are jumps."""
    preset = dataclasses.replace(preset, users=3, antennas=4)
    with jax.enable_x64(True):
        key = jax.random.key(14)

        def loss(log_distance):
            h = channel_at(preset, jnp.exp(log_distance), key)
            mse = channel.user_mse(
                h, channel.ATTACKS["white"](), preset.attack_budget, receiver=LMMSE
            )
            return jnp.arange(1.0, 4.0) @ mse

        @jax.jit
        def exact_and_numeric(point):
            steps = 1e-5 * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
            plus, minus = jax.vmap(loss)(point + steps).reshape(2, 3)
            return jax.grad(loss)(point), (plus - minus) / 2e-5

        point = jnp.log(jnp.array([120.0, 250.0, 480.0]))
        exact, numeric = exact_and_numeric(point)
        assert exact.dtype == jnp.float64
        np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-9)
        single = jax.ShapeDtypeStruct((3,), jnp.float32)
        assert jax.eval_shape(partial(channel_at, preset), single, key).dtype == jnp.complex64


def test_distances_that_do_not_fit_are_refused():
    key = jax.random.key(0)
    with pytest.raises(InputError, match="one per user, 8, got shape"):
        channel_at(PAPER, jnp.ones(3), key)
    with pytest.raises(InputError, match=r"> 0, got -1\.0"):
        channel_at(PAPER, jnp.full(8, -1.0), key)
    with pytest.raises(InputError, match=r"got 6000\.0"):
        channel_at(PRESETS["umi_nlos"], jnp.full(8, 6000.0), key)


def test_edge_snr_is_the_snr_at_one_kilometre():
    at_edge = channel.ChannelPreset(min_distance_m=1000.0, max_distance_m=1000.0, edge_snr_db=7.0)
    h = draw_channels(at_edge, jax.random.key(9), 400)
    np.testing.assert_allclose(10 * np.log10(np.mean(np.abs(h) ** 2)), 7.0, atol=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("users", 0),
        ("antennas", 0),
        ("min_distance_m", 0.0),
        ("min_distance_m", 2000.0),
        ("max_distance_m", float("inf")),
        ("placement", "volume"),
        ("distances_m", (100.0, 200.0)),
        ("distances_m", (100.0,) * 7 + (0.0,)),
        ("distances_m", (100.0,) * 7 + (float("nan"),)),
        ("edge_snr_db", float("inf")),
        ("power_control", "fractoinal"),
        ("power_control_alpha", 1.5),
        ("power_control_alpha", -0.1),
        ("power_control_alpha", float("nan")),
        ("attack_budget_db", float("nan")),
        ("attack_budget_db", float("inf")),
    ],
)
def test_impossible_presets_are_refused(field, value):
    named = {"order": "SIC order", "power_control": "Did you mean 'fractional'"}
    with pytest.raises(InputError, match=named.get(field, field)):
        channel.ChannelPreset(**{field: value})


def test_users_stand_where_the_path_loss_holds():
    urban = UrbanMicro(3.5e9, line_of_sight=True)
    with pytest.raises(InputError, match=r"min_distance_m for UrbanMicro.*got 5\.0"):
        channel.ChannelPreset(path_loss=urban, min_distance_m=5.0)
    with pytest.raises(InputError, match=r"distances_m for UrbanMicro.*got 6000\.0"):
        channel.ChannelPreset(path_loss=urban, users=2, distances_m=(50.0, 6000.0))


def test_presets_are_static_arguments():
    """Equal presets, built twice, are one trace."""

    def build():
        return channel.ChannelPreset(
            users=2,
            antennas=3,
            path_loss=FreeSpace(2e9),
            fading=Kronecker(0.5),
            distances_m=(50.0, 60.0),
        )

    chex.clear_trace_counter()
    draw = jax.jit(
        chex.assert_max_traces(lambda preset, key: channel.draw_channel(preset, key), n=1),
        static_argnums=0,
    )
    draw(build(), jax.random.key(0))
    draw(build(), jax.random.key(1))


def test_fading_is_the_presets():
    """A line of sight alone: every coefficient has the amplitude of the path loss."""
    preset = dataclasses.replace(PAPER, fading=Rician(k_factor_db=200.0))
    key = jax.random.key(15)
    amplitude = np.abs(channel.draw_channel(preset, key))
    snr = 10**0.45 * (np.asarray(draw_distances(preset, key)) / 1000) ** -2.1
    np.testing.assert_allclose(amplitude**2, np.broadcast_to(snr, (16, 8)), rtol=1e-4)


def test_a_preset_may_have_no_attack_power():
    preset = channel.ChannelPreset(attack_budget_db=-float("inf"))
    key = jax.random.key(10)
    jammed, ideal = (user_mse(scenario, preset, key) for scenario in ("sum_rate", "ideal"))
    np.testing.assert_allclose(jammed, ideal, rtol=1e-4)


def test_bad_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'paper'"):
        channel.get_preset("papre")
    with pytest.raises(InputError, match="Did you mean 'strongest_user'"):
        uplink.Scenario("strongest-user")
    with pytest.raises(InputError, match="draws"):
        channel.draw_keys(jax.random.key(0), 0)


@pytest.mark.parametrize(
    ("text", "preset"),
    [
        ("paper(users=12, antennas=32)", ChannelPreset(users=12, antennas=32)),
        ("paper(fading=rician(9))", ChannelPreset(fading=Rician(9.0))),
        ("uma_los(attack_budget_db=-inf)", replace(PRESETS["uma_los"], attack_budget_db=-math.inf)),
        ("channel_preset(path_loss=free_space(3.5e9))", ChannelPreset(path_loss=FreeSpace(3.5e9))),
        ("direct_preset(mse=(0.1, 0.2))", DirectPreset(mse=(0.1, 0.2))),
    ],
)
def test_presets_have_options_and_are_read_back(text: str, preset: Preset):
    assert get_preset(text) == preset
    assert get_preset(described(preset)) == preset


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("paper(user=3)", "Did you mean 'users'?"),
        ("paper(users=0)", "users must be at least 1, got 0"),
        ("paper(fading=rice)", "unknown paper fading 'rice'. Did you mean 'rician'?"),
        ("papr(users=3)", "unknown channel preset 'papr'. Did you mean 'paper'?"),
    ],
)
def test_options_that_no_preset_has_are_said(text: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        get_preset(text)


@pytest.mark.parametrize(
    "text",
    [
        "paper",
        "uma_los(users=3)",
        "free_space(users=2, antennas=32, distances_m=(10.0, 20.0))",
        "paper(users=12, antennas=32, fading=rician(k_factor_db=9.0))",
    ],
)
def test_a_preset_is_described_as_it_is_read(text: str):
    assert described(channel.get_preset(text)) == text


def test_a_preset_of_ones_own_kind_is_described_by_its_name():
    @dataclasses.dataclass(frozen=True)
    class Tower(ChannelPreset):
        height_m: float = 30.0

    assert described(Tower(users=4, height_m=25.0)) == "tower(users=4, height_m=25.0)"
