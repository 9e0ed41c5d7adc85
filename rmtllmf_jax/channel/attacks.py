"""Attacks: jammers of a given power that know the channel, as values.

An attack is called as `attack(h_tilde, budget, noise) -> C` and returns its own covariance over the
antennas, of trace `budget`, without the thermal floor `noise` on every antenna. All three share one
unit; scaling them together changes nothing. An attack may offer `from_gram` or `from_channel`,
shortcuts to the users' errors that need no C. A class with `__call__` alone works everywhere too::

    @dataclass(frozen=True)
    class FirstAntenna:
        def __call__(self, h_tilde, budget, noise=1.0):
            return jnp.zeros((len(h_tilde),) * 2, h_tilde.dtype).at[0, 0].set(budget)

    channel.Link(channel.PRESETS["paper"], FirstAntenna()).mse(key)

Derivatives of every order exist in channel, budget and noise where the attack is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.attack_base import Informed, Power
from rmtllmf_jax.channel.checks import require_channel, require_powers, require_within
from rmtllmf_jax.channel.equalise import effective_gram
from rmtllmf_jax.channel.fading import rayleigh
from rmtllmf_jax.channel.jammers import Jammer
from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.matrix_functions import congruence, in_own_basis, reciprocal, square_root
from rmtllmf_jax.channel.min_max_rate_attack import min_max_rate, min_max_weights
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.channel.spectral_attacks import (
    FLOOR_AWARE,
    SUM_MSE,
    SUM_RATE,
    Rule,
    spectral_attack,
    spectral_covariance,
)
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import by_name, described

# What a draw's key is folded with for the attacker (0 to 3 are the channel's and the receiver's).
_ATTACKER = 4
# What the key of a `Guessed` draw is folded with: the attack within draws from the key itself.
_GUESSED = 1

Powers = Callable[[str], Float[Array, " users"]]
"""The received powers that a choice is made by, given its name: "the strongest user"."""


@runtime_checkable
class Attack(Protocol):
    """`(h_tilde, budget, noise) -> C`: frozen and hashable, so that programs can hold it."""

    def __call__(
        self,
        h_tilde: Complex[Array, "antennas users"],
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
    ) -> Complex[Array, "antennas antennas"]:
        """The attacker's own covariance, of trace `budget`."""


@dataclass(frozen=True)
class NoAttack(Informed):
    """Only thermal noise: the paper's ideal channel. The budget is not used."""

    name: ClassVar[str] = "none"
    title: ClassVar[str] = "Ideal (no attack)"

    def _covariance(self, h: Array, budget: Array, noise: Array, power: Power) -> Array:
        return jnp.zeros((len(h), len(h)), h.dtype)

    def _gram(self, k: Array, budget: Array, noise: Array, antennas: int, power: Power) -> Array:
        return k / noise


NO_ATTACK = NoAttack()


@dataclass(frozen=True)
class White(Informed):
    """The budget spread evenly over the antennas: an attacker who knows nothing."""

    title: ClassVar[str] = "White noise"

    def _covariance(self, h: Array, budget: Array, noise: Array, power: Power) -> Array:
        return budget / len(h) * jnp.eye(len(h), dtype=h.dtype)

    def _gram(self, k: Array, budget: Array, noise: Array, antennas: int, power: Power) -> Array:
        return k / (noise + budget / antennas)


@dataclass(frozen=True)
class WhiteInRange(Informed):
    """The budget spread evenly over range(H~): an attacker who knows the users' subspace.

    Needs linearly independent channels, so not more users than antennas.
    """

    title: ClassVar[str] = "White noise in range"
    full_rank: ClassVar[bool] = True

    def _covariance(self, h: Array, budget: Array, noise: Array, power: Power) -> Array:
        here, vectors = in_own_basis(gram(h))
        return budget / len(here) * congruence(product(h, vectors), reciprocal(here))

    def _gram(self, k: Array, budget: Array, noise: Array, antennas: int, power: Power) -> Array:
        return k / (noise + budget / k.shape[0])


class _Spectral(Informed):
    """Attacks whose covariance shares the eigenvectors of H P H^H, see `spectral_attacks`."""

    rule: ClassVar[Rule]

    def _covariance(self, h: Array, budget: Array, noise: Array, power: Power) -> Array:
        return spectral_covariance(self.rule, h, budget, noise)

    def _gram(self, k: Array, budget: Array, noise: Array, antennas: int, power: Power) -> Array:
        real = jnp.real(k).dtype
        budget, noise = jnp.asarray(budget, real), jnp.asarray(noise, real)
        return spectral_attack(self.rule, k, budget, noise)


