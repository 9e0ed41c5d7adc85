"""Is the rate-optimal attack also the worst for accuracy? An attack learned by gradient descent.

    python experiments/learned_attack.py --run runs/vit-tiny [--quick | --full]

The paper's attackers minimise a rate (P1) or jam one user (P2); what the base station loses is
accuracy. Here the attacker's covariance, of the same trace, is learned by projected gradient steps
on the soft accuracy of the fused model: through the merged model, the noise on it, the MSE of every
user and the receiver to the covariance itself. The attacker knows the channel, as P1's does, and
the models; it is tuned on validation images and on draws of the parameters' noise that are not
those it is judged on: hard accuracy on test images, on other draws. All users' tasks are merged, so
that knowing which users matter is no part of what it gains.

Written to results/learned_attack/: README.md, attacks.csv (a row a channel and attacker), the
figure. What is finished is kept in the run folder.

Not run yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
import tyro
from journal import Journal
from study import Users, load, made_by, write_figure

from rmtllmf_jax import channel, gradients
from rmtllmf_jax.cli.environment import use_compilation_cache
from rmtllmf_jax.common.errors import require_at_least, require_known
from rmtllmf_jax.common.files import content_hash, write_bytes
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.gradients import Objective, Parameters
from rmtllmf_jax.report.learned import attack_figure
from rmtllmf_jax.report.markdown import table
from rmtllmf_jax.report.paired import against, interval
from rmtllmf_jax.report.sheets import Sheet
from rmtllmf_jax.sweep.inputs import SweepInputs
from rmtllmf_jax.sweep.objective import objective_of, with_users
from rmtllmf_jax.sweep.settings import Settings

# Folded into the root key: channels, the noise that is tuned on, and that which judges.
_CHANNEL, _TUNING, _JUDGING = 0, 1, 2


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    tasks: tuple[str, ...] = ("dtd", "eurosat", "mnist", "resisc45")
    """Tasks that are merged, each sent by a user of its own."""
    attacks: tuple[str, ...] = (
        "none",
        "white_in_range",
        "strongest_user",
        "sum_rate",
        "sum_mse",
    )
    """Attackers to compare with, of `channel.ATTACKS`."""
    starts: tuple[str, ...] = ("sum_rate",)
    """Attacks that the learning begins at; of several the best on the tuning draws is judged."""
    channels: int = 20
    """Channel draws."""
    steps: int = 25
    """Gradient steps a channel."""
    learning_rate: float = 0.02
    """Step of the covariance's root, whose norm is 1."""
    temperature: float = 1.0
    """Of the soft accuracy."""
    tuning_samples: int = 32
    """Validation images a task."""
    tuning_draws: int = 4
    """Draws of the parameters' noise that are tuned on."""
    eval_samples: int = 100
    """Test images a task; 0 is all."""
    eval_draws: int = 4
    """Other draws, that are judged on."""
    scale: str = "0.25"
    """Merging coefficient: a number or power-law."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """Two channels, 5 steps, few images."""
    full: bool = False
    """100 channels, 100 steps from three starts, all test images (for a GPU)."""
    out: Path = Path(__file__).parent / "results" / "learned_attack"
    """Where the table and the figure go."""

    def chosen(self) -> Options:
        """Return what `--quick` and `--full` make of the options.

        **Raises:** `InputError` that names an option.
        """
        for name in (*self.attacks, *self.starts):
            require_known("attack", name, channel.ATTACKS)
        require_at_least("--channels", self.channels, 2)
        if self.quick:
            few = {"tuning_samples": 8, "tuning_draws": 1, "eval_samples": 16, "eval_draws": 1}
            return replace(self, channels=2, steps=5, **few)
        if self.full:
            starts = ("white", "sum_rate", "strongest_user")
            return replace(self, channels=100, steps=100, starts=starts, eval_samples=0)
        return self


def objectives(inputs: SweepInputs, options: Options) -> tuple[Objective, Objective]:
    """Return what is tuned on, and what judges; both of one channel a call."""
    settings = Settings(
        scale=options.scale,
        eval_samples=options.eval_samples,
        validation_samples=options.tuning_samples,
        seed=options.seed,
    )
    tuned = objective_of(
        inputs,
        settings,
        "ideal",
        split="validation",
        temperature=options.temperature,
        noise_draws=options.tuning_draws,
    )
    judge = objective_of(
        inputs, settings, "ideal", score="accuracy", noise_draws=options.eval_draws
    )
    return with_users(tuned, len(inputs.tasks)), with_users(judge, len(inputs.tasks))


def channel_rows(
    tuned: Objective, judge: Objective, number: int, options: Options
) -> Iterator[dict[str, Any]]:
    """Yield a row an attacker in one channel."""
    root = jax.random.key(options.seed)
    key, tuning, judging = (
        jax.random.fold_in(jax.random.fold_in(root, kind), number)
        for kind in (_CHANNEL, _TUNING, _JUDGING)
    )
    preset = tuned.setting.preset
    here = tuned.over(key[None])
    found = [
        gradients.learn_attack(
            here, tuning, start, steps=options.steps, learning_rate=options.learning_rate
        )
        for start in options.starts
    ]
    learned = min(found, key=lambda optimum: optimum.value).parameters
    errors = {name: channel.user_mse(_scenario(name), preset, key) for name in options.attacks}
    errors["learned"] = here.user_mse(learned, key)
    for name, mse in errors.items():
        given = Parameters(mse=mse)
        yield {
            "channel": number,
            "attack": name,
            "accuracy": float(gradients.value(judge, given, judging)),
            "soft_accuracy": float(gradients.value(here, given, tuning)),
            "mse": float(jnp.mean(mse)),
            "worst_mse": float(jnp.max(mse)),
        }


def _scenario(attack: str) -> str:
    return next(name for name, known in channel.SCENARIOS.items() if known == attack)


def summary(rows: pd.DataFrame) -> Sheet:
    """Return mean accuracy and MSE of every attacker, and its distance to the learned one."""
    wide = rows.pivot_table(index="channel", columns="attack", values="accuracy")
    cells = []
    for name, group in rows.groupby("attack", sort=False):
        more = "-" if name == "learned" else against(wide[name], wide["learned"])
        mse = f"{group['mse'].mean():.3g}"
        cells.append([str(name), interval(group["accuracy"]), more, mse])
    columns = ["attack", "accuracy", "above the learned attack", "mean MSE"]
    return Sheet("Hard accuracy on held-out images and noise (%), mean ± 95 %", columns, cells)


def main(options: Options) -> None:
    """Learn and judge channel by channel; write table, figure and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    tuned, judge = objectives(inputs, options)
    where = ("run", "model", "data", "cache_dir", "out", "quick", "full", "channels")
    meaning = {name: value for name, value in asdict(options).items() if name not in where}
    name = content_hash({"inputs": inputs.fingerprint, **meaning})
    rows: list[dict[str, Any]] = []
    with (
        Journal(options.run / "learned_attack" / f"{name}.jsonl") as journal,
        progress_bar("learned attack", options.channels, unit="channels") as advance,
    ):
        resumed = journal.path.stat().st_size > 0
        for number in range(options.channels):
            if str(number) not in journal:
                journal.add(str(number), list(channel_rows(tuned, judge, number, options)))
            rows += journal[str(number)]
            advance(1)
    found = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    found.to_csv(options.out / "attacks.csv", index=False, float_format="%.6g")
    write_figure(options.out / "learned_attack", attack_figure(found))
    seconds = time.perf_counter() - started
    lines = [
        "# An attack learned on accuracy, beside those that minimise rates",
        made_by("learned_attack.py", options.seed, seconds, resumed=resumed),
        f"{options.channels} channels of {len(inputs.tasks)} users ({', '.join(inputs.tasks)}), "
        f"{options.steps} steps from {', '.join(options.starts)}, judged on "
        f"{options.eval_samples or 'all'} test images a task and {options.eval_draws} draws.",
        table(summary(found)),
        "![Accuracy by attack](learned_attack.png)",
    ]
    write_bytes(options.out / "README.md", ("\n\n".join(lines) + "\n").encode())
    print("\n\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Options))
