"""Adapters: two factors of each matrix of a task vector in place of the matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import Known, by_name, described
from rmtllmf_jax.fusion.merge import PerUser
from rmtllmf_jax.fusion.trees import as_type_of, check_stacked, leaf_path, leaves_by_path, widened
from rmtllmf_jax.uplink.codes import Coded
from rmtllmf_jax.uplink.error_models import safe_sqrt
from rmtllmf_jax.uplink.factors import (
    FactorStream,
    Sizes,
    balanced,
    factor_shapes,
    product_variance,
)
from rmtllmf_jax.uplink.gaussian import GAUSSIAN, Gaussian
from rmtllmf_jax.uplink.noise import per_user
from rmtllmf_jax.uplink.sparse import Sparse
from rmtllmf_jax.uplink.streams import Sending
from rmtllmf_jax.uplink.vectors import Shapes, as_vectors, mean_squares, shapes_of

Factors = dict[str, dict[str, Float[Array, "users ..."]]]
"""By the path of a leaf: `b` (users, rows, rank) and `a` (users, rank, columns), of equal size."""

TARGETS = ("q_proj|query", "v_proj|value")
"""Modules that are adapted by default: queries and values."""

CARRIERS: Mapping[str, type] = MappingProxyType(by_name(Gaussian, Sparse, Coded))
"""What may carry the factors."""


@dataclass(frozen=True)
class Adapter:
    """Two factors of each matrix, ``b a`` of its largest singular values, and nothing else.

    Users that fine-tuned these targets with LoRA have nothing else to send; for others it is the
    nearest adapter, and what is not sent stays as in the base. b and a have the same size,
    |b| = |a|: only the product counts, and these make its error smallest. Symbols keep unit power,
    so that kappa scales with the rms of what is sent, as for `Sparse`. The channel uses saved may
    be spent on repetition (``adapter(rank=4)+repeat(times=8)``) or on bits
    (``adapter(rank=4, carrier=coded(uses=8.0))``). What is sent is held constant under `jax.grad`.
    A kernel with more than two dimensions becomes a matrix with its last dimension as columns.

    >>> ones = jnp.ones(1)
    >>> sent = {"w": jnp.array([[[2.0, 4.0], [1.0, 2.0]]]), "b": jnp.ones((1, 2))}
    >>> adapter = Adapter(1, targets=("w",))
    >>> print(adapter.deliver(sent, 0 * ones, ones, jax.random.key(0))["w"][0].round(4))
    [[2. 4.]
     [1. 2.]]
    >>> print(f"{adapter.uses_of(ones, shapes_of(sent))[0]:.2f}")           # 4 numbers of 6
    0.67
    """

    of_mse: ClassVar[bool] = True
    by_leaf: ClassVar[bool] = False
    stage: ClassVar[str] = "transport"
    white: ClassVar[bool] = False
    choices: ClassVar[Mapping[str, Known]] = {"carrier": CARRIERS}

    rank: int
    """Of the products."""
    targets: tuple[str, ...] = TARGETS
    """Regular expressions of the modules whose matrices are sent, by the last names of their paths
    (``layers/0/q_proj/kernel``, in files ``layers.0.q_proj.weight``); ``('.*',)`` is all. A matrix
    that no user changed is noise on the air: name the LoRA's."""
    carrier: Any = GAUSSIAN
    """What carries the factors: a transport that needs the users' MSE alone."""

    def __post_init__(self) -> None:
        require_at_least("the rank of an adapter", self.rank, 1)
        if not self.targets:
            raise InputError("an adapter needs at least one target: a module such as q_proj.")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise InputError(
                    f"the target {target!r} of an adapter is not a regular expression ({error})."
                ) from error
        if isinstance(self.carrier, Adapter) or not getattr(self.carrier, "of_mse", False):
            known = ", ".join(CARRIERS)
            raise InputError(
                f"an adapter's factors are carried by a transport of the MSE ({known}), got "
                f"{described(self.carrier)}."
            )

    @property
    def uses(self) -> float:
        """Channel uses per entry of the factors; see `uses_of` for those per parameter."""
        return self.carrier.uses

    @property
    def plan(self) -> Any:
        """The attack that the carrier's rate is planned for, if any."""
        return getattr(self.carrier, "plan", None)

    def uses_of(self, mse: PerUser, shapes: Shapes) -> Float[Array, " users"]:
        """Channel uses per parameter of each user: those of the factors over all parameters."""
        factors = factor_shapes(self._sizes(shapes))
        sent, whole = (sum(map(prod, each.values())) for each in (factors, shapes))
        return self.carrier.uses_of(mse, factors) * (sent / whole)

    def factors(self, stacked: PyTree[Float[Array, "users ..."]]) -> Factors:
        """What each user sends.

        **Raises:** `InputError` for a target that matches no matrix, and for a matrix with a side
        below the rank.
        """
        check_stacked(stacked)
        leaves = leaves_by_path(jax.lax.stop_gradient(stacked))

        def of_leaf(path: str, sizes: tuple[int, int, int]) -> dict[str, Array]:
            rows, rank, columns = sizes
            matrices = widened(leaves[path]).reshape(-1, rows, columns)
            b, a = jax.vmap(lambda each: balanced(each, rank))(matrices)
            return {"a": a, "b": b}

        sizes = self._sizes(shapes_of(stacked))
        return {path: of_leaf(path, each) for path, each in sizes.items()}

    def deliver(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser,
        key: Key[Array, ""],
        *,
        planned: PerUser | None = None,
    ) -> PyTree[Float[Array, "users ..."]]:
        """The products of the factors as received; leaves that are not sent are zero.

        **Raises:** `InputError` as `factors`, for MSEs by leaf, and as the carrier does.
        """
        factors, kappa = self._sending(stacked, mse, kappa)
        arrived = self.carrier.deliver(factors, mse, kappa, key, planned=planned)
        return _products(arrived, stacked)

    def variance(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser,
    ) -> PyTree[Float[Array, " users"]]:
        """Mean power of the products' error on an entry of a leaf, without the part not sent.

        ``(V_a |b|^2 columns + V_b |a|^2 rows + V_a V_b rows rank columns) / (rows columns)`` with
        the variances of the carrier's errors on the factors, which are independent and the same on
        all entries of a factor (for `Sparse`, on average).
        """
        factors, kappa = self._sending(stacked, mse, kappa)
        noise = self.carrier.variance(factors, mse, kappa)
        squares = {
            path: {k: _squares(leaf) for k, leaf in f.items()} for path, f in factors.items()
        }

        def of_leaf(path: tuple, leaf: Array) -> Array:
            name = leaf_path(path)
            if name not in factors:
                return jnp.zeros(len(leaf))
            rows, rank = factors[name]["b"].shape[1:]
            columns = factors[name]["a"].shape[2]
            return product_variance(noise[name], squares[name], (rows, rank, columns))

        return jax.tree_util.tree_map_with_path(of_leaf, stacked)

    def energy(self, stacked: PyTree[Float[Array, "users ..."]]) -> PyTree[Float[Array, " users"]]:
        """Mean square of the products as sent, over all entries of a leaf."""
        return mean_squares(_products(self.factors(stacked), stacked))

    def stream(self, sending: Sending) -> FactorStream:
        """Leaf by leaf, after the one or more passes that the carrier needs to find the factors."""
        return FactorStream(self._sizes(sending.shapes), self.carrier, sending)

    def _sizes(self, shapes: Shapes) -> Sizes:
        """The matrices that are sent."""
        matrices = {path: shape for path, shape in shapes.items() if len(shape) > 1}
        found: dict[str, tuple[int, int, int]] = {}
        for target in self.targets:
            pattern = re.compile(rf"(?:.*[/.])?(?:{target})(?:/kernel|\.weight)?")
            own = [path for path in matrices if pattern.fullmatch(path)]
            if not own:
                raise InputError(
                    f"the target {target!r} of {described(self)} matches none of "
                    f"{len(matrices)} matrices, such as {', '.join(list(matrices)[:3])}."
                )
            for path in own:
                rows, columns = prod(shapes[path][:-1]), shapes[path][-1]
                if min(rows, columns) < self.rank:
                    raise InputError(
                        f"{described(self)}: {path} is a matrix of {rows} x {columns}, with a side "
                        "below the rank: take a smaller rank, or other targets."
                    )
                found[path] = rows, self.rank, columns
        return found

    def _sending(
        self, stacked: PyTree[Array], mse: Any, kappa: PerUser
    ) -> tuple[Factors, Float[Array, " users"]]:
        """The factors, and the noise scale of their entries."""
        if not jax.tree_util.all_leaves([mse]) and not isinstance(mse, list | tuple):
            raise InputError(
                f"{described(self)}: mse must be one number per user, got a tree: factors are not "
                "leaves of the model; repeat all of them, without patterns."
            )
        factors = self.factors(stacked)
        given = per_user("kappa", kappa, check_stacked(stacked))
        whole, sent = (
            jnp.mean(jnp.square(as_vectors(tree)), axis=1) for tree in (stacked, factors)
        )
        return factors, given * safe_sqrt(sent / jnp.where(whole > 0, whole, 1))


def _products(factors: Factors, like: PyTree[Array]) -> PyTree[Array]:
    def of_leaf(path: tuple, leaf: Array) -> Array:
        pair = factors.get(leaf_path(path))
        if pair is None:
            return jnp.zeros_like(leaf)
        with jax.default_matmul_precision("highest"):
            return as_type_of(leaf, (pair["b"] @ pair["a"]).reshape(leaf.shape))

    return jax.tree_util.tree_map_with_path(of_leaf, like)


def _squares(leaf: Float[Array, "users ..."]) -> Float[Array, " users"]:
    return jnp.sum(jnp.square(leaf), axis=(1, 2))
