"""Receivers that know the noise, and what all receivers share, see `receivers`.

A receiver is called as `receiver(h_tilde, attack, noise, key) -> E` and returns the covariance
E[e e^H] of the errors of the users' unit-power symbols under an attacker's covariance and the floor
`noise`; its diagonal is their MSE. It may offer `from_gram(gram_eff, power)` if the effective Gram
matrix determines everything. `filters` are the filters themselves. Pure; works under `jit`, `vmap`
and `grad`.

A class with `plans = True` plans with the attacker's total power and also takes `budget=`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.equalise import (
    Equaliser,
    effective_gram,
    error_covariance_of,
    matched_equaliser,
    mmse_equaliser,
)
from rmtllmf_jax.channel.rates import ORDERS, error_covariance, matched_filter_errors, sic_order
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.common.values import Known, by_name

Errors = Complex[Array, "users users"]
Power = Float[Array, " users"] | None


@runtime_checkable
class Receiver(Protocol):
    """`(h_tilde, attack, noise, key) -> error covariance`: frozen and hashable."""

    def __call__(
        self,
        h_tilde: Complex[Array, "antennas users"],
        attack: Complex[Array, "antennas antennas"],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
    ) -> Complex[Array, "users users"]:
        """E[e e^H] of the users' symbols; `key` draws what the receiver has to measure."""


class Filtering:
    """What the receivers of this module share: the errors of filters under the true noise.

    A receiver that knows the noise has `from_gram(gram_eff, power)`, as its errors follow from G
    and the powers received before the attack.
    """

    chooses: ClassVar[str] = ""
    """The discrete choice that it makes by the received powers; calls take `power` then."""
    plans: ClassVar[bool] = False
    """Whether calls take `budget`, the attacker's total power that it plans with."""
    knows: ClassVar[str] = "the noise covariance"
    """What it has to know of the attacker."""
    stage: ClassVar[str] = "receiver"
    """Where it stands among the defences."""

    def filters(
        self,
        h_tilde: Complex[Array, "antennas users"],
        attack: Complex[Array, "antennas antennas"],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
        power: Float[Array, " users"] | None = None,
        budget: Real[ArrayLike, ""] | None = None,
    ) -> Equaliser:
        """The filters of a channel, and the MSE that the receiver believes in.

        **Raises:** `InputError` without a `key` where the receiver measures, and without a `budget`
        where it plans with one.
        """
        return self._design(h_tilde, *self._believed(h_tilde, attack, noise, key, budget), power)

    def __call__(
        self,
        h_tilde: Complex[Array, "antennas users"],
        attack: Complex[Array, "antennas antennas"],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
        power: Float[Array, " users"] | None = None,
        budget: Real[ArrayLike, ""] | None = None,
    ) -> Complex[Array, "users users"]:
        """E[e e^H] of the users' errors with perfect cancellation; the diagonal is the MSE.

        `power`: the received powers that order the users, by default those of the channel.
        `budget`: the attacker's total power, in the unit of `noise`, for receivers that plan with
        it.

        **Raises:** `InputError` if the size of `attack` does not match the channel, and outside jit
        if it is not Hermitian or positive semidefinite, or the floor is not positive.

        >>> import jax.numpy as jnp
        >>> from rmtllmf_jax.channel.receivers import Unaware
        >>> attack = jnp.diag(jnp.array([3.0 + 0j, 0.0]))
        >>> for receiver in (Sic(), Unaware()):
        ...     print(receiver(jnp.array([[2.0 + 0j], [0.0]]), attack).real.round(3))
        [[0.5]]
        [[0.68]]
        """
        if (from_gram := getattr(self, "from_gram", None)) is None:
            filters = self.filters(h_tilde, attack, noise, key, power, budget)
            return error_covariance_of(filters, h_tilde, attack, noise)
        seen = effective_gram(h_tilde, attack, noise)
        power = received_power(gram(h_tilde)) if power is None else power
        errors: Array = from_gram(seen, power)
        return errors

    def _believed(
        self, h: Array, attack: Array, noise: Any, key: Any, budget: Any
    ) -> tuple[Array, Any]:
        """The attacker's covariance and the floor that the filters are designed for."""
        return attack, noise

    def _design(self, h: Array, attack: Array, noise: Any, power: Power) -> Equaliser:
        raise NotImplementedError


@dataclass(frozen=True)
class Sic(Filtering):
    """MMSE with successive interference cancellation, in an `order` of received powers.

    R-MTLLMF (arXiv 2411.18220) decodes `weakest_first`, so that the strongest user is last and free
    of interference. Errors of different users are uncorrelated.
    """

    order: str = "weakest_first"
    chooses: ClassVar[str] = "the SIC order"

    def __post_init__(self) -> None:
        require_known("SIC order", self.order, ORDERS)

    def from_gram(self, gram_eff: Errors, power: Float[Array, " users"]) -> Errors:
        return error_covariance(gram_eff, sic_order(power, self.order))

    def _design(self, h: Array, attack: Array, noise: Any, power: Power) -> Equaliser:
        return mmse_equaliser(h, attack, noise, self.order, power)


SIC = Sic()
"""The paper's receiver."""


@dataclass(frozen=True)
class Lmmse(Filtering):
    """Joint linear MMSE without cancellation; errors of different users are correlated."""

    def from_gram(self, gram_eff: Errors, power: Float[Array, " users"]) -> Errors:
        return error_covariance(gram_eff)

    def _design(self, h: Array, attack: Array, noise: Any, power: Power) -> Equaliser:
        return mmse_equaliser(h, attack, noise, None)


@dataclass(frozen=True)
class MatchedFilter(Filtering):
    """Whitened matched filter per user, without suppression or cancellation."""

    def from_gram(self, gram_eff: Errors, power: Float[Array, " users"]) -> Errors:
        return matched_filter_errors(gram_eff)

    def _design(self, h: Array, attack: Array, noise: Any, power: Power) -> Equaliser:
        return matched_equaliser(h, attack, noise)


Inner = Sic | Lmmse | MatchedFilter
INNER = by_name(Sic, Lmmse, MatchedFilter)


class Around(Filtering):
    """Filters designed like those of the receiver `of`, for noise that is not known."""

    of: Inner
    choices: ClassVar[Mapping[str, Known]] = {"of": INNER}

    @property
    def chooses(self) -> str:  # type: ignore[override]
        """The choice that the inner receiver makes."""
        return self.of.chooses

    def _design(self, h: Array, attack: Array, noise: Any, power: Power) -> Equaliser:
        return self.of._design(h, attack, noise, power)
