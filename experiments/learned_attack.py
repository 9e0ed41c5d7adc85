"""Is the rate-optimal attack also the worst for accuracy? An attack learned by gradient descent.

    python experiments/learned_attack.py --run runs/demo [--quick | --full]

The paper's attackers minimise a rate (P1) or jam one user (P2); what the base station loses is
accuracy. Here the attacker's covariance, of the same trace, is learned by projected gradient steps
on the soft accuracy of the fused model: through the merged model, the noise on it, the MSE of every
user and the receiver to the covariance itself. The attacker knows the channel, as P1's does, and
the models; it is tuned on validation images and on draws of the parameters' noise that are not
those it is judged on: hard accuracy on test images, on other draws. All users' tasks are merged, so
that knowing which users matter is no part of what it gains.

Written to results/learned_attack/: README.md, attacks.csv (a row a channel and attacker), the
figure. What is finished is kept in the run folder.

The page is of the demo's run folder with `--scale 0.6 --steps 10`: some minutes on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
import tyro
from figures_learned import attack_figure
from study import (
    Learner,
    all_rows,
    base_alone,
    gap,
    load,
    made_by,
    objectives,
    sign,
    stands,
    write_figure,
    write_page,
)

from rmtllmf_jax import channel, gradients
from rmtllmf_jax.common.errors import require_at_least
from rmtllmf_jax.common.values import parse
from rmtllmf_jax.gradients import Objective, Parameters
from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs.environment import use_compilation_cache

# Folded into the root key: channels, the noise that is tuned on, and that which judges.
_CHANNEL, _TUNING, _JUDGING = 0, 1, 2


@dataclass(frozen=True)
class Options(Learner):
    """What to run."""

    attacks: tuple[str, ...] = (
        "none",
        "white_in_range",
        "strongest_user",
        "sum_rate",
        "sum_mse",
    )
    """Attackers to compare with, of `channel.ATTACKS`."""
    starts: tuple[str, ...] = ()
    """Attacks that the learning begins at; the best end on the tuning draws is judged. None named:
    it begins at that of --attacks which is worst for the users on the tuning draws."""
    channels: int = 20
    """Channel draws."""
    steps: int = 20
    """Gradient steps a channel."""
    learning_rate: float = 0.03
    """Length of a step of the covariance's root, whose norm is 1."""
    tuning_draws: int = 2
    """Draws of the parameters' noise that are tuned on."""
    eval_draws: int = 2
    """Other draws, that are judged on."""
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
            parse(name, channel.ATTACKS, "attack")
        require_at_least("--channels", self.channels, 2)
        if self.quick:
            few = {"tuning_samples": 8, "tuning_draws": 1, "eval_samples": 16, "eval_draws": 1}
            return replace(self, channels=2, steps=5, **few)
        if self.full:
            starts = ("white", "sum_rate", "strongest_user")
            return replace(self, channels=100, steps=100, starts=starts, eval_samples=0)
        return self


def channel_rows(
    tuned: Objective, judge: Objective, number: int, options: Options
) -> Iterator[dict[str, Any]]:
    """Yield a row an attacker in one channel."""
    root = jax.random.key(options.seed)
    key, tuning, judging = (
        jax.random.fold_in(jax.random.fold_in(root, kind), number)
        for kind in (_CHANNEL, _TUNING, _JUDGING)
    )
    link = tuned.setting.link
    assert link is not None
    here = tuned.over(key[None])
    attacks = {name: parse(name, channel.ATTACKS, "attack") for name in options.attacks}
    errors = {name: replace(link, attack=attack).mse(key) for name, attack in attacks.items()}
    soft = {
        name: float(gradients.value(here, Parameters(mse=mse), tuning))
        for name, mse in errors.items()
    }
    spent = [name for name in options.attacks if name != "none"]
    found = [
        gradients.learn_attack(
            here,
            tuning,
            parse(start, channel.ATTACKS, "attack"),
            steps=options.steps,
            learning_rate=options.learning_rate,
        )
        for start in options.starts or (min(spent, key=soft.__getitem__),)
    ]
    learned = min(found, key=lambda optimum: optimum.value)
    errors["learned"] = here.user_mse(learned.parameters, key)
    soft["learned"] = float(learned.value)
    for name, mse in errors.items():
        yield {
            "channel": number,
            "attack": name,
            "accuracy": float(gradients.value(judge, Parameters(mse=mse), judging)),
            "soft_accuracy": soft[name],
            "mse": float(jnp.mean(mse)),
            "worst_mse": float(jnp.max(mse)),
        }


