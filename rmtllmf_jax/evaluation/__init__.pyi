from .batches import Batch, EvaluationSet, evaluation_set
from .classify import Predictions, classify
from .disentanglement import combination_wde, pair_wde
from .hypothesis import margin_spread, ratio_spread, rejection_rate, threshold
from .known import get_metric
from .language import (
    LANGUAGE_METRICS,
    AnswerAccuracy,
    BitsPerByte,
    NegativeLogLikelihood,
    Perplexity,
    TokenLoss,
    evaluate,
    language_outputs,
    question_batches,
    text_batches,
)
from .logit_jacobian import Sensitivity, logit_jacobian_norms, margin_jacobian_norms
from .metrics import (
    METRICS,
    Accuracy,
    CrossEntropy,
    Margin,
    Metric,
    PerSample,
    SoftAccuracy,
)
from .statistics import Unlabelled, fisher_information, input_grams

__all__ = [
    "LANGUAGE_METRICS",
    "METRICS",
    "Accuracy",
    "AnswerAccuracy",
    "Batch",
    "BitsPerByte",
    "CrossEntropy",
    "EvaluationSet",
    "Margin",
    "Metric",
    "NegativeLogLikelihood",
    "PerSample",
    "Perplexity",
    "Predictions",
    "Sensitivity",
    "SoftAccuracy",
    "TokenLoss",
    "Unlabelled",
    "classify",
    "combination_wde",
    "evaluate",
    "evaluation_set",
    "fisher_information",
    "get_metric",
    "input_grams",
    "language_outputs",
    "logit_jacobian_norms",
    "margin_jacobian_norms",
    "margin_spread",
    "pair_wde",
    "question_batches",
    "ratio_spread",
    "rejection_rate",
    "text_batches",
    "threshold",
]
