"""Weights by layer: each layer of each task vector has its own.

>>> import jax.numpy as jnp
>>> stacked = {"layers": {str(n): {"w": jnp.array([[1.0], [10.0]])} for n in range(3)}}
>>> method = LayerWise({"layers/0": 0.0, "layers/1": (1.0, 0.5), "layers/.*": 1.0})
>>> [leaf["w"].tolist() for leaf in method(stacked)["layers"].values()]
[[0.0], [6.0], [11.0]]
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import by_name, described
from rmtllmf_jax.fusion.layers import (
    GRANULARITIES,
    Granularity,
    Layers,
    group_by_layer,
    layer_of,
    require_granularity,
)
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    check_weights,
    merge_leaves,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import check_stacked, leaves_by_path

Grams = Mapping[str, Float[Array, "vectors vectors"]]
"""Inner products of the task vectors, and of a reference as a last one, by layer."""


LAYERS: dict[str, Any] = {name: name for name in GRANULARITIES} | by_name(Layers)
"""What a command line can choose a granularity from."""


class LayerWeighted(MergeMethod):
    """Base of methods that only weight task vectors by layer: ``sum_q w_lq tau_lq``, l the layer.

    For files: `by_layer` of all names, then `merge_by_layer` of each leaf.
    """

    compares: ClassVar[bool] = False
    """Weights follow from the layers' inner products, see `lata.layer_grams`."""
    choices: ClassVar[Mapping[str, Any]] = {"granularity": LAYERS}
    granularity: Granularity
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check what all have."""
        super().__post_init__()
        require_granularity(self.granularity)

    def by_layer(
        self, paths: Iterable[str], weights: Float[Array, " users"], grams: Grams | None = None
    ) -> dict[str, Float[Array, " users"]]:
        """Return ``w_lq``, the users' weights included, for the layers of these leaves.

        `grams` are for methods with `compares`.
        """
        raise NotImplementedError

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`.

        **Raises:** `InputError` also for layers, see `by_layer`.
        """
        by_user = user_weights(self.weights, check_stacked(stacked), weights)
        by_layer = self.by_layer(leaves_by_path(stacked), by_user)
        return merge_by_layer(stacked, by_layer, self.granularity)


@dataclass(frozen=True, eq=False)
class LayerWise(LayerWeighted):
    """``sum_q w_q w_lq tau_lq`` in each layer l, the weights given."""

    title: ClassVar[str] = "weights by layer"
    reference: ClassVar[str] = "general form of arXiv 2310.02575 and arXiv 2502.20186"

    layers: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    """Weights by layer: its name, or a regular expression for whole names; the first that matches
    counts, a name before any expression. One number for all task vectors, or one for each."""
    default: float | None = None
    """Weight of the layers that nothing matches; none: every layer must be matched."""
    granularity: Granularity = "block"
    """What a layer is: `block`, `tensor`, or an expression, `layers(pattern='.*?stage\\d+')`."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, times those by layer; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check what can be checked without the layers' names."""
        super().__post_init__()
        if not self.layers and self.default is None:
            raise InputError("layer_wise has no weights: name layers, or set default.")
        for pattern, given in self.layers.items():
            check_weights(given if isinstance(given, tuple) else (given,))
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"layers: {pattern!r} is neither a name nor a regular expression ({error})."
                ) from None

    def __hash__(self) -> int:
        """Hash by content; the order of the layers counts."""
        return hash(described(self))

    def __eq__(self, other: object) -> bool:
        """Compare by content; the order of the layers counts."""
        return isinstance(other, LayerWise) and described(self) == described(other)

    def by_layer(
        self, paths: Iterable[str], weights: Float[Array, " users"], grams: Grams | None = None
    ) -> dict[str, Float[Array, " users"]]:
        """Return the weights by layer.

        **Raises:** `InputError` that names patterns that match no layer, layers without a weight,
        and weights that are not one per user.
        """
        names = list(group_by_layer(paths, self.granularity))
        chosen: dict[str, float | tuple[float, ...]] = {}
        for pattern, given in self.layers.items():
            if pattern in names:
                matched = [pattern]
                chosen.pop(pattern, None)  # a name goes before any expression
            else:
                matched = [layer for layer in names if re.fullmatch(pattern, layer)]
            if not matched:
                nearest = difflib.get_close_matches(pattern, names, n=1, cutoff=0.5)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise InputError(f"layers: {pattern!r} matches no layer.{hint} {_listed(names)}")
            for layer in matched:
                chosen.setdefault(layer, given)
        missing = [layer for layer in names if layer not in chosen]
        if missing and self.default is None:
            raise InputError(
                f"no weight for {', '.join(missing)}: name them in layers, or set default."
            )

        def expand(layer: str) -> Array:
            given = chosen.get(layer, self.default)
            row = given if isinstance(given, tuple) else (given,) * len(weights)
            if len(row) != len(weights):
                raise InputError(
                    f"layer {layer}: {len(row)} weights given for {len(weights)} task vectors; "
                    "give one number, or one for each."
                )
            return weights * jnp.asarray(row, float)

        return {layer: expand(layer) for layer in names}


def merge_by_layer(
    stacked: PyTree[Array], weights: Mapping[str, Float[Array, " users"]], granularity: Granularity
) -> PyTree[Array]:
    """Return ``sum_q w_lq tau_lq``, l the leaf's layer; also for a part of a model's leaves.

    **Raises:** `InputError` if a leaf's layer has no weights, or if the leaves cannot be merged.
    """
    check_stacked(stacked)

    def merge(path: str, leaf: Array) -> Array:
        layer = layer_of(path, granularity)
        if layer not in weights:
            raise InputError(f"{path}: no weights for its layer {layer}. {_listed(list(weights))}")
        return weighted(user_weights((), leaf.shape[0], weights[layer]), leaf)

    return merge_leaves(merge, stacked)


def _listed(layers: list[str]) -> str:
    return f"Layers: {', '.join(layers)}."
