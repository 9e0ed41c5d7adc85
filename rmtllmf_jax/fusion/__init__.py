"""Task-vector algebra and merging, for anyone with pytrees: needs nothing else of this package."""

from rmtllmf_jax.fusion.merge import add_to_base, weighted_sum
from rmtllmf_jax.fusion.scale import power_law
from rmtllmf_jax.fusion.similarity import cosine_matrix, rms
from rmtllmf_jax.fusion.task_vectors import TaskVector
from rmtllmf_jax.fusion.trees import (
    leaf_path,
    leaves_by_path,
    require_same_structure,
    stack,
    stack_size,
    unstack,
)

__all__ = [
    "TaskVector",
    "add_to_base",
    "cosine_matrix",
    "leaf_path",
    "leaves_by_path",
    "power_law",
    "require_same_structure",
    "rms",
    "stack",
    "stack_size",
    "unstack",
    "weighted_sum",
]
