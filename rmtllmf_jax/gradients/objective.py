"""From parameters of the channel to the score of the fused model: one pure function.

``parameters -> H~ -> attack -> MSE mu_q -> error std kappa_q sqrt(mu_q) -> merged model -> score``.
The noise is reparametrised: standard Gaussians that the key fixes, times a standard deviation that
the parameters set. Its derivative is the pathwise gradient of the expected score, unbiased for any
number of draws, and one key gives the same Gaussians for all parameters (common random numbers).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.channel import Link
from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import described, name_of
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.evaluation.disentanglement import Features
from rmtllmf_jax.evaluation.known import get_metric
from rmtllmf_jax.evaluation.metrics import Metric
from rmtllmf_jax.fusion.merge import one_per_user
from rmtllmf_jax.fusion.rules import TASK_ARITHMETIC, Method, fact
from rmtllmf_jax.gradients.accumulate import accumulated_sum
from rmtllmf_jax.gradients.link import Drawn, user_mse
from rmtllmf_jax.gradients.parameters import NOTHING, Parameters, require_fitting
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.uplink import GAUSSIAN, Transport

# Folded into a draw's key, so that channel and parameter noise are independent.
_CHANNEL, _NOISE = 0, 1
_MASKS = 2  # of a random merge method, into the key of its noise


@dataclass(frozen=True)
class Setting:
    """What is compiled in: model, channel, attacker, metric, number of draws and merge method."""

    features: Features
    """The model up to its head, such as `Backbone.features`; the same object compiles once."""
    link: Link | None
    """What the users send through, user q sending task q; `None` is the scenario `clean`."""
    metric: str | Metric = "soft_accuracy"
    """What the model is scored by, or its description, see `evaluation.get_metric`."""
    channel_draws: int = 1
    """Channels that are averaged over."""
    noise_draws: int = 1
    """Draws of the parameters' noise for every channel."""
    method: Method = TASK_ARITHMETIC
    """Merge method, such as `fusion.Average()`. What it is not differentiable by (thresholds,
    masks, ranks) is held, as the method says of itself."""
    drawn: Drawn | None = None
    """`(parameters, key) -> H~` in place of the preset's channel, see `user_mse`."""
    transport: Any = GAUSSIAN
    """What carries the task vectors, of those that need no more than the users' MSE."""
    estimators: tuple[Any, ...] = ()
    """Applied to the received vectors before they are merged, see `uplink.deliver`."""

    def __post_init__(self) -> None:
        get_metric(self.metric)
        require_at_least("channel draws", self.channel_draws, 1)
        require_at_least("noise draws", self.noise_draws, 1)
        if isinstance(self.transport, Transport):
            raise InputError(
                f"the transport {described(self.transport)} sends symbols, and an objective has "
                "the users' MSE: take gaussian, sparse or coded."
            )
        if getattr(self.transport, "plan", None) is not None:
            raise InputError(
                f"{described(self.transport)} plans for one attack while there is another, which "
                "an objective does not follow: leave `plan` out."
            )
        if needs := [name for name in fact(self.method, "needs") if name != "base"]:
            raise InputError(
                f"the merge method {name_of(self.method)} needs {', '.join(needs)}, which an "
                "objective does not have."
            )

    @property
    def linear(self) -> bool:
        """Whether noise may be summed before it is drawn, see `fusion.MergeMethod`."""
        plain = self.transport == GAUSSIAN and not self.estimators
        return plain and bool(fact(self.method, "linear"))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "base",
        "vectors",
        "heads",
        "samples",
        "kappa",
        "scale",
        "members",
        "error_model",
        "reference",
        "channels",
        "held",
    ],
    meta_fields=["setting"],
)
@dataclass(frozen=True, kw_only=True)
class Objective:
    """``objective(parameters, key) -> score`` of the fused model, averaged over draws.

    A pytree: pass it to a compiled function as an argument, so that its arrays are not compiled in
    (`value`, `value_and_gradient` do). All of its fields are data but the `setting`.
    """

    setting: Setting
    base: PyTree
    vectors: PyTree[Float[Array, "tasks ..."]]
    heads: Head
    samples: Batch
    """Batches of all tasks, see `samples_of`."""
    kappa: Float[Array, " tasks"]
    """Noise scale of each task's user, see `uplink.kappa_from_c0`."""
    scale: Float[Array, ""] | float
    """Merging coefficient where the parameters give none."""
    members: Float[Array, " tasks"] | None = None
    """1 for the tasks that are merged, 0 for the others; `None` is all."""
    error_model: uplink.ErrorModel = uplink.INDEPENDENT
    """How the users' errors are correlated."""
    reference: Parameters | None = None
    """Parameters that fix the SIC order and the strongest user of every draw, see `fixed_at`."""
    channels: Key[Array, " draws"] | None = None
    """Keys of the channels, see `over`."""
    held: Parameters = NOTHING
    """Parameters that are given and not differentiated, see `holding`."""

    def fixed_at(self, parameters: Parameters) -> Objective:
        """Return the objective whose discrete choices are those of `parameters`.

        It has derivatives in everything that moves the received powers.
        """
        return replace(self, reference=parameters)

    def over(self, channels: Key[Array, " draws"]) -> Objective:
        """Return the objective over given channels, whose keys then draw only the noise.

        This way, what was tuned on some noise can be evaluated on other noise in the same channels.
        """
        return replace(self, channels=channels)

    def holding(self, parameters: Parameters) -> Objective:
        """Return the objective with default values for parameters that are not passed.

        They are data: other user positions need no compilation.
        """
        return replace(self, held=parameters)

    def scored(self, metric: str | Metric) -> Objective:
        """Return the objective with another metric, or its description."""
        return replace(self, setting=replace(self.setting, metric=metric))

    def __call__(self, parameters: Parameters, key: Key[Array, ""]) -> Float[Array, ""]:
        """Return the mean score over draws; pure.

        Works under `jax.jit`, `jax.vmap`, `jax.grad`, `jax.jvp` and `jax.hessian`.

        **Raises:** `InputError` for parameters that do not apply to the preset, and where it is
        differentiated through a discrete choice.
        """
        self.check(parameters)
        channels, noises = self.draw_keys(key)
        each = jnp.repeat(channels, self.setting.noise_draws)
        terms = each, noises.reshape(-1)
        return accumulated_sum(_DrawScore(self.setting), parameters, self, terms) / len(each)

    def draw_keys(
        self, key: Key[Array, ""]
    ) -> tuple[Key[Array, " channels"], Key[Array, "channels draws"]]:
        """Return the keys of the channels, and of the noise drawn for each of them."""
        channels, draws = self.channel_keys(key), self.setting.noise_draws
        noises = _numbered(key, _NOISE, len(channels) * draws)
        return channels, noises.reshape(len(channels), draws)

    def channel_keys(self, key: Key[Array, ""]) -> Key[Array, " draws"]:
        """Return the keys of the channels that are averaged over, see `user_mse`."""
        if self.channels is not None:
            return self.channels
        return _numbered(key, _CHANNEL, self.setting.channel_draws)

    def check(self, parameters: Parameters) -> None:
        """Check parameters before any work.

        **Raises:** `InputError` that names a parameter that does not fit.
        """
        parameters = parameters.filled(self.held)
        setting = self.setting
        require_fitting(parameters, setting.link, setting.drawn is not None)
        tasks, layers = fusion.stack_size(self.vectors), len(layer_names(self.vectors))
        users = tasks if setting.link is None else setting.link.preset.users
        if tasks > users:
            raise InputError(f"{tasks} tasks need as many users; the preset has {users}.")
        leaves = len(jax.tree.leaves(self.vectors))
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {
            "scale": ((), (tasks,), (tasks, layers)),
            "mse_factor": ((tasks, leaves),),
            "mse": ((users,),),
            "leaf_powers": ((leaves,),),
        }
        for name, expected in shapes.items():
            value = getattr(parameters, name)
            if value is not None and jnp.shape(value) not in expected:
                raise InputError(
                    f"parameter {name!r} must have shape {' or '.join(map(str, expected))}, got "
                    f"{jnp.shape(value)}."
                )
        if parameters.scale is not None and jnp.ndim(parameters.scale) and not self.setting.linear:
            raise InputError(
                "one merging coefficient per task is for task arithmetic; the merge method "
                f"{name_of(self.setting.method)} takes one number."
            )

    def user_mse(
        self, parameters: Parameters, key: Key[Array, ""]
    ) -> Float[Array, "tasks *leaves"]:  # noqa: F821
        """MSE of the tasks' users over the channel of one draw's key, see `user_mse`."""
        setting, reference = self.setting, self.reference
        parameters = parameters.filled(self.held)
        if reference is not None:
            reference = reference.filled(self.held)
        if setting.link is None:
            return jnp.zeros_like(self.kappa) if parameters.mse is None else parameters.mse
        found = user_mse(parameters, setting.link, key, reference, setting.drawn)
        return found[: len(self.kappa)]

    def fused(
        self,
        parameters: Parameters,
        mse: Float[Array, "tasks *leaves"],  # noqa: F821
        key: Key[Array, ""],
    ) -> PyTree:
        """Return ``base + s method(tau_1 + e_1, ...)``, R-MTLLMF eq. (6), for the users' MSE.

        For a linear method it is ``base + sum_q s_q tau_q`` plus one Gaussian, see `noise`.
        """
        if self.setting.linear:
            return self.merged(parameters, self.noise(parameters, mse, key))
        method, by_leaf = self.setting.method, parameters.filled(self.held).mse_factor is not None
        errors = self.errors(parameters, mse) if by_leaf or mse.ndim == 2 else mse
        chosen = self.setting.transport, self.setting.estimators
        received = uplink.deliver(
            self.vectors, errors, self.kappa, key, *chosen, error_model=self.error_model
        )
        masks = jax.random.fold_in(key, _MASKS) if fact(method, "random") else None
        needs = {"base": self.base} if "base" in fact(method, "needs") else {}
        merged = method(received, masks, weights=self._members(), **needs)
        scale = parameters.filled(self.held).scale
        return fusion.add_to_base(self.base, merged, self.scale if scale is None else scale)

    def noise(
        self,
        parameters: Parameters,
        mse: Float[Array, "tasks *leaves"],  # noqa: F821
        key: Key[Array, ""],
    ) -> PyTree:
        """Return ``sum_q s_q e_q``: one Gaussian per leaf, drawn once (`uplink.noise_of_sum`).

        **Raises:** `InputError` for a method that is not linear.
        """
        if not self.setting.linear:
            raise InputError(
                f"the noise of a merge by {name_of(self.setting.method)} is not a sum over users: "
                "it is for task arithmetic."
            )
        return uplink.noise_of_sum(
            self.vectors,
            self.weights(parameters),
            self.errors(parameters, mse),
            self.kappa,
            key,
            self.error_model,
        )

    def merged(self, parameters: Parameters, noise: PyTree) -> PyTree:
        """Return ``base + sum_q s_q tau_q + noise``, see `noise`."""
        total = jax.tree.map(fusion.weighted_sum, self.vectors, self.weights(parameters))
        return jax.tree.map(lambda leaf, *moves: leaf + sum(moves), self.base, total, noise)

    def weights(self, parameters: Parameters) -> PyTree[Float[Array, " tasks"]]:
        """Return the merging coefficients of the tasks, leaf by leaf."""
        scales = self._scales(parameters.filled(self.held))
        if scales.ndim == 1:
            return jax.tree.map(lambda _: scales, self.vectors)
        names = layer_names(self.vectors)
        paths = fusion.leaves_by_path(self.vectors)
        return self._columns(scales[:, jnp.array([names.index(fusion.layer_of(p)) for p in paths])])

    def errors(
        self,
        parameters: Parameters,
        mse: Float[Array, "tasks *leaves"],  # noqa: F821
    ) -> PyTree[Float[Array, " tasks"]]:
        """Return the MSE of the tasks' users, leaf by leaf."""
        factor = parameters.filled(self.held).mse_factor
        if factor is None and mse.ndim == 1:
            return jax.tree.map(lambda _: mse, self.vectors)
        table = mse[:, None] if mse.ndim == 1 else mse
        return self._columns(table if factor is None else table * factor)

    def _scales(self, parameters: Parameters) -> Float[Array, "tasks *layers"]:  # noqa: F821
        members, scale = self._members(), parameters.scale
        if scale is None:
            scale = jnp.asarray(self.scale, self.kappa.dtype)
        return members[:, None] * scale if scale.ndim == 2 else members * scale

    def _members(self) -> Float[Array, " tasks"]:
        """Return 1 for merged tasks and 0 for others, times the method's own weights."""
        members = jnp.ones_like(self.kappa) if self.members is None else self.members
        own = fact(self.setting.method, "weights")
        return members * one_per_user("weights", own, members.size) if own else members

    def _columns(self, table: Float[Array, "tasks leaves"]) -> PyTree[Float[Array, " tasks"]]:
        tree = jax.tree.structure(self.vectors)
        return jax.tree.unflatten(tree, jnp.unstack(table, axis=1))


