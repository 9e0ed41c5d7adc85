"""LATA-style merging: layers similar to the reference get less weight.

**What is public and what is ours.** The paper (Chen et al., "Layer-Aware Task Arithmetic", arXiv
2502.20186) ranks a model's layers by the cosine of task vector and instruction vector and lowers
the weights of those most alike, linearly by rank, logarithmically by rank, or to 0 above a
threshold. Its exact offsets, what it calls a layer, and its treatment of ties are not public. Ours
are: weights from 0 (first rank) to 1 (last), layers as an option, ties by the order of the layers'
names, the mean of the other task vectors where there is no instruction model. Hence "LATA-style".

>>> import jax.numpy as jnp
>>> stacked = {"layers": {str(n): {"w": jnp.array([[1.0, 0.0]])} for n in range(2)}}
>>> iota = {"layers": {"0": {"w": jnp.array([2.0, 0.0])}, "1": {"w": jnp.array([0.0, 2.0])}}}
>>> merged = Lata()(stacked, reference=iota)["layers"]
>>> merged["0"]["w"].tolist(), merged["1"]["w"].tolist()              # layer 0 is like iota
([0.0, 0.0], [1.0, 0.0])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.fusion.layers import Granularity, group_by_layer
from rmtllmf_jax.fusion.merge import add_to_base
from rmtllmf_jax.fusion.rules.layer_wise import Grams, LayerWeighted, merge_by_layer
from rmtllmf_jax.fusion.rules.leaves import PerUser, user_weights
from rmtllmf_jax.fusion.similarity import inner_products
from rmtllmf_jax.fusion.trees import check_stacked, leaves_by_path, require_same_structure, widened

WEIGHTINGS = ("linear", "logarithmic", "threshold")


@dataclass(frozen=True)
class Lata(LayerWeighted):
    """``sum_q w_q w_lq tau_lq``, the w_lq from the similarity of tau_lq to the reference.

    In each layer l ``s_lq = cos(tau_lq, iota_l)``; over the layers of one task, r is the rank by
    descending s, 1 to L. Ties go by the order of the layers' names, numbers in them as numbers.
    Then ``w_lq = (r - 1) / (L - 1)`` (linear), ``log r / log L`` (logarithmic) or
    ``1{s_lq <= sigma}`` (threshold). A model with one layer has nothing to rank: weight 1. A layer
    in which tau or iota is zero has s = 0. Weights by layer lie in [0, 1], do not change if tau or
    iota is multiplied by a positive number, and are constants for differentiation.

    Merging adds the result to the base; forgetting subtracts it (`forget`, or a negative scale).
    """

    title: ClassVar[str] = "LATA-style"
    reference: ClassVar[str] = "after Chen et al., arXiv 2502.20186"
    takes: ClassVar[tuple[str, ...]] = ("reference",)
    compares: ClassVar[bool] = True
    # Adds about half.
    scales: ClassVar[tuple[float, ...]] = (0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6, 2.2)

    weighting: str = "linear"
    """Weights by rank, `linear` or `logarithmic`, or by cosine, `threshold`."""
    sigma: float = 0.5
    """With `threshold`: layers whose cosine is above it count nothing; 1 is task arithmetic."""
    granularity: Granularity = "block"
    """What a layer is: `block`, `tensor`, or an expression, `layers(pattern='.*?stage\\d+')`."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, times those by layer; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the names and numbers."""
        super().__post_init__()
        require_known("weighting", self.weighting, WEIGHTINGS)
        if not -1 <= self.sigma <= 1:
            raise InputError(f"sigma must be a cosine, -1 to 1, got {self.sigma!r}.")

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
        reference: PyTree[Array] | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`.

        `reference` is the vector iota (for LLMs: instruct minus pretrained), shaped like one task
        vector; without it, iota is for each task the mean of the other task vectors. A user with
        weight 0 is not part of that mean.

        **Raises:** `InputError` also if there is neither a reference nor a second task vector, or
        if the reference does not match the task vectors (with every differing path).
        """
        by_user = user_weights(self.weights, check_stacked(stacked), weights)
        grams = layer_grams(stacked, self.granularity, reference)
        by_layer = self.by_layer(leaves_by_path(stacked), by_user, grams)
        return merge_by_layer(stacked, by_layer, self.granularity)

    def by_layer(
        self, paths: Iterable[str], weights: Float[Array, " users"], grams: Grams | None = None
    ) -> dict[str, Float[Array, " users"]]:
        """Return the weights by layer from `grams`; an extra vector is the reference."""
        if grams is None:
            raise InputError("lata compares layers: give their inner products, see layer_grams.")
        cosines = reference_cosines(grams, len(weights), active=weights != 0)
        return {layer: weights * w for layer, w in lata_weights(cosines, self).items()}


def layer_grams(
    stacked: PyTree[Array], granularity: Granularity, reference: PyTree[Array] | None = None
) -> dict[str, Float[Array, "vectors vectors"]]:
    """Return the inner products of the task vectors, the reference last, in each layer.

    **Raises:** `InputError` if the reference does not match the task vectors.
    """
    leaves = leaves_by_path(stacked)
    iota: dict[str, Any] = dict.fromkeys(leaves)
    if reference is not None:
        one = jax.tree.map(lambda leaf: leaf[0], stacked)
        require_same_structure(one, reference, ("task vectors", "reference"))
        iota = leaves_by_path(reference)
    return {
        layer: jnp.asarray(sum(leaf_gram(leaves[path], iota[path]) for path in paths))
        for layer, paths in group_by_layer(leaves, granularity).items()
    }


def leaf_gram(
    leaf: Float[Array, "users ..."], reference: Float[Array, "..."] | None = None
) -> Float[Array, "vectors vectors"]:
    """Return the inner products of the users' rows of one leaf, the reference as a last row."""
    rows = widened(leaf).reshape(leaf.shape[0], -1)
    if reference is not None:
        rows = jnp.concatenate([rows, widened(reference).reshape(1, -1)])
    return inner_products(jax.lax.stop_gradient(rows))


def reference_cosines(
    grams: Mapping[str, Float[Array, "vectors vectors"]],
    users: int,
    active: Bool[Array, " users"] | None = None,
) -> dict[str, Float[Array, " users"]]:
    """Return ``cos(tau_lq, iota_l)`` of each layer and user from the inner products.

    An extra row is the reference; without one, iota is for each user the mean of the other active
    users' vectors (of which only the direction matters to the cosine). Zero if either vector is
    zero.

    **Raises:** `InputError` if there is neither a reference nor a second user.
    """
    active = jnp.ones(users, bool) if active is None else active

    def cosines(gram: Array) -> Array:
        if len(gram) == users + 1:
            mix = jnp.zeros((users, users + 1), gram.dtype).at[:, users].set(1)
        elif users > 1:
            mix = jnp.where(active, 1 - jnp.eye(users, dtype=gram.dtype), 0)
        else:
            raise InputError(
                "lata compares layers to a reference: give one, or at least two task vectors, "
                "of which each is compared to the mean of the others."
            )
        products = jnp.sum(mix * gram[:users], axis=1)
        others = jnp.sum(jnp.matmul(mix, gram, precision="highest") * mix, axis=1)
        cosine = products * _inverse_root(jnp.diag(gram)[:users]) * _inverse_root(others)
        return jnp.clip(cosine, -1, 1)

    return {layer: cosines(gram) for layer, gram in grams.items()}


def lata_weights(
    cosines: Mapping[str, Float[Array, " users"]], method: Lata
) -> dict[str, Float[Array, " users"]]:
    """Return the weights by layer, in [0, 1], from the cosines (formulas: `Lata`)."""
    layers = list(group_by_layer(cosines, "tensor"))  # by name, whatever order a file has
    table = jnp.stack([cosines[layer] for layer in layers])
    if method.weighting == "threshold":
        rows = (table <= method.sigma).astype(table.dtype)
    elif len(layers) == 1:
        rows = jnp.ones_like(table)
    else:
        order = jnp.argsort(-table, axis=0, stable=True)
        rank = jnp.argsort(order, axis=0).astype(table.dtype)  # from 0
        if method.weighting == "linear":
            rows = rank / (len(layers) - 1)
        else:
            rows = jnp.log(rank + 1) / jnp.log(jnp.asarray(len(layers), table.dtype))
    weights = dict(zip(layers, rows, strict=True))
    return {layer: weights[layer] for layer in cosines}


def forget(base: PyTree, vector: PyTree, scale: float | Float[Array, ""]) -> PyTree:
    """Return ``base - scale * vector``: what merging would add is subtracted."""
    return add_to_base(base, vector, -scale)


def _inverse_root(squares: Array) -> Array:
    """Return 1 / sqrt(x), and 0 where x is not above 0: a zero vector is similar to no other."""
    positive = squares > 0
    return jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, squares, 1)), 0)
