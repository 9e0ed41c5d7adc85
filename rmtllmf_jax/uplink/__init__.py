"""From the channel's MSE to received task vectors: where channel and fusion meet.

A user's task vector arrives as ``tau_q + e_q`` with ``e_q ~ N(0, kappa_q^2 mu_q I)``, where mu_q
is the user's MSE and kappa_q the scale between a unit-power symbol and a parameter. kappa is
explicit: the paper's "variance = MSE" is kappa = 1, which no real model survives. The error model
says how the errors of different users are correlated: `Independent` (the default) is exact for
MMSE-SIC, `ERROR_MODELS` lists the others. All this is the transport `Gaussian`. `Sparse` and
`Coded` send the best part of a task vector, `Adapter` factors of its matrices, `Qam` and `Analogue`
the parameters as symbols. An estimator (`ESTIMATORS`) makes the best of what arrived.
"""

from rmtllmf_jax.uplink.adapter import Adapter
from rmtllmf_jax.uplink.codes import Chosen, Coded, outage_probability
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
from rmtllmf_jax.uplink.estimators import (
    ESTIMATORS,
    Estimator,
    Reliability,
    Shrink,
    SingularValues,
    get_estimator,
)
from rmtllmf_jax.uplink.gaussian import GAUSSIAN, Gaussian
from rmtllmf_jax.uplink.kappa import DEFAULT_C0_DB, kappa_from_c0, kappa_per_leaf
from rmtllmf_jax.uplink.noise import draw_sources, errors, noise_of_sum, transmit
from rmtllmf_jax.uplink.poison import POISONS, Poison, Scaled, SignFlip
from rmtllmf_jax.uplink.scenario import Scenario
from rmtllmf_jax.uplink.sparse import Sparse, entropy
from rmtllmf_jax.uplink.streaming import StreamedUplink
from rmtllmf_jax.uplink.transports import (
    TRANSPORTS,
    Analogue,
    MseTransport,
    Qam,
    Transport,
    get_transport,
    is_of_mse,
    is_surrogate,
)
from rmtllmf_jax.uplink.vectors import mean_squares

__all__ = [
    "DEFAULT_C0_DB",
    "ERROR_MODELS",
    "ESTIMATORS",
    "GAUSSIAN",
    "INDEPENDENT",
    "POISONS",
    "TRANSPORTS",
    "Adapter",
    "Analogue",
    "Chosen",
    "Coded",
    "Equicorrelated",
    "ErrorModel",
    "Estimator",
    "Gaussian",
    "Independent",
    "Lmmse",
    "MseTransport",
    "NoisyReference",
    "Poison",
    "Qam",
    "Reliability",
    "Scaled",
    "Scenario",
    "Shrink",
    "SignFlip",
    "SingularValues",
    "Sparse",
    "StreamedUplink",
    "Transport",
    "deliver",
    "draw_sources",
    "entropy",
    "errors",
    "get_error_model",
    "get_estimator",
    "get_transport",
    "is_of_mse",
    "is_surrogate",
    "kappa_from_c0",
    "kappa_per_leaf",
    "mean_squares",
    "noise_of_sum",
    "outage_probability",
    "parse_error_model",
    "transmit",
]