def _numbered(key: Key[Array, ""], kind: int, count: int) -> Key[Array, " count"]:
    numbers = jnp.arange(count, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, kind), numbers)


def layer_names(vectors: PyTree[Float[Array, "tasks ..."]]) -> tuple[str, ...]:
    """Return the layers of stacked task vectors in the order used by `Parameters.scale`."""
    return tuple(fusion.group_by_layer(fusion.leaves_by_path(vectors)))


@dataclass(frozen=True)
class _DrawScore:
    """The score of one draw, as a term of a sum."""

    setting: Setting

    def __call__(
        self,
        parameters: Parameters,
        objective: Objective,
        keys: tuple[Key[Array, ""], Key[Array, ""]],
    ) -> Float[Array, ""]:
        mse = objective.user_mse(parameters, keys[0])
        model = objective.fused(parameters, mse, keys[1])
        return score_of_model(objective, model)


def score_of_model(objective: Objective, model: PyTree) -> Float[Array, ""]:
    """Return the weighted score of a model's parameters on the samples; pure."""
    term = _BatchScore(objective.setting.features, get_metric(objective.setting.metric))
    return accumulated_sum(term, model, objective.heads, objective.samples)


@dataclass(frozen=True)
class _BatchScore:
    """The weighted score of one batch, as a term of a sum."""

    features: Features
    metric: Metric

    def __call__(self, params: PyTree, heads: Head, batch: Batch) -> Float[Array, ""]:
        head = jax.tree.map(lambda leaf: leaf[batch.inputs["task"]], heads)
        return self.metric(lambda b: head(self.features(params, b.inputs["images"])), batch)[0]


def value(objective: Objective, parameters: Parameters, key: Key[Array, ""]) -> Float[Array, ""]:
    """``objective(parameters, key)``, compiled once for all objectives of a setting.

    **Raises:** `InputError` for parameters that do not fit, or invalid numbers.
    """
    objective.check(parameters)
    return _value(objective, parameters, key)


def value_and_gradient(
    objective: Objective, parameters: Parameters, key: Key[Array, ""]
) -> tuple[Float[Array, ""], Parameters]:
    """The score and its gradient in all given parameters, compiled once per setting.

    **Raises:** as `value`.
    """
    objective.check(parameters)
    return _value_and_gradient(objective, parameters, key)


@jax.jit
def _value(objective: Objective, parameters: Parameters, key: Array) -> Array:
    return objective(parameters, key)


@jax.jit
def _value_and_gradient(
    objective: Objective, parameters: Parameters, key: Array
) -> tuple[Array, Parameters]:
    return jax.value_and_grad(objective.__call__)(parameters, key)
