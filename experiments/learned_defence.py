"""A defence and an attack learned against each other, and what an attacker who answers still costs.

    python experiments/learned_defence.py --run runs/demo [--quick]

In each channel the defender learns a power per leaf and a merging coefficient per task and layer,
the attacker a covariance, in turns by gradient steps on the soft accuracy of the fused model
(`gradients.learn_defence`); both ends of the saddle and the gap between them are reported. Beside
it stand no defence and `coded`, each under the paper's attack P1, under `sum_mse`, and under an
attack that was made for it: by gradients, or for `coded`, whose choices have none, by random
steps of which those that hurt are kept. No model is repaired here, so that what is compared is the
physical layer alone. Tuned on validation images and one noise; judged by hard accuracy on test
images and other noise.

Written to results/learned_defence/: README.md, defences.csv (a row per channel, defence and
attack). What is finished is kept in the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import tyro
from jaxtyping import Array, Key
from study import Learner, all_rows, base_alone, gap, load, made_by, objectives, stands, write_page

from rmtllmf_jax import channel, gradients
from rmtllmf_jax.common.errors import require_at_least
from rmtllmf_jax.gradients import Objective, Parameters
from rmtllmf_jax.gradients.learned import attack_at
from rmtllmf_jax.gradients.parameters import root_size
from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.uplink import Coded

# Folded into the root key: channels, the noise that is tuned on, that which judges, random steps.
_CHANNEL, _TUNING, _JUDGING, _STEPS = 0, 1, 2, 3
ATTACKS: dict[str, channel.Attack] = {"sum_rate": channel.SumRate(), "sum_mse": channel.SumMse()}
NONE, CODED, LEARNED = "none", "coded", "learned"
OWN = "made for it"


@dataclass(frozen=True)
class Options(Learner):
    """What to run."""

    channels: int = 20
    """Channel draws."""
    rounds: int = 3
    """Turns of defender and attacker."""
    steps: int = 10
    """Gradient steps of a turn."""
    searched: int = 40
    """Random steps of the attack that is made for `coded`."""
    learning_rate: float = 0.03
    """Length of a step of the covariance's root, whose norm is 1, and of powers and
    coefficients."""
    tuning_draws: int = 2
    """Draws of the parameters' noise that are tuned on."""
    eval_draws: int = 2
    """Other draws, that are judged on."""
    quick: bool = False
    """Two channels, one turn of two steps, few images."""
    out: Path = Path(__file__).parent / "results" / "learned_defence"
    """Where the table and the page go."""

    def chosen(self) -> Options:
        """Return the options after `--quick`.

        **Raises:** `InputError` that names an option.
        """
        require_at_least("--channels", self.channels, 2)
        if not self.quick:
            return self
        few = {"tuning_samples": 8, "tuning_draws": 1, "eval_samples": 16, "eval_draws": 1}
        return replace(self, channels=2, rounds=1, steps=2, searched=3, **few)


def channel_rows(
    tuned: Objective, judge: Objective, number: int, options: Options
) -> Iterator[dict[str, Any]]:
    """Yield a row per defence and attack in one channel."""
    root = jax.random.key(options.seed)
    key, tuning, judging, random = (
        jax.random.fold_in(jax.random.fold_in(root, kind), number)
        for kind in (_CHANNEL, _TUNING, _JUDGING, _STEPS)
    )
    here, there = tuned.over(key[None]), judge.over(key[None])
    link = here.setting.link
    assert link is not None
    known = {
        name: Parameters(attack=attack_at(attack, link.preset, key))
        for name, attack in ATTACKS.items()
    }
    steps = {"steps": options.steps, "learning_rate": options.learning_rate}
    saddle = gradients.learn_defence(
        here, tuning, rounds=options.rounds, start=channel.SumMse(), **steps
    )

    def learned(objective: Objective) -> Parameters:
        found = gradients.learn_attack(objective, tuning, channel.SumMse(), **steps)
        return found.parameters

    def searched(objective: Objective) -> Parameters:
        return search(objective, known["sum_mse"], tuning, random, options)

    Made = Callable[[Objective], Parameters]
    defences: dict[str, tuple[Callable[[Objective], Objective], Made]] = {
        NONE: (lambda objective: objective, learned),
        CODED: (_coded, searched),
        LEARNED: (lambda objective: objective.holding(saddle.defence), learned),
    }
    for defence, (defended, answer) in defences.items():
        made = answer(defended(here))
        for name, attack in ({"no attack": Parameters()} | known | {OWN: made}).items():
            yield {
                "channel": number,
                "defence": defence,
                "attack": name,
                "accuracy": float(gradients.value(defended(there), attack, judging)),
                "soft_accuracy": float(gradients.value(defended(here), attack, tuning)),
                "lower": saddle.lower,
                "upper": saddle.upper,
            }


