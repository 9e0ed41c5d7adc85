"""SLERP and multi-SLERP: means of directions and of lengths, tensor by tensor.

>>> import jax.numpy as jnp
>>> base = {"w": jnp.array([0.0, 0.0])}
>>> stacked = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])}
>>> [round(float(x), 3) for x in Slerp(t=1 / 3)(stacked, base=base)["w"]]      # 30 degrees
[0.866, 0.5]
>>> [round(float(x), 3) for x in MultiSlerp()(stacked)["w"]]                   # 45 degrees
[0.707, 0.707]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_non_negative
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    merge_leaves,
    norms_of,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import (
    as_type_of,
    check_stacked,
    leaves_by_path,
    require_same_structure,
    widened,
)

_NO_DIRECTION = 1e-6  # a mean of unit vectors as short as that is rounding


@dataclass(frozen=True)
class Slerp(MergeMethod):
    """The point at `t` on the arc between two *models*: ``slerp(theta_1, theta_2; t) - base``.

    With the angle Omega between two tensors of the models, taken as vectors, it is ``sin((1 - t)
    Omega) / sin(Omega) theta_1 + sin(t Omega) / sin(Omega) theta_2``; where ``|cos Omega|`` is
    above `threshold`, the straight line ``(1 - t) theta_1 + t theta_2``. Models fine-tuned from one
    base nearly always are that close. With scale 1 the merged model is the point itself.

    Weights w move `t` to ``w_2 t / (w_1 (1 - t) + w_2 t)``, so that a single task gives its own
    vector, and no task gives zero. More than two tasks are refused, or give NaN where their weights
    are not known yet (under `jit`): `MultiSlerp` takes any number.

    The same as mergekit's `slerp`, where `base_model` is the first of the two models.
    """

    title: ClassVar[str] = "SLERP"
    reference: ClassVar[str] = "Shoemake, SIGGRAPH 1985; of models: mergekit, arXiv 2403.13257"
    per_leaf: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("base",)
    most: ClassVar[int | None] = 2

    t: float = 0.5
    """Where on the arc, from 0 (the first model) to 1 (the second)."""
    threshold: float = 0.9995
    """Magnitude of the cosine above which the line is taken for the arc."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, of which the ratio matters; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        require_non_negative("t", self.t, 1.0)
        if not 0 <= self.threshold < 1:
            raise InputError(f"threshold must be from 0 to below 1, got {self.threshold!r}.")

    def __call__(  # type: ignore[override]  # it needs more
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        base: PyTree[Array],
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`.

        `base`: the parameters that the task vectors are differences from.

        **Raises:** `InputError` also if the base does not match (with every differing path), or for
        more than two task vectors.
        """
        users = check_stacked(stacked)
        one = jax.tree.map(lambda leaf: leaf[0], stacked)
        require_same_structure(one, base, ("task vectors", "base"))
        by_user = user_weights(self.weights, users, weights)
        active = by_user != 0
        count = jnp.sum(active)
        if not isinstance(count, jax.core.Tracer) and count > 2:
            raise InputError(
                f"slerp is for two models, got {count}: take multi_slerp for any number."
            )
        ends = jnp.stack([jnp.argmax(active), users - 1 - jnp.argmax(active[::-1])])
        left, right = by_user[ends] * jnp.array([1 - self.t, self.t])
        t = right / one_where_zero(left + right)
        known = jnp.where(count > 2, jnp.nan, jnp.where(count > 0, 1, 0))
        bases = leaves_by_path(base)

        def merge(path: str, leaf: Array) -> Array:
            start = as_type_of(leaf, widened(bases[path]))
            return known.astype(leaf.dtype) * self._between(start, leaf[ends], t)

        return merge_leaves(merge, stacked)

    def _between(
        self, base: Float[Array, "..."], pair: Float[Array, "2 ..."], t: Float[Array, ""]
    ) -> Float[Array, "..."]:
        models = base + pair
        lengths = norms_of(models)
        units = models / one_where_zero(lengths).reshape(-1, *[1] * base.ndim)
        cosine = jnp.clip(jnp.sum(units[0] * units[1]), -1, 1)
        straight = jnp.abs(cosine) > self.threshold
        angle = jnp.arccos(jnp.where(straight, 0, cosine))
        shares = jnp.stack([1 - t, t])
        parts = jnp.where(straight, shares, jnp.sin(shares * angle) / jnp.sin(angle))
        # The models themselves are large beside what they differ by, and would round it away.
        return (jnp.sum(parts) - 1) * base + weighted(parts, pair)


@dataclass(frozen=True)
class MultiSlerp(MergeMethod):
    """The mean direction at the mean length: ``(sum_q s_q |tau_q|) d``, with s = w / sum w.

    d is the direction of ``sum_q s_q tau_q / |tau_q|``. The `multislerp` of mergekit, on a sphere
    around the base, reduces to this: its step in the tangent space at d is zero by construction.
    Where the directions cancel there is no d, and the result is ``sum_q s_q tau_q``.
    """

    title: ClassVar[str] = "multi-SLERP"
    reference: ClassVar[str] = "mergekit, arXiv 2403.13257"
    per_leaf: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True

    weights: tuple[float, ...] = ()
    """One weight per task vector, of which the ratios matter; none: 1 for each."""

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`."""
        by_user = user_weights(self.weights, check_stacked(stacked), weights)
        shares = by_user / one_where_zero(jnp.sum(by_user))

        def merge(_: str, leaf: Array) -> Array:
            lengths = norms_of(leaf)
            mean = weighted(shares / one_where_zero(lengths), leaf)
            size = norms_of(mean[None])[0]
            there = size > _NO_DIRECTION
            along = mean * (jnp.sum(shares * lengths) / jnp.where(there, size, 1))
            # What is not finite is not there either.
            return jnp.where(there, along, weighted(shares, leaf)).astype(leaf.dtype)

        return merge_leaves(merge, stacked)
