"""What the users do on the air besides sending once: repeat, hop, take turns, as values.

A value is called as `air(h_tilde, attack, budget, noise, receiver, key, powers) -> Sent`, like
`channel.errors.user_errors`, and gives its cost in `uses`. The attacker knows the scheme and
responds to it (Kerckhoffs): it solves its attack against what the base station combines. Where
`blocks` is more than 1, the channel has a leading axis of that many independently fading blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.attacks import (
    Attack,
    NoAttack,
    Powers,
    attack_covariance,
    attacked_gram,
    choice,
)
from rmtllmf_jax.channel.checks import require_positive, require_within
from rmtllmf_jax.channel.errors import measured, planned, user_errors
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.channel.receivers import SIC, Receiver
from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import by_name, described

Blocks = Complex[Array, "antennas users"] | Complex[Array, "blocks antennas users"]


class Sent(NamedTuple):
    """One transmission of all users, in user order."""

    errors: Complex[Array, "users users"]
    """E[e e^H] of their unit-power symbols."""
    uses: Float[Array, " users"]
    """Channel uses per symbol, against sending it once."""


@runtime_checkable
class Air(Protocol):
    """`(h_tilde, attack, budget, ...) -> Sent`: frozen and hashable."""

    blocks: int
    """Independently fading blocks of the channel that it takes, 1 for one matrix."""

    def __call__(
        self,
        h_tilde: Blocks,
        attack: Attack,
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
        receiver: Receiver = SIC,
        key: Key[Array, ""] | None = None,
        powers: Powers | None = None,
    ) -> Sent:
        """What the users suffer, and what it costs."""


class _Known:
    stage: ClassVar[str] = "air"
    blocks: int = 1

    def __call__(
        self,
        h_tilde: Blocks,
        attack: Attack,
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
        receiver: Receiver = SIC,
        key: Key[Array, ""] | None = None,
        powers: Powers | None = None,
    ) -> Sent:
        """The users' errors and the channel uses spent.

        **Arguments:** those of `user_errors`; `h_tilde` has a leading axis of `blocks` where there
        are several.

        **Raises:** `InputError` for a channel with another number of blocks, and as `user_errors`
        does.
        """
        expected = (self.blocks,) if self.blocks > 1 else ()
        if h_tilde.ndim != len(expected) + 2 or h_tilde.shape[:-2] != expected:
            raise InputError(
                f"{described(self)} takes a channel of {self.blocks} blocks, so an array of "
                f"{len(expected) + 2} axes, got shape {h_tilde.shape}."
            )
        return self._sent(_Over(h_tilde, attack, budget, noise, receiver, key, powers))

    def _sent(self, over: _Over) -> Sent:
        raise NotImplementedError


@dataclass(frozen=True)
class _Over:
    """A channel and all that happens there."""

    h: Array
    attack: Attack
    budget: Any
    noise: Any
    receiver: Receiver
    key: Key[Array, ""] | None
    powers: Powers | None

    @property
    def users(self) -> int:
        return self.h.shape[-1]

    def errors(self, h: Array, budget: Any, powers: Powers | None = None) -> Array:
        """Return the errors over a channel in place of this one."""
        powers = powers or self.powers
        return user_errors(h, self.attack, budget, self.noise, self.receiver, self.key, powers)

    def combined(self, times: int, budget: Any) -> Array:
        """Return the errors of `times` combined receptions; the budget applies to each of them.

        Over one channel, maximum ratio combining gives sqrt(T) H~ and the mean covariance, which
        the attacker chooses. Several channels act as all their antennas together: the effective
        Gram matrices add, and the attacker solves each block.
        """
        if self.h.ndim == 2:
            return self.errors(_combining(self.h, times), budget)
        blocks = [(self.h[b], self._key(b)) for b in range(times)]
        total = jnp.sum(jnp.stack([received_power(gram(h)) for h, _ in blocks]), axis=0)
        if hasattr(self.receiver, "from_gram"):
            effective = sum(
                attacked_gram(self.attack, h, budget, self.noise, self.powers, key)
                for h, key in blocks
            )
            return self.receiver.from_gram(effective, total)
        if getattr(self.receiver, "one_array", False):
            raise InputError(
                f"the receiver {described(self.receiver)} is for one array, and not for the "
                "receptions of independent blocks together: take fading=same."
            )
        covariances = [
            attack_covariance(self.attack, h, budget, self.noise, key, self.powers)
            for h, key in blocks
        ]
        stacked = jax.scipy.linalg.block_diag(*covariances)
        told = choice(self.receiver, lambda _: total)
        told |= planned(self.receiver, times * jnp.asarray(budget))
        heard = self.h[:times].reshape(-1, self.users)
        return self.receiver(heard, stacked, self.noise, measured(self.key), **told)

    def _key(self, block: int) -> Key[Array, ""] | None:
        return self.key if self.key is None or not block else jax.random.fold_in(self.key, block)


@dataclass(frozen=True)
class Once(_Known):
    """Every symbol is sent once: the paper's uplink."""

    def _sent(self, over: _Over) -> Sent:
        return _costing(over, over.errors(over.h, over.budget), 1.0)

    def equivalent(self, h: Array, budget: Any) -> tuple[Array, Any]:
        """Return the channel and the budget of one transmission of symbols."""
        return h, budget


ONCE = Once()


