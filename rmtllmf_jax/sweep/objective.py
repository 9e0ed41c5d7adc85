"""A run folder's users as a differentiable objective, with the settings of a sweep."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.channel import Attack, ChannelPreset, Link
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import described
from rmtllmf_jax.evaluation.known import get_metric, require_inputs
from rmtllmf_jax.evaluation.metrics import Metric
from rmtllmf_jax.fusion.rules import TASK_ARITHMETIC, Method
from rmtllmf_jax.gradients import Objective, Setting, samples_of
from rmtllmf_jax.models.shared import images_only
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.samples import evaluation_sets
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.uplinks import user_kappa
from rmtllmf_jax.uplink import Scenario


def objective_of(
    inputs: SweepInputs,
    settings: Settings,
    scenario: str | Attack | None,
    *,
    combination: tuple[str, ...] = (),
    split: str = "test",
    metric: str | Metric = "soft_accuracy",
    channel_draws: int = 1,
    noise_draws: int = 1,
    method: Method = TASK_ARITHMETIC,
) -> Objective:
    """Return the objective whose score is the mean over the tasks of a combination.

    **Arguments:**

    - `scenario`: a name of `uplink.Scenario`, an attack, or `None` for `clean`.
    - `combination`: tasks to merge, all by default. The users of the others send too.
    - `split`: `test` (`settings.eval_samples` images per task) or `validation`
      (`settings.validation_samples`): tune on one, evaluate on the other.
    - `metric`: the score of the fused model, or its description.
    - `settings`: channel, kappa, error model, coefficient (except `validation`) and seed.

    **Raises:** `InputError` for a task that the inputs do not have, or a setting that applies only
    to sweeps.
    """
    require_known("split", split, ("test", "validation"))
    for task in combination:
        require_known("task", task, inputs.tasks)
    if settings.error_model == "lmmse":
        raise InputError(
            "the error model 'lmmse' has other correlations in every channel, which an objective "
            "does not follow: take independent, equicorrelated=RHO or noisy_reference."
        )
    if not uplink.is_surrogate(settings.transporting):
        raise InputError(
            f"the transport {described(settings.transporting)} cannot be differentiated (a digital "
            "one has zero gradients): an objective's is gaussian."
        )
    if settings.scale == "validation":
        raise InputError(
            "the coefficient of an objective is a number, power-law, 1/N or 1/sqrt(N), got "
            "validation: give the number that a sweep found (scales.parquet)."
        )
    backbone = images_only(inputs.model, "derivatives of a score")
    assert inputs.heads is not None
    require_inputs(get_metric(metric), ["images"])
    members = jnp.array([not combination or task in combination for task in inputs.tasks])
    count = int(members.sum())
    kappa = user_kappa(inputs, settings)
    preset, attack = settings.channel(len(inputs.tasks)), Scenario(scenario).attack
    link = None if attack is None else Link(preset, attack, settings.receiving)
    wanted = settings.validation_samples if split == "validation" else settings.eval_samples
    rows = [task.validation if split == "validation" else task.test for task in inputs.data]
    return Objective(
        setting=Setting(
            backbone.features,
            link,
            metric,
            channel_draws,
            noise_draws,
            method,
        ),
        base=inputs.base,
        vectors=inputs.vectors,
        heads=inputs.heads,
        samples=samples_of(
            evaluation_sets(rows, wanted, settings), backbone.image_size, members / count
        ),
        kappa=kappa,
        scale=fusion.scale_of(settings.scale, count, method),
        members=members.astype(kappa.dtype),
        error_model=uplink.get_error_model(settings.error_model, len(inputs.tasks)),
    )


def with_users(objective: Objective, users: int) -> Objective:
    """Return the objective with this many users in the cell, of which the first send the tasks.

    **Raises:** `InputError` if the preset has no channel.
    """
    setting = objective.setting
    if setting.link is None or not isinstance(setting.link.preset, ChannelPreset):
        raise InputError(
            "a preset that gives the users' errors, or their channels, has those users, no others."
        )
    link = replace(setting.link, preset=replace(setting.link.preset, users=users))
    return replace(objective, setting=replace(setting, link=link))
