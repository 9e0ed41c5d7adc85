"""The uplink: positions -> H, p -> attack -> the MSE that each user's transmission suffers.

Small complex arrays and nothing else. H~ = H diag(sqrt p) holds path loss, fading and powers; from
there on all is a function of K = H~^H H~ (users x users). Powers are in units of the thermal noise
power per antenna, rates in nats, results in user order::

    mse = user_mse("sum_rate", PRESETS["paper"], jax.random.key(0))      # (users,)

Modules with names of their own: `attacks` (whose `sum_rate` is an attack; `channel.sum_rate` is the
receiver's rate), `fading`, `path_loss`, `power_control`, `modem`, `quantise` and `link` (the uplink
symbol by symbol), and `snr` (what SNR can mean).
"""

from rmtllmf_jax.channel import (
    attacks,
    fading,
    link,
    modem,
    path_loss,
    power_control,
    quantise,
    snr,
)
from rmtllmf_jax.channel.attacks import ATTACKS, Attack, get_attack
from rmtllmf_jax.channel.checks import check_uplink
from rmtllmf_jax.channel.covariances import (
    attack_covariance,
    effective_gram,
    mismatched_mse,
    user_mse_from_covariance,
)
from rmtllmf_jax.channel.equalise import Equaliser, error_covariance_of, mmse_equaliser
from rmtllmf_jax.channel.fading import (
    Fading,
    Kronecker,
    Rayleigh,
    Rician,
    exponential_correlation,
    kronecker,
    rayleigh,
    rician,
    steering_vectors,
)
from rmtllmf_jax.channel.geometry import (
    PLACEMENTS,
    angles_from_positions,
    distances_from_positions,
    user_distances,
    user_distances_by_area,
)
from rmtllmf_jax.channel.link_budget import LinkBudget
from rmtllmf_jax.channel.min_max_rate_attack import min_max_weights
from rmtllmf_jax.channel.path_loss import FreeSpace, PathLoss, PowerLaw, UrbanMacro, UrbanMicro
from rmtllmf_jax.channel.power_control import POWER_CONTROLS
from rmtllmf_jax.channel.presets import (
    ORDERS,
    PRESETS,
    ChannelPreset,
    DirectPreset,
    Preset,
    get_preset,
    require_channel_preset,
)
from rmtllmf_jax.channel.realisation import (
    channel_at,
    draw_channel,
    draw_channels,
    draw_distances,
    draw_keys,
    gram,
    received_power,
)
from rmtllmf_jax.channel.receivers import (
    error_covariance,
    lmmse_mse,
    matched_filter_mse,
    receiver_mse,
    sic_mse,
    sic_order,
    sic_rates,
    sum_rate,
    sum_rate_lower_bound,
    unbiased_sinr,
)
from rmtllmf_jax.channel.scenarios import SCENARIOS, user_mse, user_mse_from_channel
from rmtllmf_jax.channel.sum_mse_attack import sum_mse_powers
from rmtllmf_jax.channel.sum_rate_attack import floor_aware_powers, sum_rate_powers

__all__ = [
    "ATTACKS",
    "ORDERS",
    "PLACEMENTS",
    "POWER_CONTROLS",
    "PRESETS",
    "SCENARIOS",
    "Attack",
    "ChannelPreset",
    "DirectPreset",
    "Equaliser",
    "Fading",
    "FreeSpace",
    "Kronecker",
    "LinkBudget",
    "PathLoss",
    "PowerLaw",
    "Preset",
    "Rayleigh",
    "Rician",
    "UrbanMacro",
    "UrbanMicro",
    "angles_from_positions",
    "attack_covariance",
    "attacks",
    "channel_at",
    "check_uplink",
    "distances_from_positions",
    "draw_channel",
    "draw_channels",
    "draw_distances",
    "draw_keys",
    "effective_gram",
    "error_covariance",
    "error_covariance_of",
    "exponential_correlation",
    "fading",
    "floor_aware_powers",
    "get_attack",
    "get_preset",
    "gram",
    "kronecker",
    "link",
    "lmmse_mse",
    "matched_filter_mse",
    "min_max_weights",
    "mismatched_mse",
    "mmse_equaliser",
    "modem",
    "path_loss",
    "power_control",
    "quantise",
    "rayleigh",
    "received_power",
    "receiver_mse",
    "require_channel_preset",
    "rician",
    "sic_mse",
    "sic_order",
    "sic_rates",
    "snr",
    "steering_vectors",
    "sum_mse_powers",
    "sum_rate",
    "sum_rate_lower_bound",
    "sum_rate_powers",
    "unbiased_sinr",
    "user_distances",
    "user_distances_by_area",
    "user_mse",
    "user_mse_from_channel",
    "user_mse_from_covariance",
]
