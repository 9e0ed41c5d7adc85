"""What the users of a draw send through: their MSE, and the errors of what they send."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax import uplink
from rmtllmf_jax.channel import NO_ATTACK, Link, Scenario
from rmtllmf_jax.defences.repairs import repairs_of, split
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.axis import link_channel, link_errors, link_mse
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.settings import Settings

# Folded into the root key, so that channel and parameter noise are independent.
_CHANNEL, _NOISE = 0, 1


def user_kappa(inputs: SweepInputs, settings: Settings) -> Float[Array, " users"]:
    """Return the noise scale of every user: the settings' own, or by its task vector's rms."""
    if settings.kappa is not None:
        return jnp.full(len(inputs.tasks), settings.kappa, jnp.float32)
    return uplink.kappa_from_c0(inputs.vectors, settings.c0_db)


class Uplinks:
    """The channels of a sweep; task q of the inputs is user q of every draw."""

    def __init__(self, inputs: SweepInputs, settings: Settings) -> None:
        self.inputs, self.settings = inputs, settings
        self.preset = settings.channel(len(inputs.tasks))
        self.transport = settings.transporting
        self._key = jax.random.key(settings.seed)
        self._mse: dict[tuple, Float[np.ndarray, " users"]] = {}
        self._factors: dict[tuple, Float[np.ndarray, "users sources"]] = {}

    @cached_property
    def kappa(self) -> Float[Array, " users"]:
        """Noise scale of every user, see `user_kappa`."""
        return user_kappa(self.inputs, self.settings)

    def kappa_at(self, cell: Cell) -> Float[Array, " users"]:
        """Return the noise scale of every user in a cell, where `c0_db` may be the axis."""
        if cell.axis != "c0_db" or cell.level is None:
            return self.kappa
        return user_kappa(self.inputs, replace(self.settings, c0_db=cell.level))

    def mse(self, cell: Cell) -> Float[np.ndarray, " users"]:
        """Return the MSE of the tasks' users in a cell's draw.

        One by one: the size of a batch moves the last bit, and a longer sweep keeps its old cells.
        """
        where = _channel(cell)
        if where not in self._mse:
            link, users = self.link(cell), len(self.inputs.tasks)
            if link is None:
                self._mse[where] = np.zeros(users, np.float32)
            else:
                mse = link_mse(self._draw_key(cell.draw), link, cell.axis, cell.level)
                self._mse[where] = np.asarray(mse)[:users]
        return self._mse[where]

    def link(self, cell: Cell) -> Link | None:
        """Return what the users of a cell send through; nothing in the scenario `clean`."""
        attack = Scenario(cell.scenario).attack
        return None if attack is None else Link(self.preset, attack, self.settings.receiving)

    def columns(self, cell: Cell) -> dict[str, dict[str, float]]:
        """Return what a row of results says of the uplink of each of a cell's tasks.

        `uses` are channel uses per parameter, against sending each once: nothing is sent without a
        channel, and nothing of what is sent counts where the base model is started from. kappa is
        the surrogate's alone, and NaN under another transport.
        """
        fused = split(repairs_of(cell.protection)).fuse
        uses = self.transport.uses if fused and cell.scenario != "clean" else 0.0
        users = [self.inputs.tasks.index(task) for task in cell.combination]
        mse, kappa = self.mse(cell), np.full(len(self.inputs.tasks), np.nan)
        if uplink.is_surrogate(self.transport):
            kappa = np.asarray(self.kappa_at(cell))
        return {
            task: {
                "kappa": float(kappa[user]),
                "mse": float(mse[user]),
                "mse_mean": float(np.mean(mse[users])),
                "uses": uses,
            }
            for task, user in zip(cell.combination, users, strict=True)
        }

    def error_model(self, cell: Cell) -> uplink.ErrorModel:
        """Return how the errors of the tasks' users hang together in a cell's draw.

        The model gives correlations alone; how large the errors are is the MSE's to say. So under
        `lmmse` the scenario `clean`, whose MSE is zero, may have those of the ideal channel.
        """
        users, covariance = len(self.inputs.tasks), None
        if self.settings.error_model == "lmmse":
            link = self.link(cell) or Link(self.preset, NO_ATTACK, self.settings.receiving)
            whole = link_errors(self._draw_key(cell.draw), link, cell.axis, cell.level)
            covariance = whole[:users, :users]
        return uplink.get_error_model(self.settings.error_model, users, covariance)

    def factor(self, cell: Cell) -> Float[np.ndarray, "users sources"]:
        """Return F: the errors of the users in a cell are ``F z``, z being `sources`.

        It is zero where the sources are the received task vectors themselves.
        """
        if not uplink.is_surrogate(self.transport):
            return np.zeros((len(self.inputs.tasks),) * 2, np.float32)
        where = _channel(cell)
        if where not in self._factors:
            factor = _factor(self.error_model(cell), self.kappa_at(cell), self.mse(cell))
            self._factors[where] = np.asarray(factor)
        return self._factors[where]

    def noise(self, cell: Cell) -> tuple:
        """Return what the `sources` of a cell depend on, seed and draw first."""
        noise = (cell.seed, cell.draw)
        return noise if uplink.is_surrogate(self.transport) else noise + _channel(cell)

    def sources(self, cell: Cell) -> PyTree[Float[Array, "sources ..."]]:
        """Return what makes a cell's received task vectors, the same for all cells of a `noise`.

        Of the surrogate: the Gaussians of a seed and draw, one per user (and what all users share).
        Scenarios, levels, combinations, rules and protections share them (common random numbers).
        Of other transports: the received task vectors. Combinations, rules and protections share
        the transmission, scenarios and levels its key.
        """
        key = jax.random.fold_in(self._key, _NOISE)
        key = jax.random.fold_in(jax.random.fold_in(key, cell.seed), cell.draw)
        vectors, link = self.inputs.vectors, self.link(cell)
        if isinstance(self.transport, uplink.Gaussian):
            name, _ = uplink.parse_error_model(self.settings.error_model)
            return uplink.draw_sources(vectors, key, uplink.ERROR_MODELS[name])
        if link is None:
            return vectors
        where = link_channel(self._draw_key(cell.draw), link, cell.axis, cell.level)
        return self.transport(vectors, *where, key)

    def _draw_key(self, draw: int) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(self._key, _CHANNEL), draw)


def _channel(cell: Cell) -> tuple:
    """Return what the uplink of a cell depends on."""
    return cell.scenario, cell.draw, cell.axis, cell.level


@jax.jit
def _factor(
    model: uplink.ErrorModel, kappa: Float[Array, " users"], mse: Float[Array, " users"]
) -> Float[Array, "users sources"]:
    return model.factor(kappa * jnp.sqrt(mse))
