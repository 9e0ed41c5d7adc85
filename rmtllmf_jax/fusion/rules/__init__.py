"""Merge rules: pure functions ``(stacked task vectors, options, key) -> merged task vector``."""

from rmtllmf_jax.fusion.rules.adamerging import (
    AdaMerged,
    AdaMergingOptions,
    adamerging,
    prediction_entropy,
)
from rmtllmf_jax.fusion.rules.dare import DareOptions, DareTiesOptions, dare, dare_ties
from rmtllmf_jax.fusion.rules.fisher import FisherOptions, fisher
from rmtllmf_jax.fusion.rules.lata import (
    LataOptions,
    forget,
    lata,
    lata_weights,
    layer_grams,
    leaf_gram,
    reference_cosines,
)
from rmtllmf_jax.fusion.rules.layer_wise import (
    LayerWiseOptions,
    layer_wise,
    layer_wise_weights,
    merge_by_layer,
)
from rmtllmf_jax.fusion.rules.linear import (
    AverageOptions,
    TaskArithmeticOptions,
    average,
    task_arithmetic,
)
from rmtllmf_jax.fusion.rules.registry import RULES, Rule, averages, get_rule
from rmtllmf_jax.fusion.rules.regmean import RegMeanOptions, regmean
from rmtllmf_jax.fusion.rules.ties import TiesOptions, ties

__all__ = [
    "RULES",
    "AdaMerged",
    "AdaMergingOptions",
    "AverageOptions",
    "DareOptions",
    "DareTiesOptions",
    "FisherOptions",
    "LataOptions",
    "LayerWiseOptions",
    "RegMeanOptions",
    "Rule",
    "TaskArithmeticOptions",
    "TiesOptions",
    "adamerging",
    "average",
    "averages",
    "dare",
    "dare_ties",
    "fisher",
    "forget",
    "get_rule",
    "lata",
    "lata_weights",
    "layer_grams",
    "layer_wise",
    "layer_wise_weights",
    "leaf_gram",
    "merge_by_layer",
    "prediction_entropy",
    "reference_cosines",
    "regmean",
    "task_arithmetic",
    "ties",
]
