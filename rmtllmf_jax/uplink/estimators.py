"""Estimators: what the base station makes of the task vectors that it received, as values.

An estimator is called as `estimator(received, variance, energy, mse) -> received`. It knows, for
each leaf and user, the mean power of the noise on an entry (`MseTransport.variance`) and, as side
information, the mean square of an entry as sent (`MseTransport.energy`), as well as each user's
MSE. One with `by_leaf = True` uses only the leaf that it changes, and so works on files
(`StreamedUplink`). One that also has `by_user = True` uses only the user that it changes, which
saves memory there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import require_known, require_non_negative
from rmtllmf_jax.common.values import by_name, parse
from rmtllmf_jax.fusion.merge import PerUser
from rmtllmf_jax.fusion.trees import as_type_of, check_stacked, widened
from rmtllmf_jax.uplink.eigen import eigh_in_turn
from rmtllmf_jax.uplink.noise import leaf_by_leaf, per_user
from rmtllmf_jax.uplink.vectors import mean_squares

_PER = ("leaf", "user")


@runtime_checkable
class Estimator(Protocol):
    """`(received, variance, energy, mse) -> received`: frozen and hashable."""

    stage: ClassVar[str]

    def __call__(
        self,
        received: PyTree[Float[Array, "users ..."]],
        variance: PerUser | PyTree[Array],
        energy: PerUser | PyTree[Array],
        mse: PerUser,
    ) -> PyTree[Float[Array, "users ..."]]:
        """The task vectors that the base station continues with, in their types."""


@dataclass(frozen=True)
class Shrink:
    """The linear estimate of least mean squared error (Wiener): S / (S + V) times what arrived.

    S is the power of a leaf as sent, V that of its noise; a leaf that is nearly all noise drops
    out. Differentiable except where an estimated S reaches 0. Where both S and V are 0, the factor
    is 1.

    >>> received = {"w": jnp.array([[2.0, -2.0]])}
    >>> Shrink()(received, jnp.ones(1), jnp.array([3.0]), jnp.ones(1))["w"].tolist()
    [[1.5, -1.5]]
    """

    stage: ClassVar[str] = "estimator"

    per: Literal["leaf", "user"] = "leaf"
    """One factor per leaf and user, or one per user."""
    known: bool = True
    """Whether S is side information; else it is (mean square received - V), if positive."""

    by_user: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_known("per", self.per, _PER)

    @property
    def by_leaf(self) -> bool:
        """Whether it needs no leaf but the one that it changes."""
        return self.per == "leaf"

    def __call__(
        self,
        received: PyTree[Float[Array, "users ..."]],
        variance: PerUser | PyTree[Array],
        energy: PerUser | PyTree[Array],
        mse: PerUser,
    ) -> PyTree[Float[Array, "users ..."]]:
        """What arrived, each leaf times its factor.

        **Raises:** `InputError` for powers that are not one per user, or a tree of these.
        """
        noise = leaf_by_leaf("variance", variance, received)
        if self.known:
            signal = leaf_by_leaf("energy", energy, received)
        else:
            signal = jax.tree.map(jnp.subtract, mean_squares(received), noise)
        if self.per == "user":
            signal, noise = (_over_leaves(each, received) for each in (signal, noise))

        def shrunk(leaf: Array, sent: Array, error: Array) -> Array:
            return _times(leaf, _wiener(jnp.maximum(sent, 0), error))

        return jax.tree.map(shrunk, received, signal, noise)


@dataclass(frozen=True)
class Reliability:
    """Users weighted by mu_q^-alpha, with mean 1 over users: a user heard well counts for more.

    A perfect uplink counts as the MSE 1e-37, so that among perfect users all weights are 1.

    >>> received, mse = {"w": jnp.ones((2, 1))}, jnp.array([0.1, 0.3])
    >>> [round(float(user), 3) for user in Reliability(1.0)(received, mse, mse, mse)["w"][:, 0]]
    [1.5, 0.5]
    """

    stage: ClassVar[str] = "estimator"
    by_leaf: ClassVar[bool] = True

    alpha: float = 0.5
    """From 0, equal weights, to 1, the inverse of the MSE."""

    def __post_init__(self) -> None:
        require_non_negative("alpha", self.alpha, 1.0)

    def __call__(
        self,
        received: PyTree[Float[Array, "users ..."]],
        variance: PerUser | PyTree[Array],
        energy: PerUser | PyTree[Array],
        mse: PerUser,
    ) -> PyTree[Float[Array, "users ..."]]:
        """What arrived, times the users' weights; `variance` and `energy` are not used.

        **Raises:** `InputError` for MSEs that are not one per user.
        """
        users = check_stacked(received)
        level = jnp.log(jnp.maximum(per_user("mse", mse, users), 1e-37))
        weights = users * jax.nn.softmax(-self.alpha * level)
        return jax.tree.map(lambda leaf: _times(leaf, weights), received)


@dataclass(frozen=True)
class SingularValues:
    """Each matrix with its singular values shrunk, optimal for the squared error in white noise.

    For a matrix of m x n, m <= n, in noise of variance V per entry, with beta = m / n and
    y = s / sqrt(V n): a singular value s becomes ``s sqrt((y^2 - beta - 1)^2 - 4 beta) / y^2``
    above y = 1 + sqrt(beta), and 0 below. It needs V, but no knowledge of what was sent. It assumes
    white noise, which that of `Sparse` is not. A kernel with more dimensions becomes a matrix with
    its last dimension as columns; leaves with one dimension have no singular values and go to
    `Shrink`.

    Derivatives are those of the matrix as a whole, by divided differences, so that equal singular
    values do no harm. At the edge 1 + sqrt(beta) the slope is infinite; second derivatives are not
    defined at equal singular values.

    Reference: Gavish and Donoho, IEEE Trans. Inf. Theory 63 (2017).

    >>> received = {"w": jnp.array([[[3.0, 0.0], [0.0, 0.5]]])}
    >>> ones = jnp.ones(1)
    >>> print(SingularValues()(received, ones / 2, ones, ones)["w"][0].round(3))
    [[2.236 0.   ]
     [0.    0.   ]]
    """

    white: ClassVar[bool] = True
    """Assumes white errors."""
    stage: ClassVar[str] = "estimator"
    by_leaf: ClassVar[bool] = True
    by_user: ClassVar[bool] = True

    def __call__(
        self,
        received: PyTree[Float[Array, "users ..."]],
        variance: PerUser | PyTree[Array],
        energy: PerUser | PyTree[Array],
        mse: PerUser,
    ) -> PyTree[Float[Array, "users ..."]]:
        """What arrived, shrunk; `energy` is used only for leaves with one dimension.

        **Raises:** `InputError` for powers that are not one per user, or a tree of these.
        """

        def shrunk(leaf: Array, noise: Array, signal: Array) -> Array:
            if leaf.ndim < 3:
                return _times(leaf, _wiener(signal, noise))
            matrices = widened(leaf).reshape(len(leaf), -1, leaf.shape[-1])
            return as_type_of(leaf, jax.vmap(_shrunk)(matrices, noise).reshape(leaf.shape))

        by_leaf = (
            leaf_by_leaf(name, values, received)
            for name, values in (("variance", variance), ("energy", energy))
        )
        return jax.tree.map(shrunk, received, *by_leaf)


def _wiener(signal: Float[Array, " users"], noise: Float[Array, " users"]) -> Array:
    total = signal + noise
    return jnp.where(total > 0, signal / jnp.where(total > 0, total, 1), 1)


def _times(leaf: Array, factors: Float[Array, " users"]) -> Array:
    wide = widened(leaf)
    by_user = factors.reshape(-1, *[1] * (leaf.ndim - 1)).astype(wide.dtype)
    return as_type_of(leaf, wide * by_user)


def _over_leaves(values: PyTree[Array], like: PyTree[Array]) -> PyTree[Float[Array, " users"]]:
    """The mean over a user's entries of values of its leaves, for each leaf."""
    sizes = [float(leaf[0].size) for leaf in jax.tree.leaves(like)]
    pairs = zip(jax.tree.leaves(values), sizes, strict=True)
    mean = sum((value * size for value, size in pairs), jnp.zeros(())) / sum(sizes)
    return jax.tree.map(lambda _: mean, like)


