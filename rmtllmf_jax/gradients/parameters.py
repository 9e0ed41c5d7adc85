"""The variables of an objective: power, place, attack, budget and merging coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

from rmtllmf_jax.channel import (
    NO_ATTACK,
    ChannelPreset,
    DirectPreset,
    Link,
    Matrices,
    PowerLaw,
    Preset,
    angles_from_positions,
    channel_at,
    distances_from_positions,
    draw_channel,
    draw_distances,
    gram,
)
from rmtllmf_jax.channel.checks import require_finite, require_positive, require_within
from rmtllmf_jax.channel.equalise import noise_of_root
from rmtllmf_jax.channel.linalg import cholesky, product
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.uplink import Scenario

LEAST_POWER = 1e-6
"""Smallest share of its power that a user can be given: the root has no derivative at zero."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Differentiable numbers; `None` leaves one to the preset, and out of the tree.

    Powers are in units of the thermal noise power per antenna, as in `channel`. Q users, T tasks
    (the first T users send one each), A antennas.
    """

    powers: Float[Array, " users"] | None = None
    """Share p_q / P of its full power that each user sends with, > 0; above 1 is more than full."""
    distances: Float[Array, " users"] | None = None
    """Metres to the base station, in place of drawn ones."""
    positions: Float[Array, "users axes"] | None = None
    """Metres, (x, y) or (x, y, z), in place of distances. The base station is at the origin and its
    array along the y axis: under `Rician` fading the angles of arrival are those of the places."""
    path_loss_exponent: Float[Array, ""] | None = None
    """Exponent of a `PowerLaw`; the SNR at 1 km stays what the preset says."""
    budget: Float[Array, ""] | None = None
    """P_N, the attacker's power over the noise of one antenna, as a ratio."""
    attack: Float[Array, "2 antennas antennas"] | None = None
    """Root L of a free attack covariance C = P_N L L^H: real part of a lower triangle, and
    imaginary part of a strictly lower one (what lies above is not read). All of P_N is spent where
    tr L L^H = 1."""
    mse: Float[Array, " users"] | None = None
    """mu_q itself, in place of all of the above."""
    leaf_powers: Float[Array, " leaves"] | None = None
    """Power that the symbols of each leaf are sent with, > 0, in units of what they have without:
    unequal error protection. Relaxed repetition is the same, a leaf sent T times having T. The
    attacker answers leaf by leaf; a free attack is the same for all."""
    mse_factor: Float[Array, "tasks leaves"] | None = None
    """What the MSE of a task's leaf is multiplied with; at ones its gradient says where protection
    would pay."""
    scale: Float[Array, "*tasks_or_layers"] | None = None
    """Merging coefficient: one number, one per task (T,), or one per task and layer (T, layers)."""

    def given(self) -> tuple[str, ...]:
        """Return the names of the parameters that are not left to the preset."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def filled(self, held: Parameters) -> Parameters:
        """Return these parameters, with those of `held` for the ones not given."""
        return replace(held, **{name: getattr(self, name) for name in self.given()})


def _unflatten(_: None, leaves: Iterable[Any]) -> Parameters:
    # Not by __init__: jax fills trees with placeholders, stacks and trees (a Hessian's rows) too.
    parameters = object.__new__(Parameters)
    for field, leaf in zip(fields(Parameters), leaves, strict=True):
        object.__setattr__(parameters, field.name, leaf)
    return parameters


def _flatten(parameters: Parameters) -> tuple[tuple[tuple[GetAttrKey, object], ...], None]:
    names = [field.name for field in fields(parameters)]
    return tuple((GetAttrKey(name), getattr(parameters, name)) for name in names), None


jax.tree_util.register_pytree_with_keys(Parameters, _flatten, _unflatten)

NOTHING = Parameters()
"""All is left to the preset."""

CHANNEL = (
    "powers",
    "distances",
    "positions",
    "path_loss_exponent",
    "budget",
    "attack",
    "leaf_powers",
)
"""Parameters that act through a channel."""

PLACES = ("distances", "positions", "path_loss_exponent")
"""Parameters by which a channel is drawn, and of which one that is given has none."""


def require_fitting(parameters: Parameters, link: Link | None, drawn: bool = False) -> None:
    """Check parameters against a link (`None`: clean), before any work.

    `drawn`: a function draws the channel, not the preset.

    **Raises:** `InputError` that names a parameter that would have no effect or no meaning, or has
    the wrong shape.
    """
    if not drawn:
        require_place(parameters.given(), link)
    if link is not None and not isinstance(link.preset, DirectPreset) and not drawn:
        _require_shapes(parameters, link.preset)
        _require_values(parameters, link.preset)
    if parameters.mse is not None:
        require_within("parameter 'mse'", parameters.mse, 0.0, math.inf)


def require_place(names: Iterable[str], link: Link | None) -> None:
    """Check that the parameters called `names` apply to a link; `None` is clean.

    **Raises:** `InputError` that names a parameter that would have no effect or no meaning.
    """
    given = set(names)
    channel = [name for name in CHANNEL if name in given]
    if "mse" in given and channel:
        raise InputError(
            f"parameters give the MSE itself and also {', '.join(channel)}, which act through a "
            "channel: leave one of the two out."
        )
    if link is None:
        if "budget" in given and "attack" not in given:
            raise InputError("the scenario 'clean' has no attacker to spend a budget.")
        return
    preset, attack = link.preset, link.attack
    if isinstance(preset, DirectPreset):
        if channel:
            raise InputError(
                f"a direct preset of mse or snr_db has no channel for {', '.join(channel)}: take a "
                "channel preset, or differentiate in mse."
            )
        return
    if isinstance(preset, ChannelPreset):
        _require_drawn(given, preset)
    elif places := [name for name in PLACES if name in given]:
        raise InputError(
            f"the channels of {described(preset)} are given, without "
            f"{', '.join(places)}: leave it out, or take a channel preset."
        )
    if "attack" in given and attack != NO_ATTACK:
        raise InputError(
            "parameters give an attack in addition to that of the scenario "
            f"{Scenario(attack)!r}: "
            "take the scenario 'ideal'."
        )
    if "budget" in given and attack == NO_ATTACK and "attack" not in given:
        raise InputError("the scenario 'ideal' has no attacker to spend a budget.")


def _require_drawn(given: set[str], preset: ChannelPreset) -> None:
    """Check that what a preset draws its channels from is given exactly once."""
    if {"distances", "positions"} <= given:
        raise InputError("parameters give both distances and positions: leave one out.")
    if "positions" in given and getattr(preset.fading, "angles_deg", None):
        raise InputError(
            "parameters give positions, and the preset's fading sets angles_deg: leave one out."
        )
    if "powers" in given and preset.power_control != "none":
        raise InputError(
            "parameters give the powers, and the preset has the power control "
            f"{preset.power_control!r}: take power_control='none'."
        )
    if "path_loss_exponent" in given and not isinstance(preset.path_loss, PowerLaw):
        raise InputError(
            f"a path-loss exponent needs a PowerLaw, and the preset has {preset.path_loss}."
        )


def _require_shapes(parameters: Parameters, preset: ChannelPreset | Matrices) -> None:
    expected = {
        "powers": (preset.users,),
        "distances": (preset.users,),
        "positions": (preset.users, 2),
        "path_loss_exponent": (),
        "budget": (),
        "attack": (2, preset.antennas, preset.antennas),
    }
    for name, shape in expected.items():
        value = getattr(parameters, name)
        if value is None:
            continue
        seen = jnp.shape(value)
        if seen != shape and not (name == "positions" and seen == (preset.users, 3)):
            raise InputError(f"parameter {name!r} must have shape {shape}, got {seen}.")


def _require_values(parameters: Parameters, preset: ChannelPreset | Matrices) -> None:
    """Check numbers where they are known, which is not inside a transformation."""
    if parameters.powers is not None:
        require_positive("parameter 'powers' (shares of the full power)", parameters.powers)
    if parameters.leaf_powers is not None:
        require_positive("parameter 'leaf_powers'", parameters.leaf_powers)
    if parameters.budget is not None:
        require_within("parameter 'budget' (a ratio, not dB)", parameters.budget, 0.0, math.inf)
    if parameters.attack is not None:
        require_finite("parameter 'attack'", parameters.attack)
    if not isinstance(preset, ChannelPreset):
        return
    name, distances = "distances", parameters.distances
    if (places := parameters.positions) is not None:
        if places.shape[1] == 3 and getattr(preset.path_loss, "has_heights", False):
            raise InputError(
                f"parameter 'positions' has heights, and {preset.path_loss} has its own: give "
                "(x, y)."
            )
        name, distances = "positions", distances_from_positions(places, jnp.zeros_like(places[0]))
    if distances is not None:
        named = f"parameter {name!r}: distances in metres"
        require_positive(named, distances)
        require_within(f"{named} for {preset.path_loss}", distances, *preset.path_loss.range_m)


def channel_matrix(
    parameters: Parameters, preset: Preset, key: Array
) -> Complex[Array, "antennas users"]:
    """Return H~ = H diag(sqrt p) of one draw, with the given parameters inserted."""
    if isinstance(preset, ChannelPreset):
        h_tilde = _matrix_at(parameters, preset, key)
    else:
        h_tilde = draw_channel(preset, key)
    if parameters.powers is not None:
        h_tilde = h_tilde * jnp.sqrt(parameters.powers)
    return h_tilde


def _matrix_at(
    parameters: Parameters, preset: ChannelPreset, key: Array
) -> Complex[Array, "antennas users"]:
    if parameters.path_loss_exponent is not None:
        preset = replace(preset, path_loss=PowerLaw(parameters.path_loss_exponent))
    distances, angles = parameters.distances, None
    if parameters.positions is not None:
        seen = parameters.positions, jnp.zeros_like(parameters.positions[0])
        distances, angles = distances_from_positions(*seen), angles_from_positions(*seen)
    if distances is None:
        distances = draw_distances(preset, key)
    return channel_at(preset, distances, key, angles)


@dataclass(frozen=True)
class FreeAttack:
    """The attack given by the `entries` of a `Parameters.attack`: data, not a static value."""

    entries: Float[Array, "2 antennas antennas"]

    def __call__(
        self, h_tilde: Complex[Array, "antennas users"], budget: ArrayLike, noise: ArrayLike = 1.0
    ) -> Complex[Array, "antennas antennas"]:
        """The covariance."""
        root = covariance_root(self.entries)
        covariance: Array = jnp.asarray(budget) * product(root, root.conj().T)
        return covariance

    def from_channel(
        self, h_tilde: Complex[Array, "antennas users"], budget: ArrayLike, noise: ArrayLike = 1.0
    ) -> Complex[Array, "users users"]:
        """The effective Gram matrix; nothing is lost to rounding."""
        return gram(noise_of_root(covariance_root(self.entries), budget, noise).whiten(h_tilde))


def covariance_root(
    attack: Float[Array, "2 antennas antennas"],
) -> Complex[Array, "antennas antennas"]:
    """Return L, lower triangular with a real diagonal, from the entries in an `attack`."""
    return jax.lax.complex(jnp.tril(attack[0]), jnp.tril(attack[1], -1))


def root_size(attack: Float[Array, "2 antennas antennas"]) -> Float[Array, ""]:
    """Return the norm of the root: its square is the share of the budget that is spent."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(covariance_root(attack)))))


def attack_entries(
    covariance: Complex[Array, "antennas antennas"], budget: Float[Array, ""] | float
) -> Float[Array, "2 antennas antennas"]:
    """Return the `attack` of a covariance: ``budget L L^H`` is `covariance`.

    A multiple of the identity, 1e-6 of the trace, keeps the factor of a rank-deficient covariance
    (that of P1 has the rank of the channel) smooth in its entries. With many antennas in float32 it
    is larger: enough to stay positive under rounding.
    """
    n = len(covariance)
    share = covariance / budget
    trace = jnp.real(jnp.trace(share))
    lift = trace * jnp.maximum(1e-6 / n, 4 * jnp.finfo(trace.dtype).eps)
    eye = jnp.eye(n, dtype=share.dtype)
    root, _ = cholesky(share + lift * eye, eye[:, :0])  # nothing to solve for
    return jnp.stack([jnp.real(root), jnp.imag(root)])