@dataclass(frozen=True)
class Repeat(_Known):
    """All users repeat their symbols in step, and the receptions are combined.

    - `times`: T, how often a symbol is sent; spreading by a code of length T is equivalent.
    - `fading`: `same` channel each time, or `independent` small-scale fading each time (diversity).
    - `budget`: whether the attacker has its full budget in `each` repetition or one budget `shared`
      by all of them.
    - `patterns`: regular expressions; only leaves of the task vector with a path that fully matches
      one are repeated (unequal error protection). Without patterns, all are.

    Chase combining, exact: the effective Gram matrices of the blocks add.
    """

    times: int = 2
    fading: Literal["same", "independent"] = "same"
    budget: Literal["each", "shared"] = "each"
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least("times", self.times, 1)

    @property
    def blocks(self) -> int:  # type: ignore[override]
        """Independent blocks."""
        return self.times if self.fading == "independent" else 1

    def _sent(self, over: _Over) -> Sent:
        errors = over.combined(self.times, self._each(over.budget))
        return _costing(over, errors, float(self.times))

    def equivalent(self, h: Array, budget: Any) -> tuple[Array, Any]:
        """Return the channel and the budget of the combined symbols.

        **Raises:** `InputError` for blocks that fade independently.
        """
        if self.blocks > 1:
            raise InputError(
                f"{described(self)} combines blocks of independent fading, which only the errors "
                "are known of: send symbols with fading=same, or take the transport gaussian."
            )
        return _combining(h, self.times), self._each(budget)

    def _each(self, budget: Any) -> Any:
        """Return the attacker's budget in one repetition."""
        return budget / self.times if self.budget == "shared" else budget


@dataclass(frozen=True)
class Harq(_Known):
    """Hybrid ARQ: all repeat until a user's MSE is at most `target`, or `rounds` are over.

    User q keeps its result after its own last round, and the number of that round is its `uses`.
    The errors of different users are taken to be uncorrelated. Needs one bit of feedback per user
    and round. The attacker has its full budget in every round. Piecewise smooth: constant where no
    round is added.
    """

    rounds: int = 4
    target: float = 0.1
    fading: Literal["same", "independent"] = "same"

    def __post_init__(self) -> None:
        require_at_least("rounds", self.rounds, 1)
        require_positive("target", self.target)
        require_within("target", self.target, 0.0, 1.0)

    @property
    def blocks(self) -> int:  # type: ignore[override]
        """Independent blocks."""
        return self.rounds if self.fading == "independent" else 1

    def _sent(self, over: _Over) -> Sent:
        rounds = range(1, self.rounds + 1)
        mse = jnp.stack([jnp.real(jnp.diagonal(over.combined(r, over.budget))) for r in rounds])
        enough = (mse <= self.target).at[-1].set(True)
        last = jnp.argmax(enough, axis=0)
        kept = jnp.take_along_axis(mse, last[None], axis=0)[0]
        return Sent(jnp.diag(kept).astype(over.h.dtype), (last + 1).astype(mse.dtype))


@dataclass(frozen=True)
class Hop(_Known):
    """Hop over `bands` by a sequence that the attacker does not know, parameters interleaved.

    The attacker spreads its budget over J of the F bands, where J is the number that hurts most (or
    `jammed`). The MSE of each user is J/F times that under budget / J plus 1 - J/F times that
    without an attack. `shared`: others use the bands in the meantime, so that hopping costs no
    extra channel uses; otherwise it costs F. Needs a shared secret.
    """

    bands: int = 8
    jammed: int | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        require_at_least("bands", self.bands, 1)
        if self.jammed is not None:
            require_at_least("jammed", self.jammed, 1, self.bands)

    def _sent(self, over: _Over) -> Sent:
        quiet = user_errors(
            over.h, NoAttack(), over.budget, over.noise, over.receiver, over.key, over.powers
        )
        counts = jnp.arange(1, self.bands + 1) if self.jammed is None else jnp.array([self.jammed])

        def mixed(count: Array) -> Array:
            share = count / self.bands
            return share * over.errors(over.h, over.budget / count) + (1 - share) * quiet

        found = jax.vmap(mixed)(counts.astype(over.h.real.dtype))
        worst = jnp.argmax(jnp.real(jnp.trace(found, axis1=1, axis2=2)))
        return _costing(over, found[worst], 1.0 if self.shared else float(self.bands))


@dataclass(frozen=True)
class Schedule(_Known):
    """The users take turns in `groups` slots, user q in slot q modulo groups.

    Each slot is a smaller multiple access channel with the same attacker, who has its full budget
    in every slot. It takes as many channel uses as there are groups.
    """

    groups: int = 2

    def __post_init__(self) -> None:
        require_at_least("groups", self.groups, 1)

    def _sent(self, over: _Over) -> Sent:
        if hasattr(over.attack, "user"):
            raise InputError(
                f"the attack {described(over.attack)} is on one user by its number, and under "
                f"{described(self)} only some users send: choose another attack."
            )
        if self.groups > over.users:
            raise InputError(f"schedule: {self.groups} groups for {over.users} users.")
        errors = jnp.zeros((over.users,) * 2, over.h.dtype)
        for slot in range(self.groups):
            members = jnp.arange(slot, over.users, self.groups)
            powers = over.powers and _of_members(over.powers, members)
            some = over.errors(over.h[:, members], over.budget, powers)
            errors = errors.at[members[:, None], members].set(some)
        return _costing(over, errors, float(self.groups))


def _combining(h: Array, times: int) -> Array:
    """Return the channel of that many combined receptions, with the noise of one."""
    return jnp.sqrt(jnp.asarray(times, h.real.dtype)) * h


def _of_members(powers: Powers, members: Array) -> Powers:
    return lambda choice: powers(choice)[members]


def _costing(over: _Over, errors: Array, uses: float) -> Sent:
    return Sent(errors, jnp.full(over.users, uses, over.h.real.dtype))


AIR: Mapping[str, type] = MappingProxyType(by_name(Once, Repeat, Harq, Hop, Schedule))
"""What may be done on the air, by the names that a command line has."""
