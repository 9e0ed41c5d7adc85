"""The weights of a layer-wise merge: a figure and a table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from rmtllmf_jax.common.files import write_bytes
from rmtllmf_jax.report.sheets import Sheet

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "x", "*")
_NAMED = 40  # beyond this number only every few layers are labelled

Weights = Mapping[str, Sequence[float]]


def layer_weights_figure(weights: Weights, models: Sequence[str], title: str) -> Figure:
    """Draw the weight of each model in each layer, in the order of the layers.

    **Arguments:**

    - `weights`: one number per model, by layer.
    """
    layers = list(weights)
    height = 2.6 + 0.05 * min(60, max(map(len, layers)))
    width = min(16.0, max(5.0, 2.0 + 0.25 * len(layers)))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(models):
        axes.plot(
            range(len(layers)),
            [weights[layer][number] for layer in layers],
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            label=model,
        )
    every = -(-len(layers) // _NAMED)
    axes.set_xticks(range(0, len(layers), every), layers[::every], rotation=90, fontsize=7)
    axes.set_ylabel("Weight of the task vector")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(4, len(models)), frameon=False)
    return figure


def layer_weights_sheet(
    weights: Weights, models: Sequence[str], tensors: Mapping[str, int], title: str
) -> Sheet:
    """Return the weights as a table: layer, number of its tensors, and one column per model."""
    rows = [
        [layer, str(tensors[layer]), *(f"{weight:.3f}" for weight in row)]
        for layer, row in weights.items()
    ]
    return Sheet(title, ["layer", "tensors", *models], rows)


def write_layer_weights(path: Path, weights: Weights, models: Sequence[str], title: str) -> None:
    """Write the figure as PNG; same weights, same bytes."""
    buffer = io.BytesIO()
    layer_weights_figure(weights, models, title).savefig(buffer, format="png", dpi=150)
    write_bytes(path, buffer.getvalue())
