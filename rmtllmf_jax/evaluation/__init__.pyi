from .batches import Batch, EvaluationSet, evaluation_set
from .disentanglement import TaskSamples, combination_wde, pair_wde
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
    "TaskSamples",
    "combination_wde",
    "evaluation_set",
    "get_metric",
    "logit_jacobian_norms",
    "margin_jacobian_norms",
    "margin_spread",
    "pair_wde",
    "ratio_spread",
    "rejection_rate",
    "threshold",
]
