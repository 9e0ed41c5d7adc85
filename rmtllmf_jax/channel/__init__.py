"""The uplink: positions -> H, p -> attack -> the MSE that each user's transmission suffers.

Small complex arrays and nothing else. H~ = H diag(sqrt p) holds path loss, fading and powers; from
there on all is a function of K = H~^H H~ (users x users). Powers are in units of the thermal noise
power per antenna, rates in nats, results in user order::

    mse = user_mse("sum_rate", PRESETS["paper"], jax.random.key(0))      # (users,)

The attack functions live in `channel.attacks` (whose `sum_rate` is an attack; `channel.sum_rate`
is the receiver's rate).
"""

from rmtllmf_jax.channel import attacks
from rmtllmf_jax.channel.attacks import ATTACKS, Attack, get_attack
from rmtllmf_jax.channel.fading import rayleigh
from rmtllmf_jax.channel.geometry import path_amplitude, power_law_path_loss, user_distances
from rmtllmf_jax.channel.presets import ORDERS, PRESETS, ChannelPreset, get_preset
from rmtllmf_jax.channel.realisation import (
    draw_channel,
    draw_channels,
    draw_keys,
    gram,
    received_power,
)
from rmtllmf_jax.channel.receivers import (
    lmmse_mse,
    receiver_mse,
    sic_mse,
    sic_order,
    sic_rates,
    sum_rate,
    sum_rate_lower_bound,
    unbiased_sinr,
)
from rmtllmf_jax.channel.scenarios import SCENARIOS, user_mse, user_mse_from_channel
from rmtllmf_jax.channel.sum_rate_attack import sum_rate_powers

__all__ = [
    "ATTACKS",
    "ORDERS",
    "PRESETS",
    "SCENARIOS",
    "Attack",
    "ChannelPreset",
    "attacks",
    "draw_channel",
    "draw_channels",
    "draw_keys",
    "get_attack",
    "get_preset",
    "gram",
    "lmmse_mse",
    "path_amplitude",
    "power_law_path_loss",
    "rayleigh",
    "received_power",
    "receiver_mse",
    "sic_mse",
    "sic_order",
    "sic_rates",
    "sum_rate",
    "sum_rate_lower_bound",
    "sum_rate_powers",
    "unbiased_sinr",
    "user_distances",
    "user_mse",
    "user_mse_from_channel",
]
