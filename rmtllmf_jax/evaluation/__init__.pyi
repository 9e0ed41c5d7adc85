from .batches import Batch, EvaluationSet, evaluation_set
from .disentanglement import combination_wde, pair_wde
from .hypothesis import margin_spread, ratio_spread, rejection_rate, threshold
from .logit_jacobian import Sensitivity, logit_jacobian_norms, margin_jacobian_norms
from .metrics import (
    METRICS,
    Accuracy,
    CrossEntropy,
    Margin,
    Metric,
    PerSample,
    SoftAccuracy,
    get_metric,
)
from .statistics import Unlabelled, fisher_information, input_grams

__all__ = [
    "METRICS",
    "Accuracy",
    "Batch",
    "CrossEntropy",
    "EvaluationSet",
    "Margin",
    "Metric",
    "PerSample",
    "Sensitivity",
    "SoftAccuracy",
    "Unlabelled",
    "combination_wde",
    "evaluation_set",
    "fisher_information",
    "get_metric",
    "input_grams",
    "logit_jacobian_norms",
    "margin_jacobian_norms",
    "margin_spread",
    "pair_wde",
    "ratio_spread",
    "rejection_rate",
    "threshold",
]
