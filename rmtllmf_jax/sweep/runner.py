"""From a cell to its model and accuracies: the steps of the pipeline, with what they share."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int64, Key, PyTree

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.channel import ChannelPreset, Preset
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.accuracy import EvaluationSet
from rmtllmf_jax.resilience import PROTECTIONS, frozen_leaves
from rmtllmf_jax.sweep.grid import Cell, Combination
from rmtllmf_jax.sweep.inputs import SweepInputs, evaluation_sets, shot_pool
from rmtllmf_jax.sweep.journal import Journal
from rmtllmf_jax.sweep.programs import build_programs
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.batches import balanced_batches
from rmtllmf_jax.training.realign import Shots

# Folded into the root key, so that channel and parameter noise are independent.
_CHANNEL, _NOISE = 0, 1


@partial(jax.jit, static_argnames=("scenario", "preset"))
def _mse(key: Key[Array, ""], scenario: str, preset: Preset) -> Float[Array, " users"]:
    return channel.user_mse(scenario, preset, key)


@partial(jax.jit, static_argnames=("scenario", "preset"))
def _joint_error_covariance(
    key: Key[Array, ""], scenario: str, preset: ChannelPreset
) -> Complex[Array, "users users"]:
    gram = channel.gram(channel.draw_channel(preset, key))
    attack = channel.get_attack(channel.SCENARIOS[scenario] or "none", antennas=preset.antennas)
    return channel.error_covariance(attack(gram, preset.attack_budget, 1.0))


class Runner:
    """The state of a sweep between cells: inputs, compiled programs, and samples on the device."""

    def __init__(
        self,
        inputs: SweepInputs,
        settings: Settings,
        journal: Journal,
        jit: Callable[..., Any] = jax.jit,
    ) -> None:
        self.inputs, self.settings, self.journal = inputs, settings, journal
        self.preset = settings.channel(len(inputs.tasks))
        self.programs = build_programs(inputs.backbone, settings.realign, jit)
        self.frozen = frozen_leaves(inputs.base)
        self.loose = jax.tree.map(jnp.zeros_like, self.frozen)
        self._key = jax.random.key(settings.seed)
        self._pools: dict[int, tuple[Shots, list[Int64[np.ndarray, " shots"]]]] = {}

    @cached_property
    def test(self) -> list[EvaluationSet]:
        """Test batches of every task."""
        rows = [task.test for task in self.inputs.data]
        return evaluation_sets(rows, self.settings.eval_samples, self.settings)

    @cached_property
    def validation(self) -> list[EvaluationSet]:
        """Validation batches of every task."""
        without = [task.name for task in self.inputs.data if not len(task.validation)]
        if without:
            raise InputError(
                f"no validation image of {', '.join(without)}, and --scale validation needs some: "
                "fine-tune with a --validation-fraction above 0, or choose another --scale."
            )
        rows = [task.validation for task in self.inputs.data]
        return evaluation_sets(rows, self.settings.validation_samples, self.settings)

    @cached_property
    def kappa(self) -> Float[Array, " users"]:
        """Noise scale of every user."""
        if self.settings.kappa is not None:
            return jnp.full(len(self.inputs.tasks), self.settings.kappa, jnp.float32)
        return uplink.kappa_from_c0(self.inputs.vectors, self.settings.c0_db)

    def mse(self, scenario: str, draws: int) -> Float[np.ndarray, "draws users"]:
        """Return the MSE of the tasks' users in every draw; draw k does not depend on `draws`.

        One by one: the size of a batch moves the last bit, and a longer sweep keeps its old cells.
        """
        keys = channel.draw_keys(jax.random.fold_in(self._key, _CHANNEL), draws)
        mse = [np.asarray(_mse(key, scenario, self.preset)) for key in keys]
        return np.stack(mse)[:, : len(self.inputs.tasks)]

    def error_model(self, scenario: str, draw: int) -> uplink.ErrorModel:
        """Return how the errors of the tasks' users hang together in a draw.

        The model gives correlations alone; how large the errors are is the MSE's to say. So under
        `lmmse` the scenario `clean`, whose MSE is zero, may have those of the ideal channel.
        """
        users, covariance = len(self.inputs.tasks), None
        if self.settings.error_model == "lmmse" and isinstance(self.preset, ChannelPreset):
            key = jax.random.fold_in(jax.random.fold_in(self._key, _CHANNEL), draw)
            covariance = _joint_error_covariance(key, scenario, self.preset)[:users, :users]
        return uplink.get_error_model(self.settings.error_model, users, covariance)

    def noise_key(self, seed: int, draw: int, purpose: str) -> Key[Array, ""]:
        """Return a key by meaning; scenarios and protections share it (common random numbers)."""
        key = jax.random.fold_in(self._key, _NOISE)
        for number in (seed, draw, zlib.crc32(purpose.encode())):
            key = jax.random.fold_in(key, number)
        return key

    def accuracy(self, params: PyTree, task: str, split: str) -> float:
        """Return the accuracy of a model on a task's samples, under that task's head.

        `split` is `test` or `validation`.
        """
        sets = self.test if split == "test" else self.validation
        user = self.inputs.tasks.index(task)
        size = self.inputs.backbone.image_size
        counts = [
            self.programs.count(params, self.inputs.heads, jnp.asarray(user), batch.at_size(size))
            for batch in sets[user].batches
        ]
        return int(sum(counts)) / sets[user].count

    def reference(self, task: str, model: str, split: str) -> float:
        """Return the accuracy of the base (`model="base"`) or own fine-tuned model on a task."""
        name = f"reference/{task}/{model}/{split}"
        if name in self.journal:
            return self.journal[name]
        user = self.inputs.tasks.index(task)
        params = self.inputs.base if model == "base" else self.inputs.finetuned(user)
        return self.journal.add(name, self.accuracy(params, task, split))

    def finetuned_accuracy(self, task: str, split: str) -> float:
        """Return what accuracies on a task are divided by.

        **Raises:** `InputError` if it is zero, which nothing can be divided by.
        """
        value = self.reference(task, "finetuned", split)
        if value == 0:
            raise InputError(
                f"the fine-tuned model of {task} has accuracy 0 on the {split} samples: "
                "fine-tune it longer, or evaluate on more samples."
            )
        return value

    def merge(
        self,
        combination: Combination,
        mse: Float[np.ndarray, " users"],
        error_model: uplink.ErrorModel,
        scale: float,
        key: Key[Array, ""],
        *,
        reload: bool,
    ) -> PyTree:
        """Return the merged model of a combination."""
        weights = np.array([task in combination for task in self.inputs.tasks], np.float32)
        return self.programs.merge(
            self.inputs.base,
            self.inputs.vectors,
            jnp.asarray(weights),
            jnp.asarray(mse, jnp.float32),
            self.kappa,
            error_model,
            jnp.asarray(scale, jnp.float32),
            key,
            self.frozen if reload else self.loose,
        )

    def realign(self, params: PyTree, combination: Combination, seed: int, freeze: bool) -> PyTree:
        """Return a model realigned on the combination's few-shot samples."""
        if seed not in self._pools:
            pool_seed = self.settings.seed + seed
            self._pools[seed] = shot_pool(
                self.inputs.data,
                self.settings.shots,
                pool_seed,
                self.inputs.backbone.image_size,
            )
        pool, places = self._pools[seed]
        recipe = self.settings.realign
        batches = balanced_batches(
            [places[self.inputs.tasks.index(task)] for task in combination],
            recipe.steps,
            recipe.batch_size,
            self.settings.seed + seed,
        )
        trainable = jax.tree.map(jnp.logical_not, self.frozen if freeze else self.loose)
        params, _ = self.programs.realign(
            params, trainable, self.inputs.heads, pool, jnp.asarray(batches)
        )
        return params

    def protected(self, cell: Cell, mse: Float[np.ndarray, " users"], scale: float) -> PyTree:
        """Return the model of a cell: received, merged and protected."""
        params, protection = self.inputs.base, PROTECTIONS[cell.protection]
        if protection.fuse:
            key = self.noise_key(cell.seed, cell.draw, "+".join(cell.combination))
            errors = self.error_model(cell.scenario, cell.draw)
            params = self.merge(cell.combination, mse, errors, scale, key, reload=protection.reload)
        if protection.realign:
            params = self.realign(params, cell.combination, cell.seed, freeze=protection.reload)
        return params
