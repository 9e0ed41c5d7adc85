"""An axis of a sweep: levels of the channel's strength, with the same noise in a draw at all.

Levels of power are data of one compiled program; each level of another quantity is its own preset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

from rmtllmf_jax import channel
from rmtllmf_jax.channel import (
    NO_ATTACK,
    ChannelPreset,
    DirectPreset,
    Equaliser,
    Kronecker,
    Link,
    Matrices,
    Preset,
    Rician,
    Sent,
    mse_of,
)
from rmtllmf_jax.channel.checks import require_decibels, require_within
from rmtllmf_jax.channel.equalise import ColouredNoise
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import described
from rmtllmf_jax.uplink import GAUSSIAN, MseTransport, Scenario, Transport, is_of_mse

AXES = {
    "snr_db": "SNR per antenna of a user at 1 km and full power, P beta(1 km) / n",
    "mse": "the MSE of every user, in place of a channel",
    "budget_db": "the attacker's total power over the noise of one antenna, P_N / n",
    "users": "users of the channel, the first ones of which send the tasks",
    "antennas": "receive antennas",
    "k_factor_db": "Rician fading: line of sight over scattered power",
    "correlation": "exponential correlation of neighbouring receive antennas, Kronecker model",
    "c0_db": "parameter-domain SNR of a user with MSE 1, which sets kappa",
}
"""What a level may be, in dB where the name says so."""

_DATA = ("snr_db", "budget_db")
"""Levels that are data of one compiled program; the others make another preset."""

_STATIC: dict[str, Callable[[Any, float], Any]] = {
    "users": lambda preset, level: replace(preset, users=int(level)),
    "antennas": lambda preset, level: replace(preset, antennas=int(level)),
    "k_factor_db": lambda preset, level: replace(preset, fading=Rician(level)),
    "correlation": lambda preset, level: replace(preset, fading=Kronecker(level)),
}

_GIVEN = ("", "mse", "c0_db", "budget_db")
"""Axes that channels have which are given as they are."""


@dataclass(frozen=True)
class Axis:
    """A quantity of `AXES` and its values; without a name there is no axis."""

    name: str = ""
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse unknown names, missing or repeated levels, and values that no channel can have."""
        if not self.name and not self.levels:
            return
        require_known("axis", self.name, AXES)
        if not self.levels:
            raise InputError(f"the axis {self.name} has no level; give some, as {self.name}=1,2,3.")
        if len(set(self.levels)) < len(self.levels):
            raise InputError(f"the axis {self.name} names a level twice: {list(self.levels)}.")
        if self.name == "mse":
            require_within("mse", self.levels, 0.0, 1.0)
        elif self.name == "correlation":
            require_within("correlation", self.levels, 0.0, 0.999)
        elif self.name in ("users", "antennas"):
            for level in self.levels:
                if not level.is_integer() or level < 1:
                    raise InputError(f"{self.name} must be whole numbers >= 1, got {level:g}.")
        else:
            require_decibels(self.name, self.levels)

    def levels_of(self, scenario: str) -> list[tuple[str, float] | tuple[()]]:
        """Return name and value of every level of a scenario; `clean` has no channel."""
        if not self.name or Scenario(scenario).attack is None:
            return [()]
        return [(self.name, level) for level in self.levels]

    def require_fitting(
        self, preset: Preset, transport: Transport | MseTransport = GAUSSIAN
    ) -> None:
        """Check that preset and transport have what the axis changes, at every level.

        **Raises:** `InputError` for a channel axis on a direct preset, for an axis of a drawn
        quantity on given channels, and for an axis of the surrogate on another transport.
        """
        if self.name in ("mse", "c0_db") and not is_of_mse(transport):
            raise InputError(
                f"the axis {self.name} sets errors that are given, and those of "
                f"{described(transport)} follow from its symbols: choose an axis of the channel, "
                "such as snr_db or budget_db."
            )
        if isinstance(preset, Matrices) and self.name not in _GIVEN:
            raise InputError(
                f"the axis {self.name} changes how channels are drawn, and those of "
                f"{described(preset)} are given: choose the axis budget_db, mse or "
                "c0_db, or a channel preset."
            )
        if self.name in _STATIC and preset.has_channel:
            for level in self.levels:
                _STATIC[self.name](preset, level)  # which refuses what it cannot be
        if self.name not in ("", "mse", "c0_db") and not preset.has_channel:
            raise InputError(
                f"the axis {self.name} is a channel's, and a direct preset of mse or snr_db has "
                "none: choose the axis mse, or a channel preset."
            )

    def require_meaning(self, scenario: str) -> None:
        """Check that a scenario depends on the axis.

        **Raises:** `InputError` if all levels would be the same configuration.
        """
        if (attack := Scenario(scenario).attack) is None:
            return
        if self.name == "mse" and attack != NO_ATTACK:
            raise InputError(
                f"the axis mse gives the users' errors, and the scenario {scenario!r} "
                "attacks a channel: choose the scenarios clean and ideal, or another axis."
            )
        if self.name == "budget_db" and attack == NO_ATTACK:
            raise InputError(
                "the axis budget_db is the attacker's power, and the scenario 'ideal' has no "
                "attacker: leave it out, or choose the axis snr_db."
            )


