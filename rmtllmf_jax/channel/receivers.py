"""Receivers: what the base station does with the antennas' signal, as values.

A receiver is called `receiver(h_tilde, attack, noise, key) -> E`, the covariance E[e e^H] of the
errors of the users' unit-power symbols under an attacker's covariance and the floor `noise`; its
diagonal is their MSE. It may offer `from_gram(gram_eff, power)`, where all follows from the
effective Gram matrix. `filters` are the filters themselves. Pure; under `jit`, `vmap` and `grad`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.checks import require_positive
from rmtllmf_jax.channel.equalise import (
    Equaliser,
    coloured_noise,
    effective_gram,
    error_covariance_of,
    matched_equaliser,
    mmse_equaliser,
)
from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.rates import ORDERS, error_covariance, matched_filter_errors, sic_order
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.common.values import Known, by_name, parse

_Errors = Complex[Array, "users users"]
_Power = Float[Array, " users"] | None


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
    """What the receivers of this module share: the errors of filters, under the true noise.

    One that knows the noise has `from_gram(gram_eff, power)`, as its errors follow from G and the
    powers received before the attack.
    """

    stage: ClassVar[str] = "receiver"
    chooses: ClassVar[str] = ""
    """The discrete choice that it makes by the received powers; calls take `power` then."""

    def filters(
        self,
        h_tilde: Complex[Array, "antennas users"],
        attack: Complex[Array, "antennas antennas"],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
        power: Float[Array, " users"] | None = None,
    ) -> Equaliser:
        """The filters of a channel, and the MSE that the receiver believes in.

        **Raises:** `InputError` without a `key` where the receiver measures.
        """
        return self._design(h_tilde, *self._believed(h_tilde, attack, noise, key), power)

    def __call__(
        self,
        h_tilde: Complex[Array, "antennas users"],
        attack: Complex[Array, "antennas antennas"],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
        power: Float[Array, " users"] | None = None,
    ) -> Complex[Array, "users users"]:
        """E[e e^H] of the users' errors, cancellation being perfect; the diagonal is the MSE.

        `power`: the received powers that order the users, left out those of the channel.

        **Raises:** `InputError` if `attack` is of another size than the channel, and outside jit
        if it is not Hermitian or positive semidefinite, or the floor not positive.

        >>> attack = jnp.diag(jnp.array([3.0 + 0j, 0.0]))
        >>> for receiver in (Sic(), Unaware()):
        ...     print(receiver(jnp.array([[2.0 + 0j], [0.0]]), attack).real.round(3))
        [[0.5]]
        [[0.68]]
        """
        if (from_gram := getattr(self, "from_gram", None)) is None:
            filters = self.filters(h_tilde, attack, noise, key, power)
            return error_covariance_of(filters, h_tilde, attack, noise)
        seen = effective_gram(h_tilde, attack, noise)
        power = received_power(gram(h_tilde)) if power is None else power
        errors: Array = from_gram(seen, power)
        return errors

    def _believed(self, h: Array, attack: Array, noise: Any, key: Any) -> tuple[Array, Any]:
        """The attacker's covariance and the floor that the filters are made for."""
        return attack, noise

    def _design(self, h: Array, attack: Array, noise: Any, power: _Power) -> Equaliser:
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

    def from_gram(self, gram_eff: _Errors, power: Float[Array, " users"]) -> _Errors:
        return error_covariance(gram_eff, sic_order(power, self.order))

    def _design(self, h: Array, attack: Array, noise: Any, power: _Power) -> Equaliser:
        return mmse_equaliser(h, attack, noise, self.order, power)


SIC = Sic()
"""The paper's receiver."""


@dataclass(frozen=True)
class Lmmse(Filtering):
    """Joint linear MMSE without cancellation; errors of different users are correlated."""

    def from_gram(self, gram_eff: _Errors, power: Float[Array, " users"]) -> _Errors:
        return error_covariance(gram_eff)

    def _design(self, h: Array, attack: Array, noise: Any, power: _Power) -> Equaliser:
        return mmse_equaliser(h, attack, noise, None)


@dataclass(frozen=True)
class MatchedFilter(Filtering):
    """Whitened matched filter per user, without suppression or cancellation."""

    def from_gram(self, gram_eff: _Errors, power: Float[Array, " users"]) -> _Errors:
        return matched_filter_errors(gram_eff)

    def _design(self, h: Array, attack: Array, noise: Any, power: _Power) -> Equaliser:
        return matched_equaliser(h, attack, noise)


_Inner = Sic | Lmmse | MatchedFilter
_INNER = by_name(Sic, Lmmse, MatchedFilter)


class _Around(Filtering):
    of: _Inner
    choices: ClassVar[Mapping[str, Known]] = {"of": _INNER}

    @property
    def chooses(self) -> str:  # type: ignore[override]
        """The choice of the receiver within."""
        return self.of.chooses

    def _design(self, h: Array, attack: Array, noise: Any, power: _Power) -> Equaliser:
        return self.of._design(h, attack, noise, power)


@dataclass(frozen=True)
class Unaware(_Around):
    """A receiver that does not know of the attacker: its filters are those for the floor alone.

    Never below the MSE of `of`, and not bounded by one: it trusts a wrong covariance.
    """

    of: _Inner = SIC

    def _believed(self, h: Array, attack: Array, noise: Any, key: Any) -> tuple[Array, Any]:
        return jnp.zeros_like(attack), noise


@dataclass(frozen=True)
class Estimated(_Around):
    """A receiver that measures the noise: its filters are those for a sample covariance.

    - `snapshots`: vectors of noise alone, of the true covariance, that it is averaged over.
    - `loading`: added to its diagonal, in units of the floor; > 0, so that few snapshots invert.

    Tends to `of` with many snapshots and little loading; the errors are those under the true noise.
    """

    snapshots: int = 128
    loading: float = 1.0
    of: _Inner = SIC

    def __post_init__(self) -> None:
        require_at_least("snapshots", self.snapshots, 1)
        require_positive("loading", self.loading)

    def _believed(self, h: Array, attack: Array, noise: Any, key: Any) -> tuple[Array, Any]:
        if key is None:
            raise InputError("the receiver estimated draws snapshots of the noise: give it a key.")
        white = jax.random.normal(key, (len(h), self.snapshots), h.dtype)
        seen = coloured_noise(h, attack, noise).colour(white)
        return product(seen, seen.conj().T) / self.snapshots, self.loading * noise


RECEIVERS: Mapping[str, type] = MappingProxyType({**_INNER, **by_name(Unaware, Estimated)})
"""Receivers by the names that a command line has for them."""


def get_receiver(text: str | Receiver) -> Receiver:
    """The receiver that a text describes; a receiver is itself. A decoding order means SIC in it.

    **Raises:** `InputError` that names the nearest one, or the option.

    >>> get_receiver("unaware(of=lmmse)"), get_receiver("strongest_first")
    (Unaware(of=Lmmse()), Sic(order='strongest_first'))
    """
    if not isinstance(text, str):
        return text
    orders: dict[str, Any] = {order: Sic(order) for order in ORDERS}
    known: dict[str, Any] = {**RECEIVERS, **orders}
    receiver: Receiver = parse(text, known, "receiver")
    return receiver