def _coded(objective: Objective) -> Objective:
    return replace(objective, setting=replace(objective.setting, transport=Coded()))


def search(
    objective: Objective,
    start: Parameters,
    tuning: Key[Array, ""],
    random: Key[Array, ""],
    options: Options,
) -> Parameters:
    """Return the worst attack that random steps find, each kept if it hurts more than the last."""
    best, least = start, float(gradients.value(objective, start, tuning))
    for number in range(options.searched):
        assert best.attack is not None
        step = jax.random.normal(jax.random.fold_in(random, number), best.attack.shape)
        moved = best.attack + 10 * options.learning_rate * step / root_size(step)
        tried = Parameters(attack=moved / root_size(moved))
        value = float(gradients.value(objective, tried, tuning))
        if value < least:
            best, least = tried, value
    return best


def summary(rows: pd.DataFrame) -> Sheet:
    """Return the mean accuracy of every defence under every attack."""
    attacks = list(dict.fromkeys(rows["attack"]))
    cells = [
        [
            str(defence),
            *(
                interval(group[group["attack"] == attack], "accuracy", ("channel",)).text(".1f")
                for attack in attacks
            ),
        ]
        for defence, group in rows.groupby("defence", sort=False)
    ]
    title = "Hard accuracy on held-out images and noise (%), 95 % intervals over channels"
    return Sheet(title, ["defence", *attacks], cells)


def conclusion(rows: pd.DataFrame) -> list[str]:
    """Say what the saddle's ends are, and which defence keeps more under its own attack."""
    ends = rows.groupby("channel", as_index=False)[["lower", "upper"]].first()
    ends["gap"] = ends["upper"] - ends["lower"]
    low, high, between = (
        interval(ends, name, ("channel",)).text(".1f") for name in ("lower", "upper", "gap")
    )
    own = rows[rows["attack"] == OWN]
    told = []
    for one, other in ((LEARNED, NONE), (CODED, NONE), (CODED, LEARNED)):
        more = gap(own, "defence", one, other, "channel")
        words = stands(more, "keeps more than", "keeps less than", "channel")
        told.append(
            f"under the attack made for each, {one} {words} {other} "
            f"({more.text('.1f', '+')} points)"
        )
    return [
        f"The saddle's ends, in soft accuracy on what was tuned on, every defence that was found "
        f"against every attack: {low} % is what the best defence keeps under the worst attack, "
        f"{high} % what is kept of the worst attack by the best defence; the gap is {between} "
        "points. An answer that was not found could move either end.",
        "By hard accuracy on other images and other noise: " + "; ".join(told) + ".",
    ]


def main(options: Options) -> None:
    """Learn and judge channel by channel; write table and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    draws = {"noise_draws": options.tuning_draws}, {"noise_draws": options.eval_draws}
    tuned, judge = objectives(inputs, options, "ideal", *draws)
    found, resumed = all_rows(
        options,
        inputs,
        "learned_defence",
        "channels",
        lambda number: channel_rows(tuned, judge, number, options),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    found.to_csv(options.out / "defences.csv", index=False, float_format="%.6g")
    seconds = time.perf_counter() - started
    lines = [
        "# A defence learned against a learned attack",
        made_by("learned_defence.py", options.seed, seconds, resumed=resumed),
        *conclusion(found),
        base_alone(judge),
        f"{options.channels} channels of {len(inputs.tasks)} users ({', '.join(inputs.tasks)}) at "
        f"c0 = {options.c0:g} dB, merging coefficient {options.scale} where it is not learned, "
        f"{options.rounds} turns of {options.steps} steps, {options.searched} random steps against "
        f"`coded`, judged on {options.eval_samples or 'all'} test images per task and "
        f"{options.eval_draws} draws.",
        markdown_table(summary(found)),
    ]
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
