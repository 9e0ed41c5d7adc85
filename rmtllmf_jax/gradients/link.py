"""The MSE of every user as a smooth function of the parameters, its discrete choices held fixed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

from rmtllmf_jax import channel
from rmtllmf_jax.channel import SCENARIOS, ChannelPreset, Preset
from rmtllmf_jax.channel.attacks import get_attack, towards_user
from rmtllmf_jax.channel.coloured_noise import noise_of_root
from rmtllmf_jax.evaluation.discrete import discrete
from rmtllmf_jax.gradients.parameters import Parameters, channel_matrix, covariance_root


def _power_of(
    h_tilde: Complex[Array, "antennas users"], *, fixed: bool
) -> Callable[[str], Float[Array, " users"]]:
    """Return the received powers, for a choice to be made from, by the name of the choice.

    If `fixed`, they are constants; else a derivative through the choice is refused.
    """
    power = channel.received_power(channel.gram(h_tilde))
    if fixed:
        return lambda choice: jax.lax.stop_gradient(power)
    return lambda choice: discrete(choice, power)


def user_mse(
    parameters: Parameters,
    scenario: str,
    preset: Preset,
    key: Key[Array, ""],
    reference: Parameters | None = None,
) -> Float[Array, " users"]:
    """MSE of every user, in user order, over the channel that `key` draws.

    `channel.user_mse` with the parameters in their places. R-MTLLMF (arXiv 2411.18220), eq. (5).

    **Arguments:**

    - `reference`: parameters by whose received powers, in the same draw, the SIC order and the
      strongest user are chosen. They are then constants, and the MSE is smooth in the parameters.
      `None`: chosen by the parameters themselves.

    **Raises:** `InputError` where it is differentiated through such a choice.
    """
    if parameters.mse is not None:
        return parameters.mse
    if scenario == "clean" or not isinstance(preset, ChannelPreset):
        return channel.user_mse(scenario, preset, key)
    h_tilde = channel_matrix(parameters, preset, key)
    choosing = h_tilde if reference is None else channel_matrix(reference, preset, key)
    power_for = _power_of(choosing, fixed=reference is not None)
    effective = _effective_gram(parameters, scenario, preset, h_tilde, power_for)
    if preset.order is None:
        return channel.lmmse_mse(effective)
    return channel.sic_mse(effective, channel.sic_order(power_for("the SIC order"), preset.order))


def _effective_gram(
    parameters: Parameters,
    scenario: str,
    preset: ChannelPreset,
    h_tilde: Complex[Array, "antennas users"],
    power_for: Callable[[str], Float[Array, " users"]],
) -> Complex[Array, "users users"]:
    budget = preset.attack_budget if parameters.budget is None else parameters.budget
    if parameters.attack is not None:
        noise = noise_of_root(covariance_root(parameters.attack), budget, 1.0)
        return channel.gram(noise.whiten(h_tilde))
    attack, gram = SCENARIOS[scenario], channel.gram(h_tilde)
    assert attack is not None  # clean has been dealt with
    if attack == "strongest_user":
        return towards_user(gram, budget, 1.0, jnp.argmax(power_for("the strongest user")))
    return get_attack(attack, antennas=preset.antennas)(gram, budget, 1.0)
