"""The uplink: positions -> H, p -> attack -> the MSE that each user's transmission suffers.

Small complex arrays and nothing else. H~ = H diag(sqrt p) holds path loss, fading and powers; from
there on all is a function of K = H~^H H~ (users x users). Powers are in units of the thermal noise
power per antenna, rates in nats, results in user order::

    mse = Link(PRESETS["paper"], SumRate(), Sic()).mse(jax.random.key(0))      # (users,)

Modules with names of their own: `attacks`, `receivers`, `fading`, `path_loss`, `power_control`,
`modem`, `quantise` and `link` (the uplink symbol by symbol), and `snr` (what SNR can mean).
"""

from rmtllmf_jax.channel import (
    attacks,
    fading,
    link,
    modem,
    path_loss,
    power_control,
    quantise,
    receivers,
    snr,
)
from rmtllmf_jax.channel.attacks import (
    ATTACKS,
    NO_ATTACK,
    Attack,
    MinMaxRate,
    NoAttack,
    StrongestUser,
    SumMse,
    SumRate,
    SumRateFloorAware,
    Towards,
    White,
    WhiteInRange,
    attacked_gram,
)
from rmtllmf_jax.channel.chain import (
    Link,
    Scenario,
    mse_of,
    user_errors,
    user_mse,
    user_rates,
)
from rmtllmf_jax.channel.checks import check_uplink
from rmtllmf_jax.channel.coloured_noise import effective_gram
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
from rmtllmf_jax.channel.matrices import Matrices
from rmtllmf_jax.channel.min_max_rate_attack import min_max_weights
from rmtllmf_jax.channel.path_loss import FreeSpace, PathLoss, PowerLaw, UrbanMacro, UrbanMicro
from rmtllmf_jax.channel.power_control import POWER_CONTROLS
from rmtllmf_jax.channel.presets import (
    PRESETS,
    ChannelPreset,
    DirectPreset,
    Preset,
    get_preset,
    require_channel_preset,
)
from rmtllmf_jax.channel.rates import (
    ORDERS,
    error_covariance,
    lmmse_mse,
    matched_filter_mse,
    sic_mse,
    sic_order,
    sic_rates,
    sum_rate,
    sum_rate_lower_bound,
    unbiased_sinr,
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
    RECEIVERS,
    SIC,
    Estimated,
    Lmmse,
    MatchedFilter,
    Receiver,
    Sic,
    Unaware,
    get_receiver,
)
from rmtllmf_jax.channel.sum_mse_attack import sum_mse_powers
from rmtllmf_jax.channel.sum_rate_attack import floor_aware_powers, sum_rate_powers

__all__ = [
    "ATTACKS",
    "NO_ATTACK",
    "ORDERS",
    "PLACEMENTS",
    "POWER_CONTROLS",
    "PRESETS",
    "RECEIVERS",
    "SIC",
    "Attack",
    "ChannelPreset",
    "DirectPreset",
    "Equaliser",
    "Estimated",
    "Fading",
    "FreeSpace",
    "Kronecker",
    "Link",
    "LinkBudget",
    "Lmmse",
    "MatchedFilter",
    "Matrices",
    "MinMaxRate",
    "NoAttack",
    "PathLoss",
    "PowerLaw",
    "Preset",
    "Rayleigh",
    "Receiver",
    "Rician",
    "Scenario",
    "Sic",
    "StrongestUser",
    "SumMse",
    "SumRate",
    "SumRateFloorAware",
    "Towards",
    "Unaware",
    "UrbanMacro",
    "UrbanMicro",
    "White",
    "WhiteInRange",
    "angles_from_positions",
    "attacked_gram",
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
    "get_preset",
    "get_receiver",
    "gram",
    "kronecker",
    "link",
    "lmmse_mse",
    "matched_filter_mse",
    "min_max_weights",
    "mmse_equaliser",
    "modem",
    "mse_of",
    "path_loss",
    "power_control",
    "quantise",
    "rayleigh",
    "received_power",
    "receivers",
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
    "user_errors",
    "user_mse",
    "user_rates",
]
