"""Direct presets: the users' errors themselves, without a channel."""

import re

import jax
import numpy as np
import pytest

from rmtllmf_jax import channel
from rmtllmf_jax.channel.presets import DirectPreset
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.sweep.settings import Settings

user_mse = jax.jit(lambda preset, key: channel.Link(preset).mse(key), static_argnums=0)


def test_direct_presets_bypass_the_channel():
    key = jax.random.key(0)
    by_mse = channel.get_preset("mse=0, .25,1")
    assert by_mse == DirectPreset(mse=(0.0, 0.25, 1.0))
    by_snr = channel.get_preset("snr_db=0,10,-10")
    assert by_snr == DirectPreset(snr_db=(0.0, 10.0, -10.0))
    assert by_mse.users == by_snr.users == 3
    np.testing.assert_allclose(user_mse(by_mse, key), [0, 0.25, 1])
    np.testing.assert_allclose(user_mse(by_snr, key), [0.5, 1 / 11, 10 / 11], rtol=1e-6)
    snr = channel.unbiased_sinr(user_mse(by_snr, key))
    np.testing.assert_allclose(snr, [1, 10, 0.1], rtol=1e-5)


def test_a_direct_preset_has_no_attack_and_no_receiver():
    preset = DirectPreset(mse=(0.1,))
    with pytest.raises(InputError, match=r"the attack sum_rate needs a channel, and .* has none"):
        channel.Link(preset, channel.SumRate())
    with pytest.raises(InputError, match="the receiver lmmse needs a channel"):
        channel.Link(preset, receiver=channel.Lmmse())


def test_a_sweep_takes_a_direct_preset():
    settings = Settings(preset="snr_db=10,12")
    assert settings.channel(2) == DirectPreset(snr_db=(10.0, 12.0))
    with pytest.raises(InputError, match="'snr_db=10,12' has 2"):
        settings.channel(3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mse=", "'' is not a number"),
        ("mse=.1,", "'' is not a number"),
        ("mse=.1;.2", "'.1;.2' is not a number"),
        ("mse=.1,x", "'x' is not a number"),
        ("mse=1.5", "mse must be finite and >= 0 and <= 1, got 1.5"),
        ("mse=-.5", "got -0.5"),
        ("mse=nan", "got nan"),
        ("snr_db=inf", "snr_db must be finite"),
        ("snr_db=5000", "snr_db must be finite and >= -300 and <= 300, got 5000.0"),
        ("snr=10", "Did you mean 'snr_db'"),
        ("=10", "unknown direct preset ''"),
    ],
)
def test_bad_direct_presets_are_refused(text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        channel.get_preset(text)


def test_a_direct_preset_is_either_of_the_two():
    with pytest.raises(InputError, match="either mse or snr_db"):
        DirectPreset()
    with pytest.raises(InputError, match="either mse or snr_db"):
        DirectPreset(mse=(0.1,), snr_db=(1.0,))
    for empty in (DirectPreset, lambda **kw: DirectPreset(snr_db=kw["mse"])):
        with pytest.raises(InputError, match="number of users must be at least 1"):
            empty(mse=())
