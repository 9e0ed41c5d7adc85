from .accuracy import EvaluationBatch, EvaluationSet, count_correct, evaluation_set
from .disentanglement import combination_wde, pair_wde
from .hypothesis import margin_spread, ratio_spread, rejection_rate, threshold
from .logit_jacobian import Sensitivity, logit_jacobian_norms, margin_jacobian_norms
from .scores import SCORES, cross_entropy, get_score, margin, soft_accuracy
from .statistics import Unlabelled, fisher_information, input_grams

__all__ = [
    "SCORES",
    "EvaluationBatch",
    "EvaluationSet",
    "Sensitivity",
    "Unlabelled",
    "combination_wde",
    "count_correct",
    "cross_entropy",
    "evaluation_set",
    "fisher_information",
    "get_score",
    "input_grams",
    "logit_jacobian_norms",
    "margin",
    "margin_jacobian_norms",
    "margin_spread",
    "pair_wde",
    "ratio_spread",
    "rejection_rate",
    "soft_accuracy",
    "threshold",
]
