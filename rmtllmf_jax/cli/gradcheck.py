"""`rmtllmf gradcheck`: the gradient of the fused model's score against finite differences."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rmtllmf_jax.cli.help_text import Place
from rmtllmf_jax.cli.options import Cache, PresetText, ReceiverText
from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_known,
    require_non_negative,
    require_seed,
)
from rmtllmf_jax.runs.environment import default_cache, use_compilation_cache

if TYPE_CHECKING:
    from jaxtyping import Array, Key

    from rmtllmf_jax.channel import Link, Preset
    from rmtllmf_jax.gradients import Agreement, Objective, Parameters
    from rmtllmf_jax.sweep.settings import Settings

_RANDOM = "random (a small Vision Transformer, three tasks of random images); --out takes yours"

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
class Gradcheck:
    """Compare the gradient of the fused model's score with finite differences.

    Every parameter is moved along a random direction from the values of the preset, with the same
    channels and noise at every step. SIC order and strongest user stay as they are at the start.
    The model computes in float32. Without --out, the model is a small one with random weights.

    Exit code 0 if nothing differs, 1 if something does, 2 for bad input.

    Example: rmtllmf gradcheck --out runs/a --combination dtd+mnist --parameters powers budget
    """

    out: Path | None = None
    """Run folder whose users are fused; nothing is written there. Without it, a random model."""
    model: Place | None = None
    """Where the pretrained model of the run is now, if it was moved since `finetune`."""
    data: Path | None = None
    """Where the images of the run are now, if they were moved since `finetune`."""
    combination: str = ""
    """Tasks that are fused, as a+b; by default all of the run folder."""
    parameters: tuple[str, ...] = ()
    """What the score is differentiated in: powers, distances, positions, path_loss_exponent,
    budget, attack (a free one, from white noise on; with the scenario ideal), mse, mse_factor,
    scale. By default all that act under the preset and the scenario, but for a free attack."""
    scenario: str = "sum_rate"
    """Channel scenario: clean (no channel), ideal (only thermal noise), or an attacker: white,
    white_in_range, sum_rate, sum_rate_floor_aware, strongest_user, towards(user=0),
    min_max_rate, sum_mse."""
    metric: Annotated[str, tyro.conf.arg(aliases=["--score"])] = "soft_accuracy"
    """Metric that is differentiated: soft_accuracy, which tends to the accuracy as its temperature
    falls, as in 'soft_accuracy(temperature=0.5)', cross_entropy or margin."""
    preset: PresetText = "paper"
    receiver: ReceiverText = "sic"
    channel_draws: int = 1
    """Channels that the score is averaged over; the users keep their positions in all."""
    noise_draws: int = 2
    """Draws of the parameters' noise for every channel."""
    eval_samples: int = 64
    """Test images per task (nothing is tuned on them); 0 is all."""
    eval_batch_size: int = 64
    """Images per step of evaluation; changes only speed and memory."""
    scale: str = "power-law"
    """Merging coefficient at the start: a number, power-law, 1/N or 1/sqrt(N)."""
    c0: float = -31.0
    """Parameter-domain SNR (dB) of a user with MSE 1: kappa = rms(tau) 10^(-c0/20)."""
    kappa: float | None = None
    """Noise scale: the standard deviation of the noise on every parameter at an MSE of 1, the same
    for all users; overrides --c0."""
    tolerance: float = 1e-3
    """Relative error that is allowed, beside what the finite differences are off by themselves."""
    hessian: bool = False
    """Check second derivatives: the curvature along each direction against differences of the
    slope."""
    seed: int = 0
    """Root of channels, noise, directions, evaluation subsets and of the random model."""
    json: bool = False
    """Print JSON and nothing else: an object of the options, `model` (the run folder or random),
    `images`, `value` (the score at the start) and `parameters`: a list of objects of parameter,
    gradient, difference, relative_error, uncertainty (of the difference) and verdict (agrees,
    differs, too small to tell). A number that is not finite is null."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        settings = _checked(self)
        use_compilation_cache(self.cache_dir)
        objective = _objective(self, settings)
        value, found = _compared(self, objective)
        if self.json:
            print(json.dumps(self._report(objective, value, found), indent=2, allow_nan=False))
        else:
            self._print(objective, value, found)
        if any(each.verdict(self.tolerance) == "differs" for each in found):
            sys.exit(1)

    def _report(self, objective: Objective, value: float, found: list[Agreement]) -> dict[str, Any]:
        return {
            "model": "random" if self.out is None else str(self.out),
            "combination": self.combination or None,
            "images": _images(objective),
            "scenario": self.scenario,
            "metric": self.metric,
            "preset": self.preset,
            "receiver": self.receiver,
            "channel_draws": self.channel_draws,
            "noise_draws": self.noise_draws,
            "tolerance": self.tolerance,
            "hessian": self.hessian,
            "seed": self.seed,
            "value": _finite(value),
            "parameters": [
                {
                    "parameter": each.parameter,
                    "gradient": _finite(each.gradient),
                    "difference": _finite(each.difference),
                    "relative_error": _finite(each.relative_error),
                    "uncertainty": _finite(each.uncertainty),
                    "verdict": each.verdict(self.tolerance),
                }
                for each in found
            ],
        }

    def _print(self, objective: Objective, value: float, found: list[Agreement]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        print(f"Model: {_RANDOM if self.out is None else self.out}")
        print(
            f"{self.combination or 'all tasks'} ({_images(objective):,} images), scenario "
            f"{self.scenario}, preset {self.preset}: {self.metric} {value:.4f}"
        )
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("parameter", no_wrap=True)
        for name in (
            "curvature" if self.hessian else "gradient",
            "finite diff.",
            "rel. error",
            "uncertainty",
        ):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict")
        for each in found:
            numbers = [f"{number:.4g}" for number in (each.gradient, each.difference)]
            numbers += [f"{number:.0e}" for number in (each.relative_error, each.uncertainty)]
            table.add_row(each.parameter, *numbers, each.verdict(self.tolerance))
        Console().print(table)
        verdicts = {each.verdict(self.tolerance) for each in found}
        for verdict, meaning in _MEANINGS.items():
            if verdict in verdicts:
                print(f"{verdict}: {meaning}")


def _checked(options: Gradcheck) -> Settings:
    """Return the library's settings; what cannot be used is refused before any work.

    **Raises:** `InputError` that names the option.
    """
    from rmtllmf_jax.evaluation.metrics import get_metric
    from rmtllmf_jax.sweep.settings import Settings

    if not get_metric(options.metric).differentiable:
        raise InputError(
            f"--metric {options.metric} is a step function, whose derivative says nothing: take "
            "soft_accuracy, which tends to the accuracy as its temperature falls."
        )
    require_at_least("--channel-draws", options.channel_draws, 1)
    require_at_least("--noise-draws", options.noise_draws, 1)
    require_non_negative("--tolerance", options.tolerance)
    require_seed("--seed", options.seed)
    settings = Settings(
        preset=options.preset,
        receiver=options.receiver,
        scale=options.scale,
        c0_db=options.c0,
        kappa=options.kappa,
        eval_samples=options.eval_samples,
        eval_batch_size=options.eval_batch_size,
        seed=options.seed,
    )
    if options.scale == "validation":
        raise InputError(
            "--scale validation is for a sweep to search; give the number that it found (`scales` "
            "in run.json), or power-law."
        )
    _require_acting(options, settings.channel(1))
    return settings


def _require_acting(options: Gradcheck, preset: Preset) -> None:
    """Check the names of the parameters against preset and scenario.

    **Raises:** `InputError` that names the parameter which has no meaning or no effect.
    """
    from rmtllmf_jax.channel import Link, Scenario
    from rmtllmf_jax.gradients import Parameters

    if (attack := Scenario(options.scenario).attack) is not None:
        Link(preset, attack)
    known = [each.name for each in fields(Parameters)]
    for name in options.parameters:
        require_known("parameter of --parameters", name, known)
    idle = [name for name in options.parameters if name != "scale"]
    if options.scenario == "clean" and idle:
        raise InputError(
            f"--parameters {idle[0]} has no effect with --scenario clean, where no user has an "
            "error: take another scenario, or --parameters scale."
        )


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
    from rmtllmf_jax.cli.random_users import TASKS, random_inputs
    from rmtllmf_jax.runs import open_run
    from rmtllmf_jax.sweep.objective import objective_of

    if options.out is None:
        combination = _combination(options.combination, TASKS)
        inputs = random_inputs(options.seed)
    else:
        run = open_run(
            options.out,
            model=options.model,
            data=options.data,
            cache_dir=options.cache_dir,
            # Finite differences of a score in bfloat16 would be rounding and nothing else.
            dtype="float32",
        )
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

    from rmtllmf_jax.gradients import Parameters, require_place, user_mse

    link, tasks = objective.setting.link, len(objective.kappa)
    require_place(names, link)
    channel = objective.channel_keys(key)[0]
    values: dict[str, Any] = {
        "mse_factor": jnp.ones((tasks, len(jax.tree.leaves(objective.vectors)))),
        "scale": jnp.full(tasks, objective.scale, jnp.float32),
    }
    if link is not None and link.preset.has_channel:
        values |= _channel_values(link.preset, channel)
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


def _channel_values(preset: Preset, channel: Key[Array, ""]) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from rmtllmf_jax.channel import ChannelPreset, PowerLaw, White, draw_distances
    from rmtllmf_jax.gradients import attack_at

    values = {
        "powers": jnp.ones(preset.users),
        "budget": jnp.asarray(preset.attack_budget, jnp.float32),
        "attack": attack_at(White(), preset, channel),
    }
    if not isinstance(preset, ChannelPreset):
        return values
    distances = draw_distances(preset, channel)
    angles = jax.random.uniform(channel, (preset.users,), maxval=2 * math.pi)
    circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    law = preset.path_loss
    exponent = law.exponent if isinstance(law, PowerLaw) else 0.0  # which is refused by its name
    return values | {
        "distances": distances,
        "positions": distances[:, None] * circle,
        "path_loss_exponent": jnp.asarray(exponent, jnp.float32),
    }


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


def _images(objective: Objective) -> int:
    return int((objective.samples.weight > 0).sum())


def _finite(number: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return number if math.isfinite(number) else None
