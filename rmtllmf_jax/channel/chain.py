"""The chain of one uplink: preset -> H~ -> attack -> receiver -> errors, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.air import ONCE, Air, Blocks, Sent
from rmtllmf_jax.channel.attacks import (
    NO_ATTACK,
    Attack,
    Powers,
    attack_covariance,
)
from rmtllmf_jax.channel.equalise import ColouredNoise, Equaliser, coloured_noise
from rmtllmf_jax.channel.errors import measured, mse_of, planned
from rmtllmf_jax.channel.matrices import Matrices
from rmtllmf_jax.channel.presets import PRESETS, DirectPreset, Preset
from rmtllmf_jax.channel.realisation import draw_channel
from rmtllmf_jax.channel.receivers import SIC, Receiver
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import described

_UNITS = {"nats": 1.0, "bits": math.log(2.0)}


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

    The scenario `clean` has no link; `ideal` has one without an attack.

    **Raises:** `InputError` for an attack, a receiver or an `air` scheme on a preset without a
    channel, and for independent fading where the channels are given.
    """

    preset: Preset
    attack: Attack = NO_ATTACK
    receiver: Receiver = SIC
    air: Air = ONCE

    def __post_init__(self) -> None:
        if self.preset.has_channel:
            if isinstance(self.preset, Matrices) and self.air.blocks > 1:
                raise InputError(
                    f"{described(self.air)} draws new fading, but the channels of "
                    f"{described(self.preset)} are given: use fading=same."
                )
            return
        chosen = {"attack": self.attack, "receiver": self.receiver, "air": self.air}
        for what, value in chosen.items():
            if value not in (NO_ATTACK, SIC, ONCE):
                raise InputError(
                    f"the {what} {described(value)} needs a channel, and {described(self.preset)} "
                    "has none, only the errors that users end up with: leave it out, or take a "
                    f"channel preset ({', '.join(PRESETS)})."
                )

    def draw(self, key: Key[Array, ""]) -> Blocks:
        """H~ drawn from `key`, with a leading axis where `air` takes several blocks.

        Links share the draw: one key is one channel, whatever the attack. The first block is the
        channel of a link with one block.
        """
        if self.air.blocks == 1:
            return draw_channel(self.preset, key)
        return jnp.stack([draw_channel(self.preset, key, b) for b in range(self.air.blocks)])

    def sent(self, key: Key[Array, ""], **changes: Any) -> Sent:
        """E[e e^H] and channel uses of the users over the channel that `key` draws, see `over`."""
        if isinstance(self.preset, DirectPreset):
            mse = jnp.array(self.preset.user_mse)
            return Sent(jnp.diag(mse).astype(complex), jnp.ones_like(mse))
        return self.over(self.draw(key), key, **changes)

    def errors(self, key: Key[Array, ""], **changes: Any) -> Complex[Array, "users users"]:
        """E[e e^H] of the users over the channel that `key` draws, see `over`."""
        return self.sent(key, **changes).errors

    def mse(self, key: Key[Array, ""], **changes: Any) -> Float[Array, " users"]:
        """MSE of every user, in user order, over the channel that `key` draws.

        >>> import jax
        >>> Link(DirectPreset(mse=(0.25, 0.5))).mse(jax.random.key(0)).tolist()
        [0.25, 0.5]
        """
        return mse_of(self.errors(key, **changes))

    def over(
        self,
        h_tilde: Blocks,
        key: Key[Array, ""] | None = None,
        *,
        budget: Real[ArrayLike, ""] | None = None,
        powers: Powers | None = None,
    ) -> Sent:
        """What a transmission over a given channel (see `draw`) yields, in units of the noise.

        The `budget` is the preset's; `key` is that of the draw.
        """
        power = self.preset.attack_budget if budget is None else budget
        return self.air(h_tilde, self.attack, power, 1.0, self.receiver, key, powers)

    def filters(
        self,
        h_tilde: Complex[Array, "antennas users"],
        key: Key[Array, ""],
        budget: Real[ArrayLike, ""] | None = None,
    ) -> tuple[Complex[Array, "antennas users"], ColouredNoise, Equaliser]:
        """The channel of the combined symbols, all noise, and the receiver's filters for it.

        This is what symbols pass through (`channel.link.send`); `over` gives their errors.

        **Raises:** `InputError` where symbols cannot be sent through what the air combines.
        """
        power = self.preset.attack_budget if budget is None else budget
        if not hasattr(self.air, "equivalent"):
            raise InputError(
                f"{described(self.air)} is known by the users' errors alone, and symbols cannot be "
                "sent through it: take the transport gaussian."
            )
        h_tilde, power = self.air.equivalent(h_tilde, power)
        attack = attack_covariance(self.attack, h_tilde, power, 1.0, key)
        receiver: Any = self.receiver
        told = planned(receiver, power)
        filters = receiver.filters(h_tilde, attack, 1.0, measured(key), **told)
        return h_tilde, coloured_noise(h_tilde, attack, 1.0), filters
