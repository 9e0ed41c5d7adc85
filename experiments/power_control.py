"""Powers that are good for accuracy, and not for rates: learned uplink power control.

    python experiments/power_control.py --run runs/demo [--quick | --full]

In each of several cells the users stand at drawn distances, and the base station sets every user's
power once, for all fading: by full power (the paper's), fractional or full inversion of the path
loss, powers that minimise the worst user's MSE (max-min), or powers learned by projected gradient
steps on the soft accuracy of the fused model. Max-min and learned powers are tuned on some channel
draws and validation images, and all are judged on other draws and test images by hard accuracy,
with the receiver's decoding order as the received powers have it. Per-user limits, and with --total
one for their sum.

Written to results/power_control/: README.md, powers.csv (a row per cell, channel and control), the
figure. What is finished is kept in the run folder.

The pages are of the demo's run folder with `--scale 0.6 --c0 -26 --steps 15 --tuning-channels 4`:
four minutes on two busy cores for five cells and eight tasks. results/power_control_total/ has half
of the power to share (`--total 4`).
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
from figures_learned import power_figure
from study import (
    Learner,
    all_rows,
    base_alone,
    gap,
    grouped,
    load,
    made_by,
    objectives,
    stands,
    write_figure,
    write_page,
)

from rmtllmf_jax import channel, gradients
from rmtllmf_jax.channel import ChannelPreset, power_control
from rmtllmf_jax.common.errors import require_at_least
from rmtllmf_jax.gradients import Objective, Parameters
from rmtllmf_jax.gradients.projections import nearest_powers
from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.uplink import Scenario

# Folded into the root key: places, fading and noise that are tuned on, and those that judge.
_PLACES, _TUNING, _JUDGING = 0, 1, 2


@dataclass(frozen=True)
class Options(Learner):
    """What to run."""

    tuning_samples: int = 16
    """Validation images per task."""
    eval_samples: int = 50
    """Test images per task; 0 is all."""
    scenario: str = "sum_rate"
    """A `uplink.Scenario`."""
    cells: int = 5
    """Draws of the users' places."""
    steps: int = 25
    """Gradient steps a cell."""
    learning_rate: float = 0.1
    """Step of a power, in shares of full power."""
    total: float | None = None
    """Limit of the sum of all shares, for every control; none is no limit."""
    tuning_channels: int = 8
    """Channel draws a cell that are tuned on."""
    eval_channels: int = 20
    """Other channel draws, that are judged on."""
    quick: bool = False
    """One cell, 5 steps, few images."""
    full: bool = False
    """20 cells, 100 steps, all test images (for a GPU)."""
    out: Path = Path(__file__).parent / "results" / "power_control"
    """Where the table and the figure go."""

    def chosen(self) -> Options:
        """Return what `--quick` and `--full` make of the options.

        **Raises:** `InputError` that names an option.
        """
        Scenario(self.scenario)
        require_at_least("--cells", self.cells, 1)
        if self.quick:
            few = {"tuning_channels": 2, "tuning_samples": 8, "eval_channels": 3}
            return replace(self, cells=1, steps=5, eval_samples=8, **few)
        if self.full:
            return replace(self, cells=20, steps=100, tuning_samples=64, eval_samples=0)
        return self


def powers_of(
    tuned: Objective, distances: jax.Array, key: jax.Array, options: Options
) -> dict[str, jax.Array]:
    """Return the shares p / P of every power control at given distances."""
    link = tuned.setting.link
    assert link is not None
    preset = link.preset
    assert isinstance(preset, ChannelPreset)
    gain, weakest = (preset.path_loss(d) for d in (distances, preset.farthest_m))
    found = {
        "full power": jnp.ones_like(distances),
        "fractional inversion (0.8)": power_control.fractional(gain, weakest, 0.8),
        "full inversion": power_control.full(gain, weakest, 1.0),
    }
    found = {name: nearest_powers(powers, options.total) for name, powers in found.items()}
    here = tuned.holding(Parameters(distances=distances))
    tuning = {"total": options.total, "learning_rate": options.learning_rate}
    max_min = gradients.max_min_powers(here, key, steps=8 * options.steps, **tuning)
    learned = gradients.learn_powers(here, key, steps=options.steps, **tuning)
    for name, optimum in (("max-min MSE", max_min), ("learned", learned)):
        assert optimum.parameters.powers is not None
        found[name] = optimum.parameters.powers
    return found


