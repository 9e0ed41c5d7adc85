"""`rmtllmf gradcheck`: the gradient of the fused model's score against finite differences."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rmtllmf_jax.cli.options import Relocated, UplinkOptions, print_as_json, print_table, taken
from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_known,
    require_non_negative,
    require_seed,
)
from rmtllmf_jax.runs.environment import use_compilation_cache

if TYPE_CHECKING:
    from jaxtyping import Array, Key

    from rmtllmf_jax.channel import Link
    from rmtllmf_jax.gradients import Agreement, Objective, Parameters
    from rmtllmf_jax.sweep.settings import Settings

_RANDOM = "random (a small Vision Transformer, three tasks of random images); --out takes yours"

_REPORTED = (
    *("scenario", "metric", "preset", "receiver", "channel_draws", "noise_draws"),
    *("tolerance", "hessian", "seed"),
)
"""Options that the JSON names beside the results."""

_MEANINGS = {
    "too small to tell": "the derivative drowns in the rounding of the score: the finite "
    "differences are off by more than a tenth of it. Nothing speaks against the gradient, and "
    "little for it. A lower --c0 (a larger kappa) or another --metric makes the derivative larger; "
    "more --noise-draws, --channel-draws and --eval-samples average the rounding.",
    "differs": "the gradient and the finite differences are further apart than --tolerance and "
    "their uncertainty allow. Where the score bends sharply between two steps (margin, where "
    "another class becomes the second) the differences may be at fault: try another --seed. Else "
    "it is a bug of this program, worth reporting with this command.",
}


@dataclass(kw_only=True)
class Gradcheck(UplinkOptions, Relocated):
    """Compare the gradient of the fused model's score with finite differences.

    Every parameter is moved along a random direction from the preset's values, with the same
    channels and noise at every step. SIC order and strongest user are fixed at the start. The model
    computes in float32. Without --out, a small model with random weights is used.

    Exit code 0 if nothing differs, 1 if something does, 2 for bad input.

    Example: rmtllmf gradcheck --out runs/a --combination dtd+mnist --parameters powers budget
    """

    out: Path | None = None
    """Run folder whose users are fused; nothing is written there. By default a random model."""
    combination: str = ""
    """Tasks to fuse, as a+b; by default all of the run folder."""
    parameters: tuple[str, ...] = ()
    """Parameters to differentiate by: powers, distances, positions, path_loss_exponent, budget,
    attack (a free attack, starting from white noise; with the scenario ideal), mse, mse_factor,
    scale. By default all that have an effect under the preset and the scenario, except a free
    attack."""
    scenario: str = "sum_rate"
    """Channel scenario: clean (no channel), ideal (only thermal noise), or an attacker: white,
    white_in_range, sum_rate, sum_rate_floor_aware, strongest_user, towards(user=0),
    min_max_rate, sum_mse, jammer(antennas=2), guessed(of=sum_rate, csi=0.0)."""
    metric: Annotated[str, tyro.conf.arg(aliases=["--score"])] = "soft_accuracy"
    """Metric to differentiate: soft_accuracy, which tends to the accuracy as its temperature falls,
    as in 'soft_accuracy(temperature=0.5)', cross_entropy or margin."""
    channel_draws: int = 1
    """Channels over which the score is averaged; the users keep their positions in all of them."""
    noise_draws: int = 2
    """Draws of the parameter noise per channel."""
    eval_samples: int = 64
    """Test images per task (nothing is tuned on them); 0 means all."""
    eval_batch_size: int = 64
    """Images per evaluation step; affects only speed and memory."""
    scale: str = "power-law"
    """Merging coefficient at the start: a number, power-law, 1/N or 1/sqrt(N)."""
    tolerance: float = 1e-3
    """Allowed relative error, in addition to the uncertainty of the finite differences."""
    hessian: bool = False
    """Check second derivatives: the curvature along each direction against differences of the
    slope."""
    seed: int = 0
    """Root of channels, noise, directions, evaluation subsets and the random model."""
    json: bool = False
    """Print JSON and nothing else: an object of the options, `model` (the run folder or random),
    `images`, `value` (the score at the start) and `parameters`: a list of objects of parameter,
    gradient, difference, relative_error, uncertainty (of the difference) and verdict (agrees,
    differs, too small to tell). Numbers that are not finite are null."""

    def run(self) -> None:
        """Run the sub-command."""
        settings = _checked(self)
        use_compilation_cache(self.cache_dir)
        objective = _objective(self, settings)
        value, found = _compared(self, objective)
        images = int((objective.samples.weight > 0).sum())
        if self.json:
            self._print_json(images, value, found)
        else:
            self._print(images, value, found)
        if any(each.verdict(self.tolerance) == "differs" for each in found):
            sys.exit(1)

    def _print_json(self, images: int, value: float, found: list[Agreement]) -> None:
        numbers = ("parameter", "gradient", "difference", "relative_error", "uncertainty")
        report = {
            "model": "random" if self.out is None else str(self.out),
            "combination": self.combination or None,
            "images": images,
            **{name: getattr(self, name) for name in _REPORTED},
            "value": value,
            "parameters": [
                {name: getattr(each, name) for name in numbers}
                | {"verdict": each.verdict(self.tolerance)}
                for each in found
            ],
        }
        print_as_json(report)

    def _print(self, images: int, value: float, found: list[Agreement]) -> None:
        print(f"Model: {_RANDOM if self.out is None else self.out}")
        print(
            f"{self.combination or 'all tasks'} ({images:,} images), scenario "
            f"{self.scenario}, preset {self.preset}: {self.metric} {value:.4f}"
        )
        slope = "curvature" if self.hessian else "gradient"
        header = ["parameter", "verdict", slope, "finite diff.", "rel. error", "uncertainty"]
        rows = [
            [
                each.parameter,
                each.verdict(self.tolerance),
                f"{each.gradient:.4g}",
                f"{each.difference:.4g}",
                f"{each.relative_error:.0e}",
                f"{each.uncertainty:.0e}",
            ]
            for each in found
        ]
        print_table("", header, rows)
        for verdict in dict.fromkeys(row[1] for row in rows if row[1] in _MEANINGS):
            print(f"{verdict}: {_MEANINGS[verdict]}")


def _checked(options: Gradcheck) -> Settings:
    """Return the library's settings; what cannot be used is refused before any work.

    **Raises:** `InputError` that names the option.
    """
    from rmtllmf_jax.channel import Link
    from rmtllmf_jax.evaluation.known import get_metric
    from rmtllmf_jax.gradients import Parameters
    from rmtllmf_jax.sweep.settings import Settings
    from rmtllmf_jax.uplink import Scenario

    if not get_metric(options.metric).differentiable:
        raise InputError(
            f"--metric {options.metric} is a step function, whose derivative says nothing: take "
            "soft_accuracy, which tends to the accuracy as its temperature falls."
        )
    require_at_least("--channel-draws", options.channel_draws, 1)
    require_at_least("--noise-draws", options.noise_draws, 1)
    require_non_negative("--tolerance", options.tolerance)
    require_seed("--seed", options.seed)
    settings = Settings(**taken(options, Settings), c0_db=options.c0)
    if options.scale == "validation":
        raise InputError(
            "--scale validation needs a sweep; give the number that a sweep found (`scales` "
            "in run.json), or power-law."
        )
    preset = settings.channel(1)
    if (attack := Scenario(options.scenario).attack) is not None:
        Link(preset, attack)
    known = [each.name for each in fields(Parameters)]
    for name in options.parameters:
        require_known("parameter of --parameters", name, known)
        if options.scenario == "clean" and name != "scale":
            raise InputError(
                f"--parameters {name} has no effect with --scenario clean, where no user has an "
                "error: take another scenario, or --parameters scale."
            )
    return settings


def _names(options: Gradcheck, link: Link | None) -> tuple[str, ...]:
    """Return the parameters that are asked for, or all that act."""
    from rmtllmf_jax.channel import NO_ATTACK, ChannelPreset, PowerLaw

    if options.parameters:
        return tuple(dict.fromkeys(options.parameters))
    if link is None:
        return ("scale",)
    preset = link.preset
    if not preset.has_channel:
        return ("mse", "mse_factor", "scale")
    names = ["powers"] if getattr(preset, "power_control", "none") == "none" else []
    if isinstance(preset, ChannelPreset):
        names += ["distances"]
        names += ["path_loss_exponent"] if isinstance(preset.path_loss, PowerLaw) else []
    names += ["budget"] if link.attack != NO_ATTACK else []
    return (*names, "mse_factor", "scale")


def _objective(options: Gradcheck, settings: Settings) -> Objective:
    """Return the score of the fused model.

    **Raises:** `InputError` if the combination is not one of the tasks, or the run folder cannot
    be used.
    """
    from rmtllmf_jax.runs.random_users import random_inputs
    from rmtllmf_jax.sweep.objective import objective_of

    if options.out is None:
        inputs = random_inputs(options.seed)
        combination = _combination(options.combination, inputs.tasks)
    else:
        # Finite differences of a score in bfloat16 would be rounding and nothing else.
        run = options.opened(options.out, dtype="float32")
        combination = _combination(options.combination, run.names)
        settings.channel(len(run.names))
        inputs = run.inputs()
    return objective_of(
        inputs,
        settings,
        options.scenario,
        combination=combination,
        metric=options.metric,
        channel_draws=options.channel_draws,
        noise_draws=options.noise_draws,
    )


def _combination(text: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(text.split("+")) if text else tasks
    for name in names:
        require_known("task of --combination", name, tasks)
    if len(set(names)) < len(names):
        raise InputError(f"--combination names a task more than once: {text}.")
    return names


def starting_values(
    objective: Objective, names: tuple[str, ...], key: Key[Array, ""]
) -> Parameters:
    """Return the parameters called `names` at what preset and objective have in their place.

    Places and MSEs are those of the first channel of `key`, so that with one channel the score is
    that without any parameter given; further channels have those too. An `attack` starts at white
    noise with all of the budget.

    **Raises:** `InputError` for parameters that do not fit, and for an MSE of zero.
    """
    import jax
    import jax.numpy as jnp

    from rmtllmf_jax.channel import ChannelPreset, PowerLaw, White, draw_distances
    from rmtllmf_jax.gradients import Parameters, attack_at, require_place, user_mse

    link, tasks = objective.setting.link, len(objective.kappa)
    require_place(names, link)
    channel = objective.channel_keys(key)[0]
    values: dict[str, Any] = {
        "mse_factor": jnp.ones((tasks, len(jax.tree.leaves(objective.vectors)))),
        "scale": jnp.full(tasks, objective.scale, jnp.float32),
    }
    if link is not None and link.preset.has_channel:
        preset: Any = link.preset
        values["powers"] = jnp.ones(preset.users)
        values["budget"] = jnp.asarray(preset.attack_budget, jnp.float32)
        values["attack"] = attack_at(White(), preset, channel)
    if link is not None and isinstance(preset := link.preset, ChannelPreset):
        distances = draw_distances(preset, channel)
        angles = jax.random.uniform(channel, (preset.users,), maxval=2 * math.pi)
        circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        values |= {"distances": distances, "positions": distances[:, None] * circle}
        if isinstance(law := preset.path_loss, PowerLaw):
            values["path_loss_exponent"] = jnp.asarray(law.exponent, jnp.float32)
    if link is not None and "mse" in names:
        values["mse"] = user_mse(Parameters(), link, channel)
        if not (values["mse"] > 0).all():
            raise InputError(
                f"--parameters mse: a user of the preset {link.preset} has the MSE 0, and its "
                "root no derivative there."
            )
    start = Parameters(**{name: values[name] for name in names})
    objective.check(start)
    return start


def _compared(options: Gradcheck, objective: Objective) -> tuple[float, list[Agreement]]:
    """Return the score at the start, and the agreement in every parameter."""
    import jax

    from rmtllmf_jax.common.progress import progress_bar
    from rmtllmf_jax.gradients import check_gradient, value

    key = jax.random.key(options.seed)
    start = starting_values(objective, _names(options, objective.setting.link), key)
    objective = objective.fixed_at(start)
    with progress_bar("gradcheck", 1 + len(start.given())) as advance:
        score = float(value(objective, start, key))
        advance(1)
        found = check_gradient(
            objective, start, key, options.seed, advance, order=2 if options.hessian else 1
        )
    return score, found
