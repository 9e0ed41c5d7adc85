"""The chain of one uplink: preset -> H~ -> attack -> receiver -> errors, as a value."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.attacks import (
    ATTACKS,
    NO_ATTACK,
    Attack,
    NoAttack,
    Powers,
    attacked_gram,
    choice,
)
from rmtllmf_jax.channel.checks import require_powers
from rmtllmf_jax.channel.equalise import ColouredNoise, Equaliser, coloured_noise
from rmtllmf_jax.channel.presets import PRESETS, DirectPreset, Preset
from rmtllmf_jax.channel.realisation import draw_channel, gram, received_power
from rmtllmf_jax.channel.receivers import SIC, Receiver
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import described, parse

_UNITS = {"nats": 1.0, "bits": math.log(2.0)}

# What a draw's key is folded with for the receiver (0 and 1 are the channel's, 2 is `survey`'s).
_MEASURED = 3


def user_errors(
    h_tilde: Complex[Array, "antennas users"],
    attack: Attack,
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
    receiver: Receiver = SIC,
    key: Key[Array, ""] | None = None,
    powers: Powers | None = None,
) -> Complex[Array, "users users"]:
    """E[e e^H] of the users' unit-power symbols over a given channel, in user order.

    **Arguments:**

    - `h_tilde`: H diag(sqrt p); `budget` >= 0 and `noise` > 0 in the unit of |h~|^2.
    - `attack`, `receiver`: of `channel.attacks` and `channel.receivers`, or of your own.
    - `key`: draws what the receiver measures, if it does.
    - `powers`: the received powers by which discrete choices are made, by the name of the choice
      (`chooses`); left out, those of the channel.

    Differentiable in channel, budget and noise except where two received powers tie (the SIC order
    swaps, the strongest user changes), where the channel loses rank, and where an attack that
    counts the floor begins to spend on a direction.

    **Raises:** `InputError` outside jit for a channel that is not finite, a negative budget or
    noise that is not positive (inside: `channel.check_uplink`).
    """
    if not hasattr(receiver, "from_gram"):
        require_powers(budget, noise)
        covariance = attack(h_tilde, budget, noise, **choice(attack, powers))
        return receiver(h_tilde, covariance, noise, key, **choice(receiver, powers))
    effective = attacked_gram(attack, h_tilde, budget, noise, powers)
    made = choice(receiver, powers) or {"power": received_power(gram(h_tilde))}
    found: Array = receiver.from_gram(effective, **made)
    return found


def user_mse(
    h_tilde: Complex[Array, "antennas users"],
    attack: Attack,
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
    receiver: Receiver = SIC,
    key: Key[Array, ""] | None = None,
    powers: Powers | None = None,
) -> Float[Array, " users"]:
    """MSE of every user, in user order, over a given channel: the diagonal of `user_errors`.

    R-MTLLMF (arXiv 2411.18220), eq. (5).

    >>> from rmtllmf_jax.channel.attacks import StrongestUser
    >>> h_tilde = jnp.array([[1.0 + 0j], [0.0]])
    >>> user_mse(h_tilde, NoAttack(), 0.0).tolist()
    [0.5]
    >>> print(user_mse(h_tilde, StrongestUser(), 3.0).round(3))
    [0.8]
    """
    return mse_of(user_errors(h_tilde, attack, budget, noise, receiver, key, powers))


def mse_of(errors: Complex[Array, "users users"]) -> Float[Array, " users"]:
    """MSE of every user: the diagonal of the errors' covariance."""
    return jnp.real(jnp.diagonal(errors))


def user_rates(mse: Float[Array, "*batch"], unit: str = "nats") -> Float[Array, "*batch"]:
    """Rate -log mu of every user per channel use, in `nats` or `bits`.

    **Raises:** `InputError` for another unit.

    >>> user_rates(jnp.array([0.5, 0.125]), "bits").tolist()
    [1.0, 3.0]
    """
    return -jnp.log(mse) / _UNITS[require_known("unit of rates", unit, _UNITS)]


