"""Similarity of task vectors: the matrix of their cosines, and the cosines layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.heat_maps import draw_matrix


def similarity_figure(
    tasks: Sequence[str],
    cosines: Float[np.ndarray, "tasks tasks"],
    by_layer: Mapping[str, Float[np.ndarray, "tasks tasks"]],
) -> Figure:
    """Draw the cosines of task vectors (`fusion.exact_cosines`) beside those of their layers.

    The right panel has one mark per layer (`fusion.layer_cosines`): the mean over pairs of tasks
    and their range; none where a layer is zero in all pairs.

    **Raises:** `InputError` if there are fewer than two tasks.
    """
    if len(tasks) < 2:
        raise InputError(f"cosines need two task vectors or more, got {list(tasks)}.")
    side = max(0.55 * len(tasks), 2.6)
    height = max(side + 0.9, 0.22 * len(by_layer) + 1.4)
    figure = Figure(figsize=(2 * side + 3.4, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = draw_matrix(left, np.asarray(cosines), list(tasks))
    left.set_title("All parameters", fontsize=11)
    figure.colorbar(image, ax=left, fraction=0.05, pad=0.02).set_label("Cosine similarity")

    pairs = np.triu_indices(len(tasks), k=1)
    for place, matrix in enumerate(by_layer.values()):
        values = matrix[pairs][np.isfinite(matrix[pairs])]
        if values.size:  # a layer that a task left unchanged has no direction
            mean = values.mean()
            reach = [[mean - values.min()], [values.max() - mean]]
            right.errorbar(mean, place, xerr=reach, fmt="o", color="C0", capsize=2)
    right.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    right.set_yticks(range(len(by_layer)), list(by_layer), fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("Cosine between two tasks: mean, smallest, largest")
    right.set_title("Layer by layer", fontsize=11)
    right.spines[["top", "right"]].set_visible(False)
    return figure
