"""Receivers: what the base station does with the antennas' signal, as values.

`filtering` documents the calling convention and holds those that know the covariance of the noise.
The others are here: each designs the filters of a receiver `of` for the noise that it assumes, and
its errors are those of these filters under the true noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.checks import (
    require_decibels,
    require_positive,
    require_powers,
    require_within,
)
from rmtllmf_jax.channel.equalise import Equaliser, coloured_noise, mmse_equaliser
from rmtllmf_jax.channel.fading import steering_vectors
from rmtllmf_jax.channel.filtering import (
    SIC,
    Around,
    Filtering,
    Inner,
    Lmmse,
    MatchedFilter,
    Receiver,
    Sic,
)
from rmtllmf_jax.channel.linalg import eigh, product
from rmtllmf_jax.channel.matrix_functions import congruence, divide, in_basis, positive_part
from rmtllmf_jax.channel.rates import ORDERS
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.channel.spectral_attacks import SUM_MSE, spectral_covariance
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.common.values import by_name, name_of, parse


@dataclass(frozen=True)
class Unaware(Around):
    """A receiver that does not know of the attacker: its filters are those for the floor alone.

    Its MSE is never below that of `of`, and not bounded by one: it trusts a wrong covariance.
    """

    of: Inner = SIC
    knows: ClassVar[str] = "nothing"

    def _believed(
        self, h: Array, attack: Array, noise: Any, key: Any, budget: Any
    ) -> tuple[Array, Any]:
        return jnp.zeros_like(attack), noise


@dataclass(frozen=True)
class Estimated(Around):
    """A receiver that measures the noise: its filters are those for a sample covariance.

    - `snapshots`: number of noise-only vectors, of the true covariance, that it averages over.
    - `loading`: added to its diagonal, in units of the floor; > 0, so that it is invertible even
      with few snapshots.
    - `shrinkage`: "oas" first moves the average towards a multiple of I, see `oas`.

    Tends to `of` with many snapshots and little loading; the errors are those under the true noise.
    """

    snapshots: int = 128
    loading: float = 1.0
    of: Inner = SIC
    shrinkage: Literal["none", "oas"] = "none"
    knows: ClassVar[str] = "snapshots of the noise"

    def __post_init__(self) -> None:
        require_at_least("snapshots", self.snapshots, 1)
        require_positive("loading", self.loading)
        require_known("shrinkage", self.shrinkage, ("none", "oas"))

    def _believed(
        self, h: Array, attack: Array, noise: Any, key: Any, budget: Any
    ) -> tuple[Array, Any]:
        seen = _sample(self, self.snapshots, h, attack, noise, key)
        if self.shrinkage == "oas":
            seen = oas(seen, self.snapshots)
        return seen, self.loading * noise


def oas(
    sample: Complex[Array, "antennas antennas"], snapshots: int
) -> Complex[Array, "antennas antennas"]:
    """(1 - rho) S + rho tr S / N I of the sample covariance S of complex Gaussian `snapshots`.

    rho = min(1, (tr^2 S - tr S^2 / N) / ((T - 1/N) (tr S^2 - tr^2 S / N))), the limit of the
    oracle's weight with its own estimate inserted: Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero,
    "Shrinkage algorithms for MMSE covariance estimation", IEEE Transactions on Signal Processing
    58(10), 2010 (arXiv 0907.4698), with the moments of complex vectors. Keeps the trace.

    >>> oas(jnp.diag(jnp.array([3.0 + 0j, 1.0])), 1).real.tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    size = len(sample)
    trace = jnp.real(jnp.trace(sample))
    squared = jnp.sum(jnp.real(sample) ** 2 + jnp.imag(sample) ** 2)
    spread = (snapshots - 1 / size) * (squared - trace**2 / size)
    # tiny: what is a multiple of I already stays one.
    share = (trace**2 - squared / size) / jnp.maximum(spread, jnp.finfo(trace.dtype).tiny)
    share = jnp.clip(share, 0, 1)
    return (1 - share) * sample + share * trace / size * jnp.eye(size, dtype=sample.dtype)


@dataclass(frozen=True)
class Powered(Around):
    """Knows only the attacker's total power: filters for white noise + budget / antennas."""

    of: Inner = SIC
    plans: ClassVar[bool] = True
    knows: ClassVar[str] = "the attacker's power"

    def _believed(
        self, h: Array, attack: Array, noise: Any, key: Any, budget: Any
    ) -> tuple[Array, Any]:
        power = _planned(self, budget, noise)
        nobody = jnp.zeros_like(attack)
        return nobody, noise + power / len(h)