def _shrunk(matrix: Float[Array, "rows columns"], noise: Float[Array, ""]) -> Array:
    """By the Gram matrix of the shorter side: what it represents poorly is cut."""
    short, long = sorted(matrix.shape)
    wide = matrix if matrix.shape[0] == short else matrix.T
    noise = noise.astype(matrix.dtype)
    with jax.default_matmul_precision("highest"):
        shrinker = _shrinker(wide @ wide.T, noise * long, short / long)
        found = jnp.where(noise > 0, shrinker @ wide, wide)
    return found if matrix.shape[0] == short else found.T


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shrinker(gram: Float[Array, "n n"], noise: Float[Array, ""], beta: float) -> Array:
    """U diag(w) U^T for the Gram matrix U diag(s^2) U^T, with the factor w of each direction."""
    values, basis = eigh_in_turn(gram)
    return (basis * _factors(values, noise, beta)) @ basis.T


@_shrinker.defjvp
def _shrinker_jvp(beta: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The formula of Daleckii and Krein: divided differences in the eigenbasis."""
    gram, noise = primals
    change, more_noise = tangents
    values, basis = eigh_in_turn(gram)
    of_noise: Callable = jax.vmap(jax.grad(_factors, (0, 1)), (0, None, None))
    factors = _factors(values, noise, beta)
    slope, by_noise = of_noise(values, noise, beta)
    gap = values[:, None] - values
    size = jnp.abs(values[:, None]) + jnp.abs(values) + noise
    near = jnp.abs(gap) <= jnp.cbrt(jnp.finfo(gap.dtype).eps) * size
    quotient = (factors[:, None] - factors) / jnp.where(near, 1, gap)
    divided = jnp.where(near, (slope[:, None] + slope) / 2, quotient)
    moved = divided * (basis.T @ change @ basis) + jnp.diag(by_noise * more_noise)
    return (basis * factors) @ basis.T, basis @ moved @ basis.T


def _factors(
    squared: Float[Array, "*shape"], noise: Float[Array, ""], beta: float
) -> Float[Array, "*shape"]:
    """eta(y) / y for y^2 = squared / noise."""
    kept = squared > noise * (1 + beta**0.5) ** 2
    safe = jnp.where(kept, squared, noise * 9 + 1)
    root = jnp.sqrt(jnp.square(safe - (beta + 1) * noise) - 4 * beta * jnp.square(noise))
    return jnp.where(kept, root / safe, 0)


ESTIMATORS: Mapping[str, type] = MappingProxyType(by_name(Shrink, Reliability, SingularValues))
"""Estimators by the names that a command line has for them."""


def get_estimator(text: str | Estimator) -> Estimator:
    """The estimator that a text describes; an estimator is returned as is.

    **Raises:** `InputError` that names the nearest one, or the option.

    >>> get_estimator("shrink(per=user)")
    Shrink(per='user', known=True)
    """
    if not isinstance(text, str):
        return text
    estimator: Estimator = parse(text, ESTIMATORS, "estimator")
    return estimator
