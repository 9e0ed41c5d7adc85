"""The uplink of the users in a draw: their MSE, and the errors of what they send."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax import uplink
from rmtllmf_jax.channel import NO_ATTACK, ONCE, Link, mse_of
from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences.protection import Stages, split
from rmtllmf_jax.defences.repairs import frozen_leaves
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.axis import given_mse, link_channel, link_sent
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import MseTransport, Scenario, Transport, is_of_mse, is_surrogate
from rmtllmf_jax.uplink.keys import channel_key, noise_key
from rmtllmf_jax.uplink.transports import channel_uses
from rmtllmf_jax.uplink.vectors import shapes_of


def user_kappa(inputs: SweepInputs, settings: Settings) -> Float[Array, " users"]:
    """Return the noise scale of every user: that of the settings, or by its task vector's rms."""
    if settings.kappa is not None:
        return jnp.full(len(inputs.tasks), settings.kappa, jnp.float32)
    return uplink.kappa_from_c0(inputs.vectors, settings.c0_db)


class Uplinks:
    """The channels of a sweep; task q of the inputs is user q of every draw."""

    def __init__(self, inputs: SweepInputs, settings: Settings) -> None:
        self.inputs, self.settings = inputs, settings
        self.preset = settings.channel(len(inputs.tasks))
        self._key = jax.random.key(settings.seed)
        self._sent: dict[tuple, tuple[Float[np.ndarray, " users"], ...]] = {}
        self._factors: dict[tuple, Float[np.ndarray, "users sources"]] = {}

    @cached_property
    def kappa(self) -> Float[Array, " users"]:
        """Noise scale of every user, see `user_kappa`."""
        return user_kappa(self.inputs, self.settings)

    def kappa_at(self, cell: Cell) -> Float[Array, " users"]:
        """Return the noise scale of every user in a cell, where `c0_db` may be the axis.

        A poisoned vector has its own scale: symbols keep their power, whatever they carry.
        """
        level = cell.level if cell.axis == "c0_db" else None
        poisoned = Scenario(cell.scenario).poisons
        if level is None and not poisoned:
            return self.kappa
        settings = self.settings if level is None else replace(self.settings, c0_db=level)
        inputs = replace(self.inputs, vectors=self._vectors(cell)) if poisoned else self.inputs
        return user_kappa(inputs, settings)

    def require_fitting(self, cells: Iterable[Cell]) -> None:
        """Check that the transport can carry the task vectors.

        **Raises:** `InputError` that names an option, such as an adapter's target.
        """
        ones = np.ones(len(self.inputs.tasks), np.float32)
        for cell in {cell.protection: cell for cell in cells}.values():
            self._uses(cell, ones, ones)

    def link(self, cell: Cell) -> Link | None:
        """Return the link of the users in a cell; nothing in the scenario `clean`."""
        attack = Scenario(cell.scenario).attack
        if attack is None:
            return None
        return self.settings.link(self.preset, attack, self._stages(cell))

    def _stages(self, cell: Cell) -> Stages:
        return self.settings.stages(cell.protection)

    def transport(self, cell: Cell) -> Transport | MseTransport:
        """Return the transport of a cell's task vectors: its protection's, or the settings'."""
        return self.settings.carrier(self._stages(cell))

    def mse(self, cell: Cell) -> Float[np.ndarray, " users"]:
        """Return the MSE of the tasks' users in a cell's draw."""
        return self.sent(cell)[0]

    def sent(self, cell: Cell) -> tuple[Float[np.ndarray, " users"], ...]:
        """Return MSE and channel uses per symbol of the tasks' users in a cell's draw.

        One by one, as the size of a batch changes the last bit, and a longer sweep keeps old cells.
        """
        return self._sent_over(cell, self.link(cell))

    def _sent_over(self, cell: Cell, link: Link | None) -> tuple[Float[np.ndarray, " users"], ...]:
        users = len(self.inputs.tasks)
        if link is None:
            return np.zeros(users, np.float32), np.zeros(users, np.float32)
        where = (link.attack, link.receiver, link.air, *_place(cell))
        if where not in self._sent:
            errors, uses = link_sent(channel_key(self._key, cell.draw), link, cell.axis, cell.level)
            mse = given_mse(link, cell.axis, cell.level)
            mse = mse_of(errors) if mse is None else mse
            self._sent[where] = np.asarray(mse)[:users], np.asarray(uses)[:users]
        return self._sent[where]

    def columns(self, cell: Cell) -> dict[str, dict[str, float]]:
        """Return the columns of a result row about the uplink of each of a cell's tasks.

        `uses` are channel uses per parameter, relative to sending each once, side information
        included: nothing is sent without a channel, and nothing sent counts where repairs start
        from the base model. kappa is that of Gaussian errors, and NaN under another transport.
        """
        transport, (mse, air_uses) = self.transport(cell), self.sent(cell)
        uses = np.zeros(len(mse))
        if self.link(cell) is not None and split(self._stages(cell).repairs).fuse:
            uses = self._uses(cell, mse, air_uses)
        kappa = np.full(len(mse), np.nan)
        if is_surrogate(transport):
            kappa = np.asarray(self.kappa_at(cell))
        users = [self.inputs.tasks.index(task) for task in cell.combination]
        return {
            task: {
                "kappa": float(kappa[user]),
                "mse": float(mse[user]),
                "mse_mean": float(np.mean(mse[users])),
                "uses": float(uses[user]),
            }
            for task, user in zip(cell.combination, users, strict=True)
        }

    def _uses(self, cell: Cell, mse: np.ndarray, air_uses: np.ndarray) -> np.ndarray:
        """Return the channel uses per parameter: those of the transport, times repetitions."""
        share = 1.0
        if patterns := getattr(self._stages(cell).air, "patterns", ()):
            flags = jax.tree.leaves(frozen_leaves(self.inputs.base, patterns))
            sizes = np.array([leaf.size for leaf in jax.tree.leaves(self.inputs.base)])
            share = (np.array(flags) @ sizes) / sizes.sum()
        shapes = shapes_of(self.inputs.vectors)
        return channel_uses(self.transport(cell), mse, air_uses, shapes, share)

    def error_model(self, cell: Cell) -> uplink.ErrorModel:
        """Return how the errors of the tasks' users are correlated in a cell's draw.

        The model only gives correlations; the MSE sets the size of the errors. So under `lmmse`
        the scenario `clean`, with MSE zero, may have those of the ideal channel.
        """
        users, covariance = len(self.inputs.tasks), None
        if self.settings.error_model == "lmmse":
            link = self.link(cell) or self.settings.link(self.preset, NO_ATTACK, self._stages(cell))
            whole = link_sent(channel_key(self._key, cell.draw), link, cell.axis, cell.level).errors
            covariance = whole[:users, :users]
        return uplink.get_error_model(self.settings.error_model, users, covariance)

    def factor(self, cell: Cell) -> Float[np.ndarray, "users sources"]:
        """Return F: the errors of the users in a cell are ``F z`` with z the `sources`.

        It is zero where the sources are the received task vectors themselves.
        """
        if not self.summed(cell):
            return np.zeros((len(self.inputs.tasks),) * 2, np.float32)
        where = self._channel(cell)
        if where not in self._factors:
            factor = _factor(self.error_model(cell), self.kappa_at(cell), self.mse(cell))
            self._factors[where] = np.asarray(factor)
        return self._factors[where]

    def summed(self, cell: Cell) -> bool:
        """Whether the received vectors are those sent plus ``F z``: nothing else acts on them."""
        if Scenario(cell.scenario).poisons:
            return False
        if self.link(cell) is None:
            return True
        stages = self._stages(cell)
        partial = getattr(stages.air, "patterns", ())
        return is_surrogate(self.transport(cell)) and not stages.estimators and not partial

    def noise(self, cell: Cell) -> tuple:
        """Return the dependencies of a cell's `sources`, seed and draw first."""
        noise = (cell.seed, cell.draw)
        return noise if self.summed(cell) else noise + self._channel(cell)

    def _channel(self, cell: Cell) -> tuple:
        """Return the dependencies of a cell's uplink, with names in place of values."""
        receiver, air, transport, estimators, _ = self._stages(cell)
        chosen = (receiver, air, transport, *estimators)
        return (cell.scenario, *_place(cell), " ".join(map(described, chosen)))

    def sources(self, cell: Cell) -> PyTree[Float[Array, "sources ..."]]:
        """Return the sources of a cell's received task vectors, equal for all cells of a `noise`.

        For the surrogate alone: the Gaussians of a seed and draw, one per user (and those that all
        users share). Scenarios, levels, combinations, rules and protections share them (common
        random numbers). Otherwise: the received task vectors, after the estimators. Combinations,
        rules and repairs share the transmission, scenarios and levels share its key.
        """
        key = noise_key(self._key, cell.draw, cell.seed)
        vectors, link, transport = self._vectors(cell), self.link(cell), self.transport(cell)
        if self.summed(cell):
            if link is None and not is_surrogate(transport):
                return vectors
            name, _ = uplink.parse_error_model(self.settings.error_model)
            return uplink.draw_sources(vectors, key, uplink.ERROR_MODELS[name])
        if link is None:
            return vectors
        mse, kappa = jnp.asarray(self.mse(cell)), self.kappa_at(cell)
        if not is_of_mse(transport):
            where = link_channel(channel_key(self._key, cell.draw), link, cell.axis, cell.level)
            return cast(Transport, transport)(vectors, *where, key)
        planned = mse
        if (plan := getattr(transport, "plan", None)) is not None:
            planned = jnp.asarray(self._sent_over(cell, replace(link, attack=plan))[0])
        of_leaves: Any = mse
        if patterns := getattr(link.air, "patterns", ()):
            once = jnp.asarray(self._sent_over(cell, replace(link, air=ONCE))[0])
            flags = frozen_leaves(self.inputs.base, patterns)
            of_leaves = jax.tree.map(lambda flag: jnp.where(flag, mse, once), flags)
        chosen, model = (transport, self._stages(cell).estimators), self.error_model(cell)
        return _delivered(*chosen, vectors, of_leaves, kappa, key, planned, model)

    def _vectors(self, cell: Cell) -> PyTree[Float[Array, "users ..."]]:
        """Return what the users of a cell send: their task vectors, or poison."""
        vectors = self.inputs.vectors
        for poison in Scenario(cell.scenario).poisons:
            vectors = poison(vectors)
        return vectors


def _place(cell: Cell) -> tuple:
    """Return the draw of a cell's channel and its level."""
    return cell.draw, cell.axis, cell.level


@jax.jit
def _factor(
    model: uplink.ErrorModel, kappa: Float[Array, " users"], mse: Float[Array, " users"]
) -> Float[Array, "users sources"]:
    return model.factor(kappa * jnp.sqrt(mse))


@partial(jax.jit, static_argnums=(0, 1))
def _delivered(
    transport: Any,
    estimators: tuple[Any, ...],
    vectors: PyTree[Float[Array, "users ..."]],
    mse: PyTree[Array],
    kappa: Float[Array, " users"],
    key: Key[Array, ""],
    planned: Float[Array, " users"],
    model: uplink.ErrorModel,
) -> PyTree[Float[Array, "users ..."]]:
    return uplink.deliver(vectors, mse, kappa, key, transport, estimators, planned, model)
