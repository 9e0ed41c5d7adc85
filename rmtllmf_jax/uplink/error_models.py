"""Error models: how the errors of the users' transmissions are correlated.

All give user q's error the scale ``kappa_q sqrt(mu_q)``; they differ in the covariance across
users. As every model is linear in independent Gaussians, a weighted sum of the errors is again one
Gaussian, whose standard deviation `ErrorModel.std_of_sum` gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact, Real

from rmtllmf_jax.channel.linalg import correlation_root
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known

_Model = TypeVar("_Model", bound=type)


def _pytree(*fields: str) -> Callable[[_Model], _Model]:
    """Register a class as a distinct pytree type, with `fields` as its leaves.

    With `jax.tree_util.register_dataclass`, two classes with equal fields have equal structures, so
    a program compiled for one might run with the other.
    """

    def register(model: _Model) -> _Model:
        jax.tree_util.register_pytree_node(
            model,
            lambda instance: (tuple(getattr(instance, name) for name in fields), model),
            lambda _, leaves: model(*leaves),
        )
        return model

    return register


class ErrorModel(ABC):
    """How the users' errors are correlated: e = F z with independent standard Gaussians z.

    F has one row per user and one column per source. The first Q sources are the users' own, the
    others are shared by all. Instances are pytrees: their fields may be traced, batched and
    differentiated.
    """

    shared: ClassVar[int] = 0
    """Number of sources besides the users' own."""

    @abstractmethod
    def factor(self, std: Float[Array, " users"]) -> Float[Array, "users sources"]:
        """F for users whose errors have the standard deviations ``kappa_q sqrt(mu_q)``."""

    def covariance(self, std: Float[Array, " users"]) -> Float[Array, "users users"]:
        """F F^T, the covariance of the users' errors in every coordinate."""
        factor = self.factor(std)
        return jnp.matmul(factor, factor.T, precision="highest")

    def mix(
        self, std: Float[Array, " users"], sources: Float[Array, "sources ..."]
    ) -> Float[Array, "users ..."]:
        """F z, the errors of the users."""
        return mixed(self.factor(std), sources)

    def std_of_sum(
        self,
        weights: Float[Array, " users"],
        kappa: Float[Array, " users"],
        mse: Float[Array, " users"],
    ) -> Float[Array, ""]:
        """||F^T w||, the standard deviation of ``sum_q w_q e_q``."""
        by_source = jnp.matmul(weights, self.factor(kappa * safe_sqrt(mse)), precision="highest")
        return safe_sqrt(jnp.sum(jnp.square(by_source)))

    def check(self, users: int) -> None:
        """Check that the errors of `users` users can have this model; needs concrete values.

        **Raises:** `InputError`.
        """
        require_at_least("users", users, 1)


@_pytree()
@dataclass(frozen=True)
class Independent(ErrorModel):
    """Errors of different users are independent: exact for MMSE-SIC under every attack.

    >>> mse = jnp.array([0.09, 0.16])
    >>> round(float(Independent().std_of_sum(jnp.ones(2), jnp.ones(2), mse)), 3)
    0.5
    """

    def factor(self, std: Float[Array, " users"]) -> Float[Array, "users users"]:
        """diag(std)."""
        return jnp.diag(std)

    def mix(
        self, std: Float[Array, " users"], sources: Float[Array, "users ..."]
    ) -> Float[Array, "users ..."]:
        """std_q z_q, without the matrix."""
        return sources * std.reshape(-1, *[1] * (sources.ndim - 1)).astype(sources.dtype)

    def std_of_sum(
        self,
        weights: Float[Array, " users"],
        kappa: Float[Array, " users"],
        mse: Float[Array, " users"],
    ) -> Float[Array, ""]:
        """Square root of ``sum_q w_q^2 kappa_q^2 mu_q``."""
        return safe_sqrt(jnp.sum(jnp.square(weights * kappa) * mse))


INDEPENDENT = Independent()
"""The default: no state, so one instance serves all."""


@_pytree("rho")
@dataclass(frozen=True)
class Equicorrelated(ErrorModel):
    """Any two users' errors have the correlation `rho`, in [-1/(Q - 1), 1].

    F = diag(std) (a I + b 1 1^T), the symmetric root of the correlation matrix, which reaches
    negative correlations without a shared source: a = sqrt(1 - rho), b = rho / (a + sqrt(1 +
    (Q - 1) rho)). Differentiable in `rho` inside the interval; NaN outside.

    >>> mse = jnp.array([0.09, 0.16])
    >>> round(float(Equicorrelated(1.0).std_of_sum(jnp.ones(2), jnp.ones(2), mse)), 3)
    0.7
    """

    rho: Real[ArrayLike, ""]

    def factor(self, std: Float[Array, " users"]) -> Float[Array, "users users"]:
        """diag(std) (a I + b 1 1^T)."""
        rho = jnp.asarray(self.rho, std.dtype)
        own = jnp.sqrt(1 - rho)
        total = 1 + (std.size - 1) * rho
        # At rho = -1/(Q - 1) the root must not become negative by rounding.
        total = jnp.where(jnp.abs(total) <= 2 * jnp.finfo(std.dtype).eps, 0.0, total)
        common = rho / (own + jnp.sqrt(total))
        return std[:, None] * (own * jnp.eye(std.size, dtype=std.dtype) + common)

    def check(self, users: int) -> None:
        """Check that `users` errors can have this correlation."""
        super().check(users)
        rho, least = np.asarray(self.rho).item(), -1 / max(users - 1, 1)
        if not least - 1e-6 <= rho <= 1:  # -1/(users - 1) in float32 may lie below that in float64
            raise InputError(
                f"the correlation of {users} users' errors must lie between -1/(users - 1) = "
                f"{least:.4g} and 1, got {rho!r}."
            )


