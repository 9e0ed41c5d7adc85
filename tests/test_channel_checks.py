"""Bad numbers are refused where they can be seen, and by `checkify` where they cannot."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import KEYLESS
from jax.experimental import checkify

from rmtllmf_jax import channel
from rmtllmf_jax.channel import checks
from rmtllmf_jax.common.errors import InputError

GRAM = np.diag([1.0, 2.0, 3.0]).astype(np.complex64)
H = np.eye(4, 3, dtype=np.complex64)


def with_entry(matrix, value):
    changed = matrix.copy()
    changed[0, 1] = value
    return jnp.array(changed)


BAD_ATTACK_INPUT = {
    r"budget must be finite and >= 0, got -2\.5": (GRAM, -2.5, 1.0),
    r"budget must be finite and >= 0, got inf": (GRAM, np.inf, 1.0),
    r"noise must be finite and > 0, got 0\.0": (GRAM, 1.0, 0.0),
    r"noise must be finite and > 0, got nan": (GRAM, 1.0, np.nan),
    r"gram must be Hermitian: \[0, 1\] is \(7\+0j\) but \[1, 0\] is 0j": (
        with_entry(GRAM, 7),
        1.0,
        1.0,
    ),
    r"gram must be finite, got \(nan\+0j\)": (with_entry(GRAM, np.nan), 1.0, 1.0),
}


@pytest.mark.parametrize("name", KEYLESS)
@pytest.mark.parametrize("message", BAD_ATTACK_INPUT)
def test_attacks_refuse_what_no_channel_has(name, message):
    gram, budget, noise = BAD_ATTACK_INPUT[message]
    with pytest.raises(InputError, match=message):
        channel.ATTACKS[name]().from_gram(jnp.array(gram), budget, noise, antennas=4)


@pytest.mark.parametrize(
    ("h", "budget", "noise", "message"),
    [
        (with_entry(H, np.inf), 1.0, 1.0, r"h_tilde must be finite, got \(inf"),
        (jnp.array(H), -1.0, 1.0, r"budget must be finite and >= 0, got -1\.0"),
        (jnp.array(H), 1.0, -3.0, r"noise must be finite and > 0, got -3\.0"),
    ],
)
def test_bad_channels_are_refused_outside_jit_and_pass_inside(h, budget, noise, message):
    with pytest.raises(InputError, match=message):
        channel.user_mse(h, channel.ATTACKS["none"](), budget, noise)
    # Nothing to look at there: no exception, and numbers that make no sense.
    mse = jax.jit(lambda *a: channel.user_mse(a[0], channel.ATTACKS["none"](), *a[1:]))(
        h, budget, noise
    )
    assert mse.shape == (3,)


@jax.jit
@checkify.checkify
def safe(h, budget, noise):
    channel.check_uplink(h, budget, noise)
    return channel.user_mse(h, channel.ATTACKS["white"](), budget, noise)


def test_check_uplink_reports_from_inside_jit():
    error, mse = safe(jnp.array(H), 1.0, 1.0)
    error.throw()
    np.testing.assert_allclose(
        mse, channel.user_mse(jnp.array(H), channel.ATTACKS["white"](), 1.0), rtol=1e-6
    )
    for arguments, message in {
        (np.nan, 1.0, 1.0): "h_tilde must be finite",
        (0.0, -1.5, 1.0): r"budget must be finite and >= 0, got -1\.5",
        (0.0, np.nan, 1.0): "budget must be finite and >= 0, got nan",
        (0.0, 1.0, 0.0): r"noise must be finite and > 0, got 0\.0",
    }.items():
        error, _ = safe(with_entry(H, arguments[0]), *arguments[1:])
        with pytest.raises(checkify.JaxRuntimeError, match=message):
            error.throw()


def test_check_uplink_alone_does_nothing_to_good_input():
    assert channel.check_uplink(jnp.array(H), 0.0) is None


def test_what_the_checks_let_through():
    checks.require_within("x", np.array([0.0, 1.0]), 0.0, 1.0)
    checks.require_positive("x", 1e-30)
    checks.require_decibels("x", -300.0)
    rounding = (GRAM + 1e-6 * np.triu(np.ones((3, 3)))).astype(np.complex64)
    checks.require_hermitian("x", rounding)
    checks.require_covariance("x", np.zeros((2, 2)))
    checks.require_covariance("x", np.diag([1.0, -1e-12]))


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (
            checks.require_within,
            ([0.0, 3.0], 0.0, 1.0),
            "x must be finite and >= 0 and <= 1, got 3",
        ),
        (checks.require_within, (np.nan, -np.inf, np.inf), "x must be finite, got nan"),
        (checks.require_decibels, (301.0,), "x must be finite and >= -300 and <= 300, got 301"),
        (checks.require_hermitian, (np.ones((2, 3)),), r"square matrix, got shape \(2, 3\)"),
        (checks.require_hermitian, (np.ones((0, 0)),), r"square matrix, got shape \(0, 0\)"),
        (checks.require_covariance, (-np.eye(2),), r"positive semidefinite, got the eigenvalue -1"),
    ],
)
def test_what_the_checks_refuse(check, arguments, message):
    with pytest.raises(InputError, match=message):
        check("x", *arguments)


def test_traced_values_are_known():
    seen = []
    jax.jit(lambda x: seen.append(checks.is_traced(x)))(1.0)
    assert seen == [True]
    assert not checks.is_traced(jnp.ones(2))


@pytest.mark.parametrize(
    ("h_tilde", "message"),
    [
        (np.ones((5, 3, 2), complex), r"got \(5, 3, 2\): map over a batch .* jax.vmap"),
        (np.ones((3, 2), int), r"got int64 of shape \(3, 2\): convert it"),
        ([[1.0]], "got list: convert it"),
        (np.ones((3, 0), complex), r"got \(3, 0\)"),
    ],
)
def test_what_is_no_channel_is_named(h_tilde, message):
    with pytest.raises(InputError, match=message):
        checks.require_channel(h_tilde)


def test_every_function_of_a_channel_refuses_a_batch():
    """Without this package's own type checks, which come first in tests."""
    batch, attack = jnp.ones((5, 3, 2), complex), jnp.eye(3, dtype=complex)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for function in (
            lambda: channel.gram(batch),
            lambda: channel.user_mse(batch, channel.ATTACKS["none"](), 1.0),
            lambda: channel.ATTACKS["sum_rate"]()(batch, 1.0),
            lambda: channel.effective_gram(batch, attack, 1.0),
            lambda: channel.mmse_equaliser(batch, attack, 1.0, None),
        ):
            with pytest.raises(InputError, match=r"jax\.vmap"):
                function()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_presets_go_by_name_and_take_lists():
    key = jax.random.key(0)
    assert channel.get_preset("paper") == channel.PRESETS["paper"]
    compiled = jax.jit(lambda preset, key: channel.Link(preset).mse(key), static_argnums=0)
    fading = channel.Rician(3.0, angles_deg=[10.0, 20.0])
    listed = channel.ChannelPreset(users=2, distances_m=[100.0, 200.0], fading=fading)
    assert compiled(listed, key).shape == (2,)
    assert compiled(channel.DirectPreset(mse=[0.25, 0.5]), key).tolist() == [0.25, 0.5]
    with pytest.raises(InputError, match="has no channel to draw"):
        channel.draw_channel("mse=.1", key)
    with pytest.raises(InputError, match="Did you mean 'paper'"):
        channel.draw_channel("papr", key)