def summary(rows: pd.DataFrame) -> Sheet:
    """Return mean accuracy and MSE of every attacker, and its distance to the learned one."""
    cells = []
    for name, group in rows.groupby("attack", sort=False):
        found = gap(rows, "attack", str(name), "learned", "channel")
        more = "-" if name == "learned" else found.text(".1f", "+")
        accuracy = interval(group, "accuracy", ("channel",)).text(".1f")
        cells.append([str(name), accuracy, more, f"{group['mse'].mean():.3g}"])
    columns = ["attack", "accuracy", "above the learned attack", "mean MSE"]
    title = "Hard accuracy on held-out images and noise (%), 95 % intervals over channels"
    return Sheet(title, columns, cells)


def conclusion(rows: pd.DataFrame) -> str:
    """Compare the learned attack with its strongest rival, and P1 with the worst of the others."""
    left = {
        str(name): interval(own, "accuracy", ("channel",))
        for name, own in rows.groupby("attack", sort=False)
    }
    without = f"; without an attack it is {left['none'].text('.1f')} %" if "none" in left else ""
    said = [f"The learned attack leaves {left['learned'].text('.1f')} % of accuracy{without}."]
    worst = {1: ": it is not the worst for accuracy", 0: "", -1: ": it is the worst for accuracy"}
    for one, subject in (("learned", "It"), ("sum_rate", "P1 (`sum_rate`)")):
        rivals = [name for name in left if name not in (one, "none")]
        if one not in left or not rivals:
            continue
        rival = min(rivals, key=lambda name: left[name].mean)
        more = gap(rows, "attack", one, rival, "channel")
        said.append(
            f"{subject} {stands(more, 'leaves more than', 'leaves less than', 'channel')} "
            f"`{rival}`, the worst of the others of the same power "
            f"({more.text('.1f', '+')} points, channel by channel){worst[sign(more)]}."
        )
    return " ".join(said)


def main(options: Options) -> None:
    """Learn and judge channel by channel; write table, figure and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    draws = {"noise_draws": options.tuning_draws}, {"noise_draws": options.eval_draws}
    tuned, judge = objectives(inputs, options, "ideal", *draws)
    found, resumed = all_rows(
        options,
        inputs,
        "learned_attack",
        "channels",
        lambda number: channel_rows(tuned, judge, number, options),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    found.to_csv(options.out / "attacks.csv", index=False, float_format="%.6g")
    write_figure(options.out / "learned_attack", attack_figure(found))
    seconds = time.perf_counter() - started
    lines = [
        "# An attack learned on accuracy, beside those that minimise rates",
        made_by("learned_attack.py", options.seed, seconds, resumed=resumed),
        f"{conclusion(found)} {base_alone(judge)}",
        f"{options.channels} channels of {len(inputs.tasks)} users ({', '.join(inputs.tasks)}) at "
        f"c0 = {options.c0:g} dB, merging coefficient {options.scale}, {options.steps} steps "
        f"from {', '.join(options.starts) or 'the worst of the others'}, judged on "
        f"{options.eval_samples or 'all'} test images per task and {options.eval_draws} draws.",
        markdown_table(summary(found)),
        "![Accuracy by attack](learned_attack.png)",
    ]
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