@dataclass(frozen=True)
class Link:
    """What the users send through. Hashable: equal links share a compiled program.

    The scenario `clean` is no link, and `ideal` one without an attack.

    **Raises:** `InputError` for an attack or a receiver on a preset without a channel.
    """

    preset: Preset
    attack: Attack = NO_ATTACK
    receiver: Receiver = SIC

    def __post_init__(self) -> None:
        if self.preset.has_channel:
            return
        for what, value in (("attack", self.attack), ("receiver", self.receiver)):
            if value != NO_ATTACK and value != SIC:
                raise InputError(
                    f"the {what} {described(value)} needs a channel, and {described(self.preset)} "
                    "has none, only the errors that users end up with: leave it out, or take a "
                    f"channel preset ({', '.join(PRESETS)})."
                )

    def errors(self, key: Key[Array, ""], **changes: Any) -> Complex[Array, "users users"]:
        """E[e e^H] of the users over the channel that `key` draws, see `over`.

        Links share the draw: one key is one channel, whoever attacks it.
        """
        if isinstance(self.preset, DirectPreset):
            return jnp.diag(jnp.array(self.preset.user_mse)).astype(complex)
        return self.over(draw_channel(self.preset, key), key, **changes)

    def mse(self, key: Key[Array, ""], **changes: Any) -> Float[Array, " users"]:
        """MSE of every user, in user order, over the channel that `key` draws.

        >>> import jax
        >>> Link(DirectPreset(mse=(0.25, 0.5))).mse(jax.random.key(0)).tolist()
        [0.25, 0.5]
        """
        return mse_of(self.errors(key, **changes))

    def over(
        self,
        h_tilde: Complex[Array, "antennas users"],
        key: Key[Array, ""] | None = None,
        *,
        budget: Real[ArrayLike, ""] | None = None,
        powers: Powers | None = None,
    ) -> Complex[Array, "users users"]:
        """`user_errors` over a given channel, in units of the noise; the `budget` is the preset's.

        `key` is that of the draw.
        """
        power = self.preset.attack_budget if budget is None else budget
        key = None if key is None else jax.random.fold_in(key, _MEASURED)
        return user_errors(h_tilde, self.attack, power, 1.0, self.receiver, key, powers)

    def filters(
        self,
        h_tilde: Complex[Array, "antennas users"],
        key: Key[Array, ""],
        budget: Real[ArrayLike, ""] | None = None,
    ) -> tuple[ColouredNoise, Equaliser]:
        """All noise over a given channel, floor included, and the receiver's filters for it.

        What symbols go through (`channel.link.send`); `over` says what errors they suffer.
        """
        power = self.preset.attack_budget if budget is None else budget
        attack, key = self.attack(h_tilde, power, 1.0), jax.random.fold_in(key, _MEASURED)
        receiver: Any = self.receiver
        return coloured_noise(h_tilde, attack, 1.0), receiver.filters(h_tilde, attack, 1.0, key)


class Scenario(str):
    """The name of a scenario as tables have it, which knows its `attack`; `clean` has none.

    Made of such a name, of an attack, or of None for `clean`.

    **Raises:** `InputError` that names the nearest one.

    >>> Scenario("towards(2)"), Scenario("towards(2)").attack
    ('towards(user=2)', Towards(user=2))
    >>> Scenario(None), Scenario(NoAttack())
    ('clean', 'ideal')
    """

    attack: Attack | None

    def __new__(cls, given: str | Attack | None) -> Scenario:
        if isinstance(given, Scenario):
            return given
        attack = _parsed(given) if isinstance(given, str) else given
        plain = "clean" if attack is None else "ideal" if attack == NO_ATTACK else described(attack)
        made = super().__new__(cls, plain)
        made.attack = attack
        return made

    def __getnewargs__(self) -> tuple[Attack | None]:  # type: ignore[override]
        return (self.attack,)


@functools.cache
def _parsed(text: str) -> Attack | None:
    if text == "clean":
        return None
    attack: Attack = parse(text, {"clean": NoAttack, "ideal": NoAttack, **ATTACKS}, "scenario")
    return attack