def cell_rows(
    tuned: Objective, judge: Objective, number: int, options: Options
) -> Iterator[dict[str, Any]]:
    """Yield a row a control and held-out channel of one cell."""
    root, link = jax.random.key(options.seed), tuned.setting.link
    assert link is not None
    places, tuning, judging = (
        jax.random.fold_in(jax.random.fold_in(root, kind), number)
        for kind in (_PLACES, _TUNING, _JUDGING)
    )
    distances = channel.draw_distances(link.preset, places)
    controls = powers_of(tuned, distances, tuning, options)
    for draw, key in enumerate(channel.draw_keys(judging, options.eval_channels)):
        for name, powers in controls.items():
            given = Parameters(powers=powers, distances=distances)
            mse = gradients.user_mse(given, link, key)
            yield {
                "cell": number,
                "channel": draw,
                "control": name,
                "accuracy": float(gradients.value(judge, Parameters(mse=mse), key)),
                "mse": float(jnp.mean(mse)),
                "worst_mse": float(jnp.max(mse)),
                "power": float(jnp.sum(powers)),
            }


def summary(rows: pd.DataFrame) -> Sheet:
    """Return mean accuracy, MSE and power of every control, and the learned one's gain on it.

    Intervals resample cells, each with all its channels: every cell has channels of its own.
    """
    cells = []
    for name, group in rows.groupby("control", sort=False):
        found = gap(rows, "control", "learned", str(name), "cell", "channel")
        gain = "-" if name == "learned" else found.text(".1f", "+")
        accuracy = interval(group, "accuracy", ("cell",)).text(".1f")
        numbers = [f"{group[column].mean():.3g}" for column in ("mse", "worst_mse", "power")]
        cells.append([str(name), accuracy, gain, *numbers])
    columns = ["power control", "accuracy", "learned powers gain", "mean MSE", "worst MSE", "sum"]
    title = "Hard accuracy on held-out channels and images (%), 95 % intervals over cells"
    return Sheet(title, columns, cells)


def conclusion(rows: pd.DataFrame) -> str:
    """Compare the learned powers with their strongest rival, full power, and the worst control."""
    wide = rows.pivot_table(index=["cell", "channel"], columns="control", values="accuracy")
    others = wide.drop(columns="learned").mean()
    reached = interval(rows[rows["control"] == "learned"], "accuracy", ("cell",)).text(".1f")
    roles = {str(others.idxmax()): "their strongest rival"}
    roles.setdefault("full power", "the paper's")
    roles.setdefault(str(others.idxmin()), "the worst control")
    gains = {name: gap(rows, "control", "learned", name, "cell", "channel") for name in roles}
    clauses = listed(
        f"{gains[name].text('.1f', '+')} points over {name} ({role})"
        for name, role in roles.items()
    )
    verbs = grouped((stands(found, "beat", "fall behind", "cell"), n) for n, found in gains.items())
    said = [f"Learned powers reach {reached} % of accuracy: {clauses}.", f"They {verbs}."]
    alike = [name for name in others.index if wide[name].equals(wide["learned"])]
    if alike:
        said.append(f"In every channel of every cell they are as accurate as {listed(alike)}.")
    return " ".join(said)


def main(options: Options) -> None:
    """Learn and judge cell by cell; write table, figure and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    draws = {"channel_draws": options.tuning_channels}, {"channel_draws": 1}
    tuned, judge = objectives(inputs, options, options.scenario, *draws)
    found, resumed = all_rows(
        options,
        inputs,
        "power_control",
        "cells",
        lambda number: cell_rows(tuned, judge, number, options),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    found.to_csv(options.out / "powers.csv", index=False, float_format="%.6g")
    write_figure(options.out / "power_control", power_figure(found))
    seconds = time.perf_counter() - started
    limit = "no limit of the sum" if options.total is None else f"a sum of {options.total:g}"
    lines = [
        "# Power control learned on accuracy",
        made_by("power_control.py", options.seed, seconds, resumed=resumed),
        f"{conclusion(found)} {base_alone(judge)}",
        f"{options.cells} cells of {len(inputs.tasks)} users ({', '.join(inputs.tasks)}), scenario "
        f"{options.scenario} at c0 = {options.c0:g} dB, merging coefficient {options.scale}, "
        f"{limit}; {options.steps} steps on {options.tuning_channels} channel draws and "
        f"{options.tuning_samples} validation images per task, judged on "
        f"{options.eval_channels} other draws and {options.eval_samples or 'all'} test images.",
        markdown_table(summary(found)),
        "![Accuracy by power control](power_control.png)",
    ]
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
