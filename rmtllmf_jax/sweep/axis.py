"""An axis of a sweep: the channel's strength in levels, the noise of a draw being the same at all.

Levels are data of one compiled program, which is why they are not presets of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

from rmtllmf_jax import channel
from rmtllmf_jax.channel import ChannelPreset, DirectPreset, Preset
from rmtllmf_jax.channel.checks import require_decibels, require_within
from rmtllmf_jax.common.errors import InputError, require_known

AXES = {
    "snr_db": "SNR per antenna of a user at 1 km and full power, P beta(1 km) / n",
    "mse": "the MSE of every user, in place of a channel",
    "budget_db": "the attacker's total power over the noise of one antenna, P_N / n",
}
"""What a level may be, in dB where the name says so."""


@dataclass(frozen=True)
class Axis:
    """A quantity of `AXES` and its values; without a name there is none."""

    name: str = ""
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse unknown names, no or double levels, and values that no channel can have."""
        if not self.name and not self.levels:
            return
        require_known("axis", self.name, AXES)
        if not self.levels:
            raise InputError(f"the axis {self.name} has no level; give some, as {self.name}=1,2,3.")
        if len(set(self.levels)) < len(self.levels):
            raise InputError(f"the axis {self.name} names a level twice: {list(self.levels)}.")
        if self.name == "mse":
            require_within("mse", self.levels, 0.0, 1.0)
        else:
            require_decibels(self.name, self.levels)

    def levels_of(self, scenario: str) -> list[tuple[str, float] | tuple[()]]:
        """Return name and value of every level that a scenario has; `clean` has no channel."""
        if not self.name or scenario == "clean":
            return [()]
        return [(self.name, level) for level in self.levels]

    def require_fitting(self, preset: Preset) -> None:
        """Check that a preset has what the axis changes.

        **Raises:** `InputError` for an axis of the channel on a direct preset.
        """
        if self.name not in ("", "mse") and isinstance(preset, DirectPreset):
            raise InputError(
                f"the axis {self.name} is a channel's, and a direct preset of mse or snr_db has "
                "none: choose the axis mse, or a channel preset."
            )

    def require_meaning(self, scenario: str) -> None:
        """Check that a scenario depends on the axis.

        **Raises:** `InputError` if all levels would be the same cell.
        """
        if scenario == "clean":
            return
        if self.name == "mse" and scenario != "ideal":
            raise InputError(
                f"the axis mse gives the users' errors, and the scenario {scenario!r} attacks a "
                "channel: choose the scenarios clean and ideal, or the axis snr_db or budget_db."
            )
        if self.name == "budget_db" and scenario == "ideal":
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


def user_mse(
    key: Key[Array, ""], scenario: str, preset: Preset, axis: str, level: float | None
) -> Float[Array, " users"]:
    """Return every user's MSE at a level; with no axis, that of the preset itself.

    **Raises:** `InputError` for an axis of the channel on a direct preset, which has none.
    """
    if scenario == "clean" or level is None:
        return _direct(key, scenario, preset)
    if axis == "mse":
        return jnp.full(preset.users, level, jnp.float32)
    return _over_channel(key, scenario, *_channel_of(preset, axis, level))


def error_covariance(
    key: Key[Array, ""], scenario: str, preset: ChannelPreset, axis: str, level: float | None
) -> Complex[Array, "users users"]:
    """Return the covariance of the users' errors behind the joint LMMSE receiver, at a level.

    With MSEs that are given (the axis `mse`) it is that of the preset's own channel.
    """
    if level is None or axis == "mse":
        axis, level = "snr_db", preset.edge_snr_db
    return _joint_covariance(key, scenario, *_channel_of(preset, axis, level))


def _channel_of(
    preset: Preset, axis: str, level: float
) -> tuple[ChannelPreset, Float[Array, ""], Float[Array, ""]]:
    """Return a preset that knows no level (static), and the gain and the budget that do (data)."""
    Axis(axis, (level,)).require_fitting(preset)
    assert isinstance(preset, ChannelPreset)  # for the type checker
    gain, budget = 1.0, preset.attack_budget
    if axis == "snr_db":
        gain = 10.0 ** ((level - preset.edge_snr_db) / 10)
    else:
        budget = 10.0 ** (level / 10)
    same = replace(preset, attack_budget_db=0.0)
    return same, jnp.asarray(gain, jnp.float32), jnp.asarray(budget, jnp.float32)


@partial(jax.jit, static_argnames=("scenario", "preset"))
def _direct(key: Key[Array, ""], scenario: str, preset: Preset) -> Float[Array, " users"]:
    return channel.user_mse(scenario, preset, key)


@partial(jax.jit, static_argnames=("scenario", "preset"))
def _over_channel(
    key: Key[Array, ""],
    scenario: str,
    preset: ChannelPreset,
    gain: Float[Array, ""],
    budget: Float[Array, ""],
) -> Float[Array, " users"]:
    h_tilde = channel.draw_channel(preset, key) * jnp.sqrt(gain)
    attack = channel.SCENARIOS[scenario] or "none"
    return channel.user_mse_from_channel(h_tilde, attack, budget, order=preset.order)


@partial(jax.jit, static_argnames=("scenario", "preset"))
def _joint_covariance(
    key: Key[Array, ""],
    scenario: str,
    preset: ChannelPreset,
    gain: Float[Array, ""],
    budget: Float[Array, ""],
) -> Complex[Array, "users users"]:
    gram = channel.gram(channel.draw_channel(preset, key)) * gain
    attack = channel.get_attack(channel.SCENARIOS[scenario] or "none", antennas=preset.antennas)
    return channel.error_covariance(attack(gram, budget, 1.0))
