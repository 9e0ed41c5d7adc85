"""The MSE of every user as a smooth function of the parameters, with fixed discrete choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

from rmtllmf_jax import channel
from rmtllmf_jax.channel import Link
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.evaluation.discrete import discrete
from rmtllmf_jax.gradients.parameters import FreeAttack, Parameters, channel_matrix

Drawn = Callable[[Parameters, Key[Array, ""]], Complex[Array, "antennas users"]]
"""`(parameters, key) -> H~`: a channel of your own, which may read what parameters it likes."""


def user_mse(
    parameters: Parameters,
    link: Link,
    key: Key[Array, ""],
    reference: Parameters | None = None,
    drawn: Drawn | None = None,
) -> Float[Array, "users *leaves"]:  # noqa: F821
    """MSE of every user, in user order, over the channel that `key` draws.

    `Link.mse` with the parameters inserted; per leaf too if they include `leaf_powers`. R-MTLLMF
    (arXiv 2411.18220), eq. (5).

    **Arguments:**

    - `reference`: parameters that determine the SIC order and the strongest user, through their
      received powers in the same draw. The choices are then constants, and the MSE is smooth in the
      parameters. `None`: chosen by the parameters themselves.
    - `drawn`: draws the channel in place of the preset; it may be built from `channel.channel_at`
      and its arguments (angles, K factor, antennas).

    **Raises:** `InputError` where it is differentiated through such a choice.
    """
    if parameters.mse is not None:
        return parameters.mse
    if not link.preset.has_channel and drawn is None:
        return link.mse(key)

    if link.air.blocks > 1:
        raise InputError(
            f"{described(link.air)} draws the fading anew, and parameters are those of one "
            "channel: take fading=same."
        )

    def matrix(parameters: Parameters) -> Complex[Array, "antennas users"]:
        if drawn is not None:
            return drawn(parameters, key)
        return channel_matrix(parameters, link.preset, key)

    h_tilde = matrix(parameters)
    choosing = h_tilde if reference is None else matrix(reference)
    power = channel.received_power(channel.gram(choosing))

    def powers(choice: str) -> Float[Array, " users"]:
        held = "hold it with objective.fixed_at(parameters)"
        return discrete(choice, power, held) if reference is None else jax.lax.stop_gradient(power)

    if parameters.attack is not None:
        link = replace(link, attack=FreeAttack(parameters.attack))

    def mse(h_tilde: Complex[Array, "antennas users"]) -> Float[Array, " users"]:
        sent = link.over(h_tilde, key, budget=parameters.budget, powers=powers)
        return channel.mse_of(sent.errors)

    if parameters.leaf_powers is None:
        return mse(h_tilde)
    return jax.vmap(lambda power: mse(jnp.sqrt(power) * h_tilde), out_axes=1)(
        parameters.leaf_powers
    )