@dataclass(frozen=True)
class SumRate(_Spectral):
    """Minimises the sum rate, ignoring the floor, which is added afterwards.

    R-MTLLMF (arXiv 2411.18220), problem P1. Exact derivatives at repeated eigenvalues, where
    differentiating `eigh` gives NaN; non-smooth only where the channel loses rank.
    """

    title: ClassVar[str] = "Sum-rate attack"
    reference: ClassVar[str] = "arXiv 2411.18220, P1"
    rule: ClassVar[Rule] = SUM_RATE


@dataclass(frozen=True)
class SumRateFloorAware(_Spectral):
    """Minimises the sum rate, floor included: [sigma_i - noise]_+ on each eigendirection.

    Never above `SumRate` in sum rate. Non-smooth also where a direction is cut off.
    """

    title: ClassVar[str] = "Sum-rate attack, floor-aware"
    rule: ClassVar[Rule] = FLOOR_AWARE


@dataclass(frozen=True)
class SumMse(_Spectral):
    """Maximises tr (I + G)^-1, the sum of the LMMSE errors, floor included.

    Strong directions cost too much and very weak ones are lost anyway, so it attacks those in
    between. Non-smooth where a direction begins to be attacked.
    """

    title: ClassVar[str] = "Sum-MSE attack"
    rule: ClassVar[Rule] = SUM_MSE


class _TowardsOne(Informed):
    """C = budget h h^H / ||h||^2 for the channel h of one user."""

    def _user(self, power: Array) -> ArrayLike:
        raise NotImplementedError

    def _covariance(self, h: Array, budget: Array, noise: Array, power: Power) -> Array:
        own = received_power(gram(h))
        user = self._user(own if power is None else power)
        column = h[:, user]
        return budget * column[:, None] * column.conj() / own[user]

    def _gram(self, k: Array, budget: Array, noise: Array, antennas: int, power: Power) -> Array:
        own = received_power(k)
        user = self._user(own if power is None else power)
        column = k[:, user]
        # tiny keeps a silent cell (all powers zero) finite.
        along = column[:, None] * column.conj() / jnp.maximum(own[user], jnp.finfo(own).tiny)
        # What is orthogonal to h: its row and column of the attacked user vanish identically, and
        # rounding there would be divided by the small noise and not by the large jamming power.
        others = jnp.arange(k.shape[0]) != user
        orthogonal = jnp.where(others[:, None] & others, k - along, 0)
        return orthogonal / noise + along / (budget + noise)


@dataclass(frozen=True)
class Towards(_TowardsOne):
    """All power along the channel of one `user`, numbered from 0. Smooth."""

    user: int = 0
    title: ClassVar[str] = "Attack on one user"

    def _user(self, power: Array) -> int:
        if not 0 <= self.user < power.size:
            raise InputError(f"towards needs a user of 0 to {power.size - 1}, got {self.user}.")
        return self.user


@dataclass(frozen=True)
class StrongestUser(_TowardsOne):
    """All power along the strongest user's channel.

    R-MTLLMF (arXiv 2411.18220), problem P2 with the solution as printed. It minimises only that one
    user's rate and does not solve the printed min-max problem. As it has rank one, it needs the
    thermal floor, without which all other users have infinite rate. Non-smooth where the strongest
    user changes (a tie of the largest received powers).
    """

    title: ClassVar[str] = "Strongest-user attack"
    reference: ClassVar[str] = "arXiv 2411.18220, P2 as printed"
    chooses: ClassVar[str] = "the strongest user"

    def _user(self, power: Array) -> Array:
        return jnp.argmax(power)


@dataclass(frozen=True)
class MinMaxRate(Informed):
    """Minimises the largest single-user rate: P2 solved exactly, ignoring floor and interference.

    Needs linearly independent channels, so not more users than antennas.
    """

    title: ClassVar[str] = "Min-max-rate attack"
    full_rank: ClassVar[bool] = True

    def _covariance(self, h: Array, budget: Array, noise: Array, power: Power) -> Array:
        weighted = h * jnp.sqrt(min_max_weights(gram(h)))
        # (A A^H)^(1/2) = A (A^H A)^(-1/2) A^H.
        here, vectors = in_own_basis(gram(weighted))
        root = square_root(here)
        along = congruence(product(weighted, vectors), reciprocal(root))
        return budget / jnp.real(jnp.trace(root)) * along

    def _gram(self, k: Array, budget: Array, noise: Array, antennas: int, power: Power) -> Array:
        return min_max_rate(k, budget, noise)


_KINDS = by_name(
    NoAttack,
    White,
    WhiteInRange,
    SumRate,
    SumRateFloorAware,
    StrongestUser,
    MinMaxRate,
    SumMse,
    Towards,
    Jammer,
)


