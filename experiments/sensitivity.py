"""Where does the noise of the uplink hurt? The derivative of accuracy by user and layer.

    python experiments/sensitivity.py --run runs/demo [--quick | --full]

R-MTLLMF protects the embeddings because they are sensitive. Here the derivative of the soft
accuracy of the fused model with respect to the MSE of every user and leaf shows which leaves are,
at the actual noise. Then the claim of such a map is tested: the leaves that by the map gain most
together, of at most as many parameters as the embeddings have, are transmitted without noise, and
hard accuracy on other images and draws is compared with protecting the embeddings, and with random
leaves of the same number of parameters.

Written to results/sensitivity/: README.md, layers.csv, leaves.csv, protected.csv, the figure.

Five minutes on two busy cores for the demo's eight tasks and 16 + 20 draws.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from figures_learned import sensitivity_figure
from study import Users, gap, grouped, load, made_by, sign, stands, write_figure, write_page

from rmtllmf_jax import fusion, gradients
from rmtllmf_jax.common.errors import require_at_least
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.defences.repairs import frozen_leaves
from rmtllmf_jax.evaluation import Accuracy, SoftAccuracy
from rmtllmf_jax.gradients import Objective, Parameters, Sensitivity
from rmtllmf_jax.report.intervals import Interval, interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.objective import objective_of
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import DEFAULT_C0_DB, Scenario

HOLDING = 0.5
"""A small set of leaves holds the damage if sparing it the noise brings this share of the gain."""

# Folded into the root key: draws for the map, draws for evaluation, and random leaves.
_MAPPING, _JUDGING, _RANDOM = 0, 1, 2


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    scenario: str = "sum_rate"
    """A `uplink.Scenario`."""
    draws: int = 16
    """Draws of channel and noise that the map is averaged over."""
    samples: int = 32
    """Validation images per task, for the map."""
    eval_draws: int = 20
    """Other draws, for evaluation."""
    eval_samples: int = 100
    """Test images per task; 0 is all."""
    random: int = 3
    """Random choices of leaves to compare with."""
    temperature: float = 1.0
    """Temperature of the soft accuracy."""
    scale: str = "0.25"
    """Merging coefficient: a number or power-law."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """Two draws, few images."""
    full: bool = False
    """256 draws, all images (for a GPU)."""
    out: Path = Path(__file__).parent / "results" / "sensitivity"
    """Where the tables and the figure go."""

    def chosen(self) -> Options:
        """Return what `--quick` and `--full` make of the options.

        **Raises:** `InputError` that names an option.
        """
        Scenario(self.scenario)
        require_at_least("--draws", self.draws, 2)
        require_at_least("--eval-draws", self.eval_draws, 2)
        if self.quick:
            return replace(self, draws=2, samples=8, eval_draws=2, eval_samples=16, random=1)
        if self.full:
            return replace(self, draws=256, samples=0, eval_draws=100, eval_samples=0)
        return self


def objectives(inputs: SweepInputs, options: Options) -> tuple[Objective, Objective]:
    """Return the objectives for the map and for evaluation."""
    settings = Settings(
        scale=options.scale,
        c0_db=options.c0,
        eval_samples=options.eval_samples,
        validation_samples=options.samples,
        seed=options.seed,
    )
    what = (inputs, settings, options.scenario)
    mapped = objective_of(*what, split="validation", metric=SoftAccuracy(options.temperature))
    return mapped, objective_of(*what, metric=Accuracy())


def best_leaves(found: Sensitivity, parameters: int) -> set[str]:
    """Return the leaves with the largest gain together, within a number of parameters.

    By dynamic programming: in the order of the gain per parameter, small leaves of little gain
    would leave no room for a large one.
    """
    unit = math.gcd(*found.sizes, parameters)
    gains, room = -found.mean.sum(axis=0), parameters // unit
    reached, taken = np.zeros(room + 1), np.zeros((len(found.leaves), room + 1), bool)
    for place, (gain, size) in enumerate(zip(gains, found.sizes, strict=True)):
        size //= unit
        if size <= room:
            better = reached[: room + 1 - size] + gain
            taken[place, size:] = better > reached[size:]
            reached[size:] = np.maximum(reached[size:], better)
    chosen = set()
    for place in range(len(gains) - 1, -1, -1):
        if taken[place, room]:
            chosen.add(found.leaves[place])
            room -= found.sizes[place] // unit
    return chosen


def random_leaves(found: Sensitivity, parameters: int, seed: int) -> set[str]:
    """Return random leaves within a number of parameters."""
    order = np.random.default_rng(seed).permutation(found.leaves)
    return _within(order.tolist(), found, parameters)


def _within(order: list[str], found: Sensitivity, parameters: int) -> set[str]:
    sizes, chosen = dict(zip(found.leaves, found.sizes, strict=True)), set()
    for leaf in order:
        if sizes[leaf] <= parameters:
            chosen.add(leaf)
            parameters -= sizes[leaf]
    return chosen


def judged(
    judge: Objective, protected: dict[str, set[str]], found: Sensitivity, options: Options
) -> pd.DataFrame:
    """Return one row per choice of leaves and held-out draw."""
    root = jax.random.fold_in(jax.random.key(options.seed), _JUDGING)
    rows: list[dict[str, Any]] = []
    with progress_bar("protected leaves", len(protected) * options.eval_draws) as advance:
        for name, leaves in protected.items():
            noisy = jnp.array([leaf not in leaves for leaf in found.leaves], jnp.float32)
            factor = jnp.broadcast_to(noisy, found.mean.shape)
            for draw in range(options.eval_draws):
                key = jax.random.fold_in(root, draw)
                accuracy = float(gradients.value(judge, Parameters(mse_factor=factor), key))
                rows.append({"protected": name, "draw": draw, "accuracy": accuracy})
                advance(1)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, protected: dict[str, set[str]], found: Sensitivity) -> Sheet:
    """Return the accuracy of every choice of leaves, and its gain over no protection."""
    wide = rows.pivot_table(index="draw", columns="protected", values="accuracy").reset_index()
    sizes = dict(zip(found.leaves, found.sizes, strict=True))
    cells = [
        [
            name,
            f"{len(leaves)}",
            f"{sum(sizes[leaf] for leaf in leaves):,}",
            interval(wide, name).text(".1f"),
            "-" if name == "nothing" else gain(rows, name).text(".1f", "+"),
        ]
        for name, leaves in protected.items()
    ]
    columns = ["without noise", "leaves", "parameters", "accuracy", "gain"]
    title = "Hard accuracy on held-out images and draws (%), 95 % intervals over draws"
    return Sheet(title, columns, cells)


def gain(rows: pd.DataFrame, name: str, over: str = "nothing") -> Interval:
    """Return the accuracy of a choice of leaves minus that of another, draw by draw."""
    return gap(rows, "protected", name, over, "draw")


def conclusion(rows: pd.DataFrame, layers: pd.DataFrame, share: float) -> str:
    """Say what the noise costs, whether a small set of leaves holds that, and which one is best.

    **Arguments:**

    - `share`: of all parameters, how many the embeddings have.
    """
    whole = gain(rows, "everything")
    if sign(whole) <= 0:
        return (
            f"Without any noise the accuracy changes by {whole.text('.1f', '+')} points, no gain "
            f"that {whole.levels} draws can show: where the noise hurts cannot be said."
        )
    random = rows[rows["protected"].str.startswith("random")].assign(protected="random")
    keys = ["protected", "draw"]
    rows = pd.concat([rows, random]).groupby(keys, as_index=False)["accuracy"].mean()
    small = {name: gain(rows, name) for name in ("embeddings", "most sensitive", "random")}
    best = max(small, key=lambda name: small[name].mean)
    wide = rows.pivot_table(index="draw", columns="protected", values="accuracy")
    part = wide[best] - wide["nothing"] - HOLDING * (wide["everything"] - wide["nothing"])
    half = f"{100 * HOLDING:.0f} % of the damage"
    holds = {
        1: f"the best of these sets holds at least {half}",
        0: f"whether the best of these sets holds {half} cannot be said",
        -1: f"none of these sets holds {half}",
    }[sign(interval(part.rename("part").reset_index(), "part"))]
    gains = listed(f"{found.text('.1f', '+')} ({name})" for name, found in small.items())
    verbs = grouped(
        (stands(gain(rows, "most sensitive", name), "beat", "fall behind", "draw"), f"the {name}")
        for name in ("embeddings", "random")
    )
    shares = (layers.sum(axis=1) / layers.to_numpy().sum()).nlargest(2)
    return (
        f"The noise costs {whole.text('.1f')} points. Without it in at most {100 * share:.1f} % "
        f"of the parameters the accuracy changes by {gains} points: {holds}. The leaves that the "
        f"map calls most sensitive {verbs} leaves. Of the map's sum "
        f"{listed(f'{100 * value:.0f} % lie in {name}' for name, value in shares.items())}."
    )


def main(options: Options) -> None:
    """Map, protect and evaluate; write tables, figure and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    mapped, judge = objectives(inputs, options)
    root = jax.random.fold_in(jax.random.key(options.seed), _MAPPING)
    found = gradients.sensitivity(mapped, jax.random.split(root, options.draws))
    frozen = fusion.leaves_by_path(frozen_leaves(inputs.base))
    embeddings = {leaf for leaf, flag in frozen.items() if flag}
    parameters = sum(
        size for leaf, size in zip(found.leaves, found.sizes, strict=True) if leaf in embeddings
    )
    protected = {
        "nothing": set(),
        "embeddings": embeddings,
        "most sensitive": best_leaves(found, parameters),
        **{
            f"random {number}": random_leaves(found, parameters, options.seed + number)
            for number in range(options.random)
        },
        "everything": set(found.leaves),
    }
    rows = judged(judge, protected, found, options)
    options.out.mkdir(parents=True, exist_ok=True)
    layers = pd.DataFrame(found.by_layer(), index=list(inputs.tasks)).T
    layers.to_csv(options.out / "layers.csv", index_label="layer", float_format="%.6g")
    leaves = pd.DataFrame(found.mean.T, index=list(found.leaves), columns=list(inputs.tasks))
    leaves["standard error of the sum"] = np.sqrt(np.square(found.error).sum(axis=0))
    leaves.to_csv(options.out / "leaves.csv", index_label="leaf", float_format="%.6g")
    rows.to_csv(options.out / "protected.csv", index=False, float_format="%.6g")
    write_figure(options.out / "sensitivity", sensitivity_figure(layers))
    names = ", ".join(sorted(protected["most sensitive"])[:12])
    lines = [
        "# Where the noise hurts",
        made_by("sensitivity.py", options.seed, time.perf_counter() - started),
        conclusion(rows, layers, parameters / sum(found.sizes)),
        f"Tasks {', '.join(inputs.tasks)}, scenario {options.scenario} at c0 = "
        f"{options.c0:g} dB, merging coefficient {options.scale}; the map from {options.draws} "
        f"draws and {options.samples or 'all'} validation images per task, judged on "
        f"{options.eval_draws} other draws and {options.eval_samples or 'all'} test images.",
        "![Sensitivity by layer and task](sensitivity.png)",
        markdown_table(summary(rows, protected, found)),
        f"Most sensitive by the map (the first by name): {names}.",
    ]
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