@_pytree()
@dataclass(frozen=True)
class NoisyReference(ErrorModel):
    """Whole models are sent and differenced against one noisy base: e_q - e_0.

    e_0 has the mean of the users' variances kappa_q^2 mu_q (the base goes over the same channel),
    so that user q's error has the sum of its own variance and that mean. Among users with equal
    MSE and kappa every variance doubles and every correlation is exactly 1/2.

    >>> NoisyReference().covariance(jnp.ones(2)).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """

    shared: ClassVar[int] = 1

    def factor(self, std: Float[Array, " users"]) -> Float[Array, "users sources"]:
        """[diag(std), -std_0 1]."""
        base = jnp.full((std.size, 1), safe_sqrt(jnp.mean(jnp.square(std))))
        return jnp.concatenate([jnp.diag(std), -base], axis=1)


@_pytree("error_covariance")
@dataclass(frozen=True)
class Lmmse(ErrorModel):
    """Errors of the joint LMMSE receiver, with the correlations of Re(E), E = (I + G)^-1.

    A parameter is carried by one real dimension of a symbol, where the errors of users q and r have
    the covariance kappa_q kappa_r Re(E_qr). The phase of E_qr is random over channels, so the
    correlation is zero on average, but not in any one channel. `error_covariance` is E; only its
    correlations are used, its diagonal is the separate argument `mse`.

    >>> model = Lmmse(jnp.array([[4.0, 1.0j], [-1.0j, 1.0]]))           # imaginary: no correlation
    >>> model.covariance(jnp.array([2.0, 1.0])).tolist()
    [[4.0, 0.0], [0.0, 1.0]]
    """

    error_covariance: Inexact[ArrayLike, "users users"]

    def factor(self, std: Float[Array, " users"]) -> Float[Array, "users users"]:
        """diag(std) L, where L L^T is the correlation matrix."""
        real = jnp.real(jnp.asarray(self.error_covariance)).astype(std.dtype)
        variance = jnp.diagonal(real)
        scale = 1 / jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
        same = jnp.eye(std.size, dtype=bool)  # 1 even for a user with zero E_qq
        return std[:, None] * correlation_root(jnp.where(same, 1.0, real * scale[:, None] * scale))

    def check(self, users: int) -> None:
        """Check that the matrix is a covariance of `users` errors."""
        super().check(users)
        matrix = np.asarray(self.error_covariance)
        expected = f"the error covariance must be a Hermitian ({users}, {users}) matrix >= 0"
        if matrix.shape != (users, users):
            raise InputError(f"{expected}, got the shape {matrix.shape}.")
        tolerance = 100 * np.finfo(matrix.dtype).eps * max(1.0, float(np.abs(matrix).max()))
        if not np.abs(matrix - matrix.conj().T).max() <= tolerance:
            raise InputError(f"{expected}; this one is not finite and Hermitian.")
        least = float(np.linalg.eigvalsh(matrix)[0])
        if least < -tolerance:
            raise InputError(f"{expected}, got the eigenvalue {least:.3g}.")


ERROR_MODELS: Mapping[str, type[ErrorModel]] = MappingProxyType(
    {
        "independent": Independent,
        "lmmse": Lmmse,
        "equicorrelated": Equicorrelated,
        "noisy_reference": NoisyReference,
    }
)
"""Every error model by name."""


def parse_error_model(text: str) -> tuple[str, float | None]:
    """Split ``name`` or ``name=number`` and check it; only `equicorrelated` takes a number.

    **Raises:** `InputError` for an unknown name, or a missing, invalid or superfluous number.

    >>> parse_error_model("equicorrelated=0.5")
    ('equicorrelated', 0.5)
    """
    name, equals, number = text.partition("=")
    require_known("error model", name, ERROR_MODELS)
    if name != "equicorrelated":
        if equals:
            raise InputError(f"the error model {name!r} takes no number, got {text!r}.")
        return name, None
    try:
        return name, float(number)
    except ValueError:
        raise InputError(
            f"expected a correlation, for example equicorrelated=0.5, got {text!r}."
        ) from None


def get_error_model(
    model: str | ErrorModel,
    users: int,
    error_covariance: Inexact[ArrayLike, "users users"] | None = None,
) -> ErrorModel:
    """Return an error model, given as an instance or by name, checked for `users` users.

    `equicorrelated=0.5` gives the correlation; `lmmse` needs the `error_covariance`. For concrete
    values: inside `jax.jit`, build the classes directly.

    **Raises:** `InputError` for a name or value that cannot be used.

    >>> get_error_model("equicorrelated=0.5", users=3)
    Equicorrelated(rho=0.5)
    """
    if isinstance(model, str):
        name, number = parse_error_model(model)
        if name == "lmmse" and error_covariance is None:
            raise InputError("the error model 'lmmse' needs the receiver's error covariance.")
        values = {"equicorrelated": (number,), "lmmse": (error_covariance,)}
        model = ERROR_MODELS[name](*values.get(name, ()))
    model.check(users)
    return model


def mixed(
    factor: Float[Array, "users sources"], sources: Float[Array, "sources ..."]
) -> Float[Array, "users ..."]:
    """Return F z, the errors of the users."""
    return jnp.tensordot(factor.astype(sources.dtype), sources, axes=1, precision="highest")


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the square root with derivative 0 at 0, the value of a perfect uplink."""
    return jnp.where(x == 0, 0.0, jnp.sqrt(jnp.where(x == 0, 1.0, x)))