@dataclass(frozen=True)
class Projected(Around):
    """Projects the attacker's subspace out: the filters of `of` for (I - U U^H) H and the floor.

    - `rank`: number of dimensions given up, those with the most power; by default all above the
      floor.
    - `snapshots`: number of noise-only vectors to find them from; by default the covariance is
      known.

    With T snapshots over N antennas, the dimensions above the floor have eigenvalues of the average
    larger than n (1 + sqrt(N / T))^2, where noise alone would end (Marchenko and Pastur, 1967);
    with a known covariance, they are all in which the attacker has power. Does not need its power.
    Each costs one dimension of the array, and against an attacker who spans the users' subspace
    nothing is left: MSE one. See G. Marti and C. Studer, "Universal MIMO Jammer Mitigation", arXiv
    2412.19804. Smooth where the dimensions stay the same.
    """

    rank: int | None = None
    snapshots: int | None = None
    of: Inner = SIC
    knows: ClassVar[str] = "the attacker's subspace, or snapshots of the noise"

    def __post_init__(self) -> None:
        if self.rank is not None:
            require_at_least("rank", self.rank, 0)
        if self.snapshots is not None:
            require_at_least("snapshots", self.snapshots, 1)

    def filters(
        self,
        h_tilde: Complex[Array, "antennas users"],
        attack: Complex[Array, "antennas antennas"],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
        power: Float[Array, " users"] | None = None,
        budget: Real[ArrayLike, ""] | None = None,
    ) -> Equaliser:
        """The filters of a channel; users are in the order of their powers before projection.

        **Raises:** `InputError` for `snapshots` without a `key`, or more `rank` than antennas.
        """
        power = received_power(gram(h_tilde)) if power is None else power
        left = h_tilde - product(self._subspace(h_tilde, attack, noise, key), h_tilde)
        return self.of.filters(left, jnp.zeros_like(attack), noise, power=power)

    def _subspace(self, h: Array, attack: Array, noise: Any, key: Any) -> Array:
        """U U^H as (1 + sign(X)) / 2, X = C - t I, with t between what is removed and kept."""
        size = len(h)
        if self.rank is not None:
            require_at_least("rank", self.rank, 0, size)
        if self.snapshots is None:
            seen = attack
        else:
            seen = _sample(self, self.snapshots, h, attack, noise, key)
        values, vectors = eigh(seen)
        smallest = size * jnp.finfo(values.dtype).eps * jnp.sum(values)
        if self.rank is not None:
            goes = jnp.argsort(jnp.argsort(-values)) < self.rank
        elif self.snapshots is not None:
            edge = (1 + math.sqrt(size / self.snapshots)) ** 2
            goes = values > jax.lax.stop_gradient(jnp.asarray(noise)) * edge
        else:
            goes = values > smallest
        above = jnp.min(jnp.where(goes, values, 2 * jnp.max(values)))
        between = (above + jnp.max(jnp.where(goes, 0, values))) / 2
        # Equal values on either side have no subspace of their own: any, and a finite derivative.
        gap = jnp.maximum(smallest, jnp.finfo(values.dtype).tiny ** 0.5)
        away = values - between
        away = jnp.where(goes, jnp.maximum(away, gap), jnp.minimum(away, -gap))
        x = in_basis(seen - between * jnp.eye(size, dtype=seen.dtype), away, vectors)
        part = positive_part(x)
        return congruence(vectors, divide(part, 2 * part - x))


