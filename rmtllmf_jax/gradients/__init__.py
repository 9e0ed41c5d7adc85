"""Derivatives of the fused model's score with respect to the channel, the attack and the merge.

`Objective` is the pure function ``(parameters, key) -> score``; `Parameters` holds what it is
differentiated with respect to; `check_gradient` compares its gradient with finite differences.
"""

from rmtllmf_jax.evaluation.batches import samples_of
from rmtllmf_jax.gradients.check import TOLERANCE, Agreement, check_gradient
from rmtllmf_jax.gradients.estimators import Estimate, pathwise, score_function
from rmtllmf_jax.gradients.learned import (
    Saddle,
    attack_at,
    learn_attack,
    learn_defence,
    learn_powers,
    learn_scales,
    max_min_powers,
)
from rmtllmf_jax.gradients.link import user_mse
from rmtllmf_jax.gradients.objective import (
    Objective,
    Setting,
    layer_names,
    score_of_model,
    value,
    value_and_gradient,
)
from rmtllmf_jax.gradients.optimise import ADAM, TOGETHER, Optimum, optimise
from rmtllmf_jax.gradients.parameters import (
    Parameters,
    attack_entries,
    covariance_root,
    require_place,
)
from rmtllmf_jax.gradients.projections import (
    AttackLimit,
    DefenceLimits,
    NotNegative,
    PowerLimits,
    Projection,
)
from rmtllmf_jax.gradients.sensitivity import Sensitivity, sensitivity

__all__ = [
    "ADAM",
    "TOGETHER",
    "TOLERANCE",
    "Agreement",
    "AttackLimit",
    "DefenceLimits",
    "Estimate",
    "NotNegative",
    "Objective",
    "Optimum",
    "Parameters",
    "PowerLimits",
    "Projection",
    "Saddle",
    "Sensitivity",
    "Setting",
    "attack_at",
    "attack_entries",
    "check_gradient",
    "covariance_root",
    "layer_names",
    "learn_attack",
    "learn_defence",
    "learn_powers",
    "learn_scales",
    "max_min_powers",
    "optimise",
    "pathwise",
    "require_place",
    "samples_of",
    "score_function",
    "score_of_model",
    "sensitivity",
    "user_mse",
    "value",
    "value_and_gradient",
]
