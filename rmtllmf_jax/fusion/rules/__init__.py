"""Merge methods: frozen dataclasses, ``method(stacked, key=None, *, weights=None) -> merged``."""

from rmtllmf_jax.fusion.rules.adamerging import AdaMerged, AdaMerging, prediction_entropy
from rmtllmf_jax.fusion.rules.choice import METHODS, OneOf, methods_of, one_of, parse_method
from rmtllmf_jax.fusion.rules.consensus import ConsensusTa
from rmtllmf_jax.fusion.rules.fisher import Fisher
from rmtllmf_jax.fusion.rules.lata import (
    Lata,
    forget,
    lata_weights,
    layer_grams,
    leaf_gram,
    reference_cosines,
)
from rmtllmf_jax.fusion.rules.layer_wise import LayerWeighted, LayerWise, merge_by_layer
from rmtllmf_jax.fusion.rules.linear import TASK_ARITHMETIC, Average, TaskArithmetic
from rmtllmf_jax.fusion.rules.method import MergeMethod, Method, fact
from rmtllmf_jax.fusion.rules.model_stock import ModelStock
from rmtllmf_jax.fusion.rules.regmean import RegMean
from rmtllmf_jax.fusion.rules.robust import ClippedNorm, Median, TrimmedMean
from rmtllmf_jax.fusion.rules.singular import TsvMerge
from rmtllmf_jax.fusion.rules.sparsified import (
    Breadcrumbs,
    Dare,
    DareTies,
    Della,
    DellaLinear,
    Sparsified,
    Ties,
)
from rmtllmf_jax.fusion.rules.spherical import MultiSlerp, Slerp

__all__ = [
    "METHODS",
    "TASK_ARITHMETIC",
    "AdaMerged",
    "AdaMerging",
    "Average",
    "Breadcrumbs",
    "ClippedNorm",
    "ConsensusTa",
    "Dare",
    "DareTies",
    "Della",
    "DellaLinear",
    "Fisher",
    "Lata",
    "LayerWeighted",
    "LayerWise",
    "Median",
    "MergeMethod",
    "Method",
    "ModelStock",
    "MultiSlerp",
    "OneOf",
    "RegMean",
    "Slerp",
    "Sparsified",
    "TaskArithmetic",
    "Ties",
    "TrimmedMean",
    "TsvMerge",
    "fact",
    "forget",
    "lata_weights",
    "layer_grams",
    "leaf_gram",
    "merge_by_layer",
    "methods_of",
    "one_of",
    "parse_method",
    "prediction_entropy",
    "reference_cosines",
]