NO_AXIS = Axis()
"""The channel preset says it all."""


def parse_axis(text: str) -> Axis:
    """Return the axis that ``name=value,value,...`` describes; an empty text is none.

    **Raises:** `InputError` for anything else.

    >>> parse_axis("snr_db=-10,0,10")
    Axis(name='snr_db', levels=(-10.0, 0.0, 10.0))
    """
    if not text:
        return NO_AXIS
    name, _, values = text.partition("=")
    try:
        levels = tuple(float(value) for value in values.split(",") if value.strip())
    except ValueError:
        raise InputError(
            f"expected an axis as NAME=VALUE,VALUE with a name of {', '.join(AXES)}, got {text!r}."
        ) from None
    return Axis(name, levels)


def link_mse(
    key: Key[Array, ""], link: Link, axis: str, level: float | None
) -> Float[Array, " users"]:
    """Return every user's MSE behind a link at a level; with no axis, that of the link itself."""
    given = given_mse(link, axis, level)
    return mse_of(link_sent(key, link, axis, level).errors) if given is None else given


def given_mse(link: Link, axis: str, level: float | None) -> Float[Array, " users"] | None:
    """Return every user's MSE where it is itself the level of an axis."""
    if axis != "mse" or level is None:
        return None
    return jnp.full(link.preset.users, level, jnp.float32)


def link_sent(key: Key[Array, ""], link: Link, axis: str, level: float | None) -> Sent:
    """Return the errors of the users behind a link at a level, and their channel uses.

    With given MSEs (the axis `mse`) the channel uses are those of the link's own channel.
    """
    return _sent(key, *_at_level(link, axis, level))


def link_channel(
    key: Key[Array, ""], link: Link, axis: str, level: float | None
) -> tuple[Complex[Array, "antennas users"], ColouredNoise, Equaliser]:
    """Return H~, all noise and the receiver's filters behind a link at a level.

    In units of the noise; from the same draw as `link_sent` for the key.
    """
    return _channel(key, *_at_level(link, axis, level))


def _at_level(
    link: Link, axis: str, level: float | None
) -> tuple[Link, Float[Array, ""] | None, Float[Array, ""] | None]:
    """Return the link, with gain and budget where these are data."""
    if axis in _DATA and level is not None:
        preset = link.preset
        assert not isinstance(preset, DirectPreset)  # checked by `require_fitting`
        gain, budget = 1.0, 10.0 ** (level / 10)
        if axis == "snr_db":
            assert isinstance(preset, ChannelPreset)
            gain = 10.0 ** ((level - preset.edge_snr_db) / 10)
            budget = preset.attack_budget
        link = replace(link, preset=replace(preset, attack_budget_db=0.0))
        return link, jnp.asarray(gain, jnp.float32), jnp.asarray(budget, jnp.float32)
    if axis in _STATIC and level is not None:
        link = replace(link, preset=_STATIC[axis](link.preset, level))
    return link, None, None


@partial(jax.jit, static_argnames="link")
def _sent(
    key: Key[Array, ""],
    link: Link,
    gain: Float[Array, ""] | None,
    budget: Float[Array, ""] | None,
) -> Sent:
    if gain is None:
        return link.sent(key)
    return link.over(link.draw(key) * jnp.sqrt(gain), key, budget=budget)


@partial(jax.jit, static_argnames="link")
def _channel(
    key: Key[Array, ""],
    link: Link,
    gain: Float[Array, ""] | None,
    budget: Float[Array, ""] | None,
) -> tuple[Complex[Array, "antennas users"], ColouredNoise, Equaliser]:
    h_tilde = channel.draw_channel(link.preset, key)
    if gain is not None:
        h_tilde = h_tilde * jnp.sqrt(gain)
    return link.filters(h_tilde, key, budget)