@dataclass(frozen=True)
class Sensed(Around):
    """Filters for a covariance built from sensed directions and the attacker's total power.

    - `angles`: the attackers' directions in degrees from broadside, seen by a linear array with
      half a wavelength between antennas (`fading.steering_vectors`); all count as equally strong.
    - `error_deg`: standard deviation of a Gaussian error of each, drawn from the key.
    - `taper_deg`: half width, as seen at broadside, over which each is spread (uniformly in the
      sine of the angle): an error does not miss so wide a null, at the price of dimensions.

    budget / (N L) A A^H o T with T_ij = sinc((i - j) sin(taper)), sinc x = sin(pi x) / (pi x). The
    surrogate of R-SFLLM (arXiv 2407.11654) for directions; J. Guerci, "Theory and application of
    covariance matrix tapers", IEEE Transactions on Signal Processing 47(4), 1999.
    """

    angles: Sequence[float]
    error_deg: float = 0.0
    taper_deg: float = 0.0
    of: Inner = SIC
    plans: ClassVar[bool] = True
    one_array: ClassVar[bool] = True
    knows: ClassVar[str] = "the attacker's directions and power"

    def __post_init__(self) -> None:
        object.__setattr__(self, "angles", tuple(map(float, self.angles)))
        require_at_least("number of angles", len(self.angles), 1)
        require_within("angles", self.angles, -math.inf, math.inf)
        require_within("error_deg", self.error_deg, 0.0, math.inf)
        require_within("taper_deg", self.taper_deg, 0.0, 90.0)

    def _believed(
        self, h: Array, attack: Array, noise: Any, key: Any, budget: Any
    ) -> tuple[Array, Any]:
        power = _planned(self, budget, noise)
        real = jnp.real(h).dtype
        angles = jnp.array(self.angles, real)
        if self.error_deg:
            drawn = jax.random.normal(_key(self, key, "errors of its angles"), angles.shape, real)
            angles += self.error_deg * drawn
        steering = steering_vectors(jnp.deg2rad(angles), len(h))
        apart = jnp.arange(len(h), dtype=real)[:, None] - jnp.arange(len(h), dtype=real)
        taper = jnp.sinc(apart * math.sin(math.radians(self.taper_deg)))
        seen = product(steering, steering.conj().T) * taper
        return power / (len(h) * len(self.angles)) * seen, noise


@dataclass(frozen=True)
class Minimax(Filtering):
    """The joint linear filters that are best against the worst attacker with a given budget.

    They are the LMMSE filters for the attack `sum_mse`, and **no attacker of that total power can
    push the sum of the users' MSEs above that attack's**, whoever it is and whatever it knows,
    these filters included: the sum is convex in the filters F and linear in the covariance A of the
    attacker, so that min_F max_A = max_A min_F, and a saddle point attains both. The price is
    pessimism where nobody attacks: a base station would switch it on when it detects an attacker.

    `budget_db`: the total power planned for, over the noise of one antenna; by default the budget
    given in the call. Antennas may be those of several receptions, stacked: the budget is then that
    of all of them.
    """

    budget_db: float | None = None
    plans: ClassVar[bool] = True
    knows: ClassVar[str] = "the attacker's power"

    def __post_init__(self) -> None:
        if self.budget_db is not None:
            require_decibels("budget_db", self.budget_db)

    def _believed(
        self, h: Array, attack: Array, noise: Any, key: Any, budget: Any
    ) -> tuple[Array, Any]:
        real = jnp.real(h).dtype
        if self.budget_db is not None:
            budget = 10 ** (self.budget_db / 10) * noise
        power = _planned(self, budget, noise)
        floor = jnp.asarray(noise, real)
        return spectral_covariance(SUM_MSE, h, jnp.asarray(power, real), floor), noise

    def _design(self, h: Array, attack: Array, noise: Any, power: Any) -> Equaliser:
        return mmse_equaliser(h, attack, noise, None)


def _planned(receiver: Filtering, budget: Any, noise: Any) -> Any:
    if budget is None:
        raise InputError(
            f"the receiver {name_of(receiver)} plans with the attacker's total power: give it a "
            "budget, in the unit of the noise."
        )
    require_powers(budget, noise)
    return budget


def _key(receiver: Filtering, key: Any, what: str) -> Any:
    if key is None:
        raise InputError(f"the receiver {name_of(receiver)} draws {what}: give it a key.")
    return key


def _sample(
    receiver: Filtering, snapshots: int, h: Array, attack: Array, noise: Any, key: Any
) -> Array:
    """The average of z z^H over snapshots of all noise, floor included."""
    drawn = _key(receiver, key, "snapshots of the noise")
    white = jax.random.normal(drawn, (len(h), snapshots), h.dtype)
    seen = coloured_noise(h, attack, noise).colour(white)
    return product(seen, seen.conj().T) / snapshots


RECEIVERS: Mapping[str, type] = MappingProxyType(
    by_name(Sic, Lmmse, MatchedFilter, Unaware, Estimated, Powered, Projected, Sensed, Minimax)
)
"""Receivers by the names that a command line has for them."""


def get_receiver(text: str | Receiver) -> Receiver:
    """The receiver that a text describes; a receiver is returned as is. A decoding order means SIC.

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
