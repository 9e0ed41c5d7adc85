"""From the channel's MSE to received task vectors: where channel and fusion meet.

A user's task vector arrives as ``tau_q + e_q`` with ``e_q ~ N(0, kappa_q^2 mu_q I)``, where mu_q
is the user's MSE and kappa_q the scale between a unit-power symbol and a parameter. kappa is
explicit: the paper's "variance = MSE" is kappa = 1, which no real model survives. How the errors of
different users are correlated is the error model: `Independent` (the default) is exact for
MMSE-SIC, `ERROR_MODELS` lists the others. That is the transport `Gaussian`; `Qam` and `Analogue`
send the parameters as symbols.
"""

from rmtllmf_jax.uplink.delivery import deliver
from rmtllmf_jax.uplink.error_models import (
    ERROR_MODELS,
    INDEPENDENT,
    Equicorrelated,
    ErrorModel,
    Independent,
    Lmmse,
    NoisyReference,
    get_error_model,
    parse_error_model,
)
from rmtllmf_jax.uplink.kappa import DEFAULT_C0_DB, kappa_from_c0, kappa_per_leaf
from rmtllmf_jax.uplink.noise import draw_sources, errors, noise_of_sum, transmit
from rmtllmf_jax.uplink.poison import POISONS, Poison, Scaled, SignFlip
from rmtllmf_jax.uplink.scenario import Scenario
from rmtllmf_jax.uplink.transports import (
    GAUSSIAN,
    TRANSPORTS,
    Analogue,
    Gaussian,
    Qam,
    Transport,
    get_transport,
    is_surrogate,
)

__all__ = [
    "DEFAULT_C0_DB",
    "ERROR_MODELS",
    "GAUSSIAN",
    "INDEPENDENT",
    "POISONS",
    "TRANSPORTS",
    "Analogue",
    "Equicorrelated",
    "ErrorModel",
    "Gaussian",
    "Independent",
    "Lmmse",
    "NoisyReference",
    "Poison",
    "Qam",
    "Scaled",
    "Scenario",
    "SignFlip",
    "Transport",
    "deliver",
    "draw_sources",
    "errors",
    "get_error_model",
    "get_transport",
    "is_surrogate",
    "kappa_from_c0",
    "kappa_per_leaf",
    "noise_of_sum",
    "parse_error_model",
    "transmit",
]
