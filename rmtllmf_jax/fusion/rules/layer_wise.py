"""Weights by layer: any layer of any task vector has its own.

>>> import jax.numpy as jnp
>>> stacked = {"layers": {str(n): {"w": jnp.array([[1.0], [10.0]])} for n in range(3)}}
>>> options = LayerWiseOptions({"layers/0": 0.0, "layers/1": (1.0, 0.5), "layers/.*": 1.0})
>>> [leaf["w"].tolist() for leaf in layer_wise(stacked, options)["layers"].values()]
[[0.0], [6.0], [11.0]]
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.fusion.layers import GRANULARITIES, group_by_layer, layer_of
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    check_weights,
    merge_leaves,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.trees import check_stacked, leaves_by_path


@jax.tree_util.register_static
@dataclass(frozen=True)
class LayerWiseOptions:
    """Options of `layer_wise`."""

    layers: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    """Weights by layer: its name, or a regular expression for whole names; the first that matches
    counts, a name before any expression. One number for all task vectors, or one for each."""
    default: float | None = None
    """Weight of the layers that nothing matches; none: every layer must be matched."""
    granularity: str = "block"
    """What a layer is: `block` or `tensor`."""
    weights: tuple[float, ...] = ()
    """One weight a task vector, times those by layer; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check what can be checked without the layers' names."""
        check_weights(self.weights)
        require_known("granularity", self.granularity, GRANULARITIES)
        for pattern, given in self.layers.items():
            check_weights(given if isinstance(given, tuple) else (given,))
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"layers: {pattern!r} is neither a name nor a regular expression ({error})."
                ) from None

    def __hash__(self) -> int:
        """Hash by content, as the options of the other rules do: the layers in their order."""
        return hash((tuple(self.layers.items()), self.default, self.granularity, self.weights))

    def __eq__(self, other: object) -> bool:
        """Compare by content; the order of the layers counts."""
        if not isinstance(other, LayerWiseOptions):
            return NotImplemented
        mine, theirs = (
            (list(o.layers.items()), o.default, o.granularity, o.weights) for o in (self, other)
        )
        return mine == theirs


def layer_wise(
    stacked: PyTree[Array],
    options: LayerWiseOptions,
    key: Key[Array, ""] | None = None,
    *,
    weights: PerUser | None = None,
) -> PyTree[Array]:
    """Return ``sum_q w_q w_lq tau_lq`` in each layer l.

    For files, leaf by leaf: `layer_wise_weights` of all names, then `merge_by_layer` of each leaf.

    **Arguments:**

    - `stacked`: leaves with a leading axis of Q users (`fusion.stack`), real floating-point.
    - `options`: the weights by layer.
    - `key`: not used.
    - `weights`: w_q in place of the options' weights; an array to map over or differentiate by.

    **Returns:** leaves without the leading axis, of the same types; sums are in float32 or wider.

    **Raises:** `InputError` if a name or expression matches no layer, if a layer has no weight, if
    a number of weights is not Q, if the leaves have no common leading axis, or hold integers.

    Reference: the general form of Yang et al., arXiv 2310.02575, and Chen et al., arXiv 2502.20186.
    """
    users = check_stacked(stacked)
    by_layer = layer_wise_weights(leaves_by_path(stacked), options, users)
    by_user = user_weights(options.weights, users, weights)
    by_layer = {layer: by_user * w for layer, w in by_layer.items()}
    return merge_by_layer(stacked, by_layer, options.granularity)


def layer_wise_weights(
    paths: Iterable[str], options: LayerWiseOptions, users: int
) -> dict[str, Float[Array, " users"]]:
    """Return the weights by layer, for all layers of these leaves; `options.weights` left out.

    **Raises:** `InputError` that names what matches no layer, the layers without a weight, and
    weights whose number is not that of the users.
    """
    layers = list(group_by_layer(paths, options.granularity))
    chosen: dict[str, float | tuple[float, ...]] = {}
    for pattern, given in options.layers.items():
        if pattern in layers:
            matched = [pattern]
            chosen.pop(pattern, None)  # a name goes before any expression
        else:
            matched = [layer for layer in layers if re.fullmatch(pattern, layer)]
        if not matched:
            nearest = difflib.get_close_matches(pattern, layers, n=1, cutoff=0.5)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"layers: {pattern!r} matches no layer.{hint} {_listed(layers)}")
        for layer in matched:
            chosen.setdefault(layer, given)
    missing = [layer for layer in layers if layer not in chosen]
    if missing and options.default is None:
        raise InputError(
            f"no weight for {', '.join(missing)}: name them in layers, or set default."
        )

    def expand(layer: str) -> Array:
        given = chosen.get(layer, options.default)
        row = given if isinstance(given, tuple) else (given,) * users
        if len(row) != users:
            raise InputError(
                f"layer {layer}: {len(row)} weights given for {users} task vectors; "
                "give one number, or one for each."
            )
        return jnp.asarray(row, float)

    return {layer: expand(layer) for layer in layers}


def merge_by_layer(
    stacked: PyTree[Array], weights: Mapping[str, Float[Array, " users"]], granularity: str
) -> PyTree[Array]:
    """Return ``sum_q w_lq tau_lq``, l the leaf's layer: also of a part of a model's leaves.

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
