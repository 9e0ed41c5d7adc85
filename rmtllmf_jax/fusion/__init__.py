"""Task-vector algebra and merging, for anyone with pytrees: needs nothing else of this package."""

from rmtllmf_jax.fusion import rules
from rmtllmf_jax.fusion.layers import GRANULARITIES, group_by_layer, layer_of, layers_of
from rmtllmf_jax.fusion.merge import add_to_base, weighted_sum
from rmtllmf_jax.fusion.rules import (
    METHODS,
    AdaMerging,
    Average,
    Dare,
    DareTies,
    Fisher,
    Lata,
    LayerWise,
    MergeMethod,
    RegMean,
    TaskArithmetic,
    Ties,
    one_of,
    parse_method,
)
from rmtllmf_jax.fusion.scale import (
    SCALES,
    ScaleSearch,
    candidate_scales,
    power_law,
    scale_of,
    search_scale,
)
from rmtllmf_jax.fusion.similarity import cosine_matrix, exact_cosines, layer_cosines, rms
from rmtllmf_jax.fusion.task_vectors import TaskVector
from rmtllmf_jax.fusion.trees import (
    leaf_path,
    leaves_by_path,
    matching_paths,
    require_same_structure,
    stack,
    stack_size,
    unstack,
)

__all__ = [
    "GRANULARITIES",
    "METHODS",
    "SCALES",
    "AdaMerging",
    "Average",
    "Dare",
    "DareTies",
    "Fisher",
    "Lata",
    "LayerWise",
    "MergeMethod",
    "RegMean",
    "ScaleSearch",
    "TaskArithmetic",
    "TaskVector",
    "Ties",
    "add_to_base",
    "candidate_scales",
    "cosine_matrix",
    "exact_cosines",
    "group_by_layer",
    "layer_cosines",
    "layer_of",
    "layers_of",
    "leaf_path",
    "leaves_by_path",
    "matching_paths",
    "one_of",
    "parse_method",
    "power_law",
    "require_same_structure",
    "rms",
    "rules",
    "scale_of",
    "search_scale",
    "stack",
    "stack_size",
    "unstack",
    "weighted_sum",
]