@dataclass(frozen=True)
class Guessed:
    """The attack `of` with partial knowledge of the channel: solved for H', applied to H.

    H' = rho H + sqrt(1 - rho^2) W for `csi` = rho in [0, 1], with W drawn afresh, independent
    CN(0, p_q), where p_q = ||h_q||^2 / N is the mean power of user q over the antennas of this
    particular channel: the attacker always knows how loud each user is. rho = 1 is `of` itself;
    rho = 0 is the case of frequency hopping, or of pilots that it cannot read. Draws W from the
    key.
    """

    of: Attack = SumRate()
    csi: float = 0.0
    random: ClassVar[bool] = True
    title: ClassVar[str] = "Attack on a guessed channel"
    choices: ClassVar[Mapping[str, Mapping[str, type]]] = MappingProxyType({"of": _KINDS})

    def __post_init__(self) -> None:
        require_within("csi", self.csi, 0.0, 1.0)

    def __call__(
        self,
        h_tilde: Complex[Array, "antennas users"],
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
    ) -> Complex[Array, "antennas antennas"]:
        """The attacker's own covariance, of trace `budget`.

        **Raises:** `InputError` without a `key` where something is drawn, and as `of` does.

        >>> h_tilde = jnp.array([[2.0 + 0j], [0.0]])
        >>> Guessed(StrongestUser(), csi=1.0)(h_tilde, 6.0).real.tolist()
        [[6.0, 0.0], [0.0, 0.0]]
        """
        drawn = {"key": key} if getattr(self.of, "random", False) else {}
        return self.of(self.believed(h_tilde, key), budget, noise, **drawn)

    def believed(
        self, h_tilde: Complex[Array, "antennas users"], key: Key[Array, ""] | None = None
    ) -> Complex[Array, "antennas users"]:
        """H', what the attacker believes the channel to be.

        **Raises:** `InputError` without a `key`, unless it knows the channel exactly.
        """
        require_channel(h_tilde)
        if self.csi == 1:
            return h_tilde
        if key is None:
            raise InputError(f"the attack {described(self)} draws what it guesses: give it a key.")
        antennas, users = h_tilde.shape
        fresh = rayleigh(jax.random.fold_in(key, _GUESSED), antennas, users, h_tilde.dtype)
        power = received_power(gram(h_tilde)) / antennas
        # tiny: a silent user has a derivative.
        loud = jnp.sqrt(jnp.maximum(power, jnp.finfo(power.dtype).tiny))
        return self.csi * h_tilde + math.sqrt(1 - self.csi**2) * loud * fresh


ATTACKS: Mapping[str, type] = MappingProxyType({**_KINDS, **by_name(Guessed)})
"""Attacks by the names that a command line has for them."""


def choice(value: object, powers: Powers | None) -> dict[str, Array]:
    """Return the argument `power` for a value that makes a discrete choice, else nothing."""
    name = getattr(value, "chooses", "")
    return {"power": powers(name)} if name and powers is not None else {}


def attacked_gram(
    attack: Attack,
    h_tilde: Complex[Array, "antennas users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
    powers: Powers | None = None,
    key: Key[Array, ""] | None = None,
) -> Complex[Array, "users users"]:
    """G = H~^H (C + noise I)^-1 H~ under any attack, through its `from_gram` if it has one.

    `key`: that of the draw, for random attacks.

    **Raises:** `InputError` as the attack does.

    >>> h_tilde = jnp.array([[1.0 + 0j], [0.0]])
    >>> attacked_gram(StrongestUser(), h_tilde, 3.0).real.tolist()
    [[0.25]]
    """
    if hasattr(attack, "from_gram"):
        made = choice(attack, powers)
        antennas = h_tilde.shape[0]
        found = attack.from_gram(gram(h_tilde), budget, noise, antennas=antennas, **made)
    elif hasattr(attack, "from_channel"):
        found = attack.from_channel(h_tilde, budget, noise, **_drawn(attack, key))
    else:
        covariance = attack_covariance(attack, h_tilde, budget, noise, key, powers)
        found = effective_gram(h_tilde, covariance, noise)
    return found


def attack_covariance(
    attack: Attack,
    h_tilde: Complex[Array, "antennas users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
    key: Key[Array, ""] | None = None,
    powers: Powers | None = None,
) -> Complex[Array, "antennas antennas"]:
    """The covariance of any attack over the antennas, in the draw of `key`.

    **Raises:** `InputError` for an attack that draws something without a key.
    """
    require_powers(budget, noise)
    return attack(h_tilde, budget, noise, **choice(attack, powers), **_drawn(attack, key))


def _drawn(attack: Attack, key: Key[Array, ""] | None) -> dict[str, Any]:
    """Return the argument `key` for an attack that draws something."""
    if not getattr(attack, "random", False):
        return {}
    if key is None:
        raise InputError(f"the attack {described(attack)} draws something: give a key.")
    return {"key": jax.random.fold_in(key, _ATTACKER)}
