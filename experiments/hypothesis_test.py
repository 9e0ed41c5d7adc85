"""Where does first-order theory predict what noise in the parameters does to the logits?

    python experiments/hypothesis_test.py --run runs/demo

needs a run folder with the fine-tuned models of all tasks (`rmtllmf finetune`). It merges 2, 4 and
8 of them, and for every task of a combination performs the hypothesis test (9)-(12) of the paper on
test images: exact gradient norms of all logits, the standard deviation that they predict for R = z
/ z', thresholds and rejection rates, and the probability that a decision flips; each compared with
Monte Carlo on disturbed models, from an MSE so small that the theory holds to the means of the
preset (.0129 ideal, .0327 strongest user, .208 sum rate). All users have the same MSE. The
functions are in rmtllmf_jax/evaluation/hypothesis.py.

The questions: up to which MSE the theory holds, whether those of the preset are below it, and
whether it then fails by the ratio's own law (R is not Gaussian) or by the model's curvature.

Written to results/hypothesis_test/: README.md, results.csv (one row per combination, task and MSE;
columns: `COLUMNS` and `level_columns` of figures_hypothesis.py), and the figures spread, rejection,
levels and flips (PNG and SVG). Finished work is kept in the run folder, so that a killed run
resumes. --quick is two tasks, 8 images, 5 levels and 16 draws: a few minutes on two cores.

Five minutes on two busy cores with `--samples 32 --draws 64` and the demo's models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from figures_hypothesis import (
    AGREE,
    COLUMNS,
    first_order_holds_up_to,
    flip_figure,
    level_columns,
    level_figure,
    rejection_figure,
    spread_figure,
)
from matplotlib.figure import Figure
from study import (
    Users,
    caution,
    done,
    load,
    made_by,
    sign,
    work_store,
    write_figure,
    write_page,
)

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_non_negative,
)
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.evaluation import hypothesis
from rmtllmf_jax.evaluation.batches import evaluation_set
from rmtllmf_jax.evaluation.logit_jacobian import logit_jacobian_norms, margin_jacobian_norms
from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.grid import Combination, choose_combinations
from rmtllmf_jax.sweep.parts import CellStore

PRESET = {0.0129: "ideal", 0.0327: "strongest user", 0.208: "sum rate"}
"""Mean MSEs of the preset `paper`."""

# Folded into the root key: noise of the Monte Carlo check.
_NOISE = 1


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    sizes: tuple[int, ...] = (2, 4, 8)
    """Numbers of tasks to merge."""
    combinations: int = 1
    """Combinations of each number of tasks, drawn so that tasks occur about equally often."""
    samples: int = 32
    """Test images per task."""
    mse: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.0129, 0.0327, 0.208)
    """Mean MSEs of the users; the last three are those of `PRESET`."""
    reference_mse: float = 0.0129
    """MSE of the reference that the power of the test is drawn against."""
    confidence: float = 0.95
    """beta of (12), two-sided."""
    levels: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    """Nominal rates alpha = 1 - beta for the test with T for the actual noise."""
    tolerance: float = 0.1
    """Fixed limit of |R - 1| beside T."""
    draws: int = 128
    """Disturbed models at every MSE."""
    scale: str = "power-law"
    """Merging coefficient: a rule of `fusion.SCALES`, or a number."""
    c0_db: float = uplink.DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1; sets kappa for each user."""
    error_model: str = "independent"
    """How the users' errors are correlated: independent, equicorrelated=RHO or noisy_reference."""
    chunk: int = 8
    """Logits whose gradients are computed at once; only changes speed and memory."""
    seed: int = 0
    """Root of combinations, images and noise."""
    out: Path = Path(__file__).parent / "results" / "hypothesis_test"
    """Where tables and figures go."""
    quick: bool = False
    """Two tasks, 8 images, 5 levels, 16 draws; overrides other options."""

    def checked(self) -> Options:
        """Return the options to run with.

        **Raises:** `InputError` for invalid numbers.
        """
        require_at_least("--samples", self.samples, 1)
        require_at_least("--draws", self.draws, 2)
        require_at_least("--combinations", self.combinations, 1)
        for name, value in (("--mse", min(self.mse, default=0.0)), ("--tolerance", self.tolerance)):
            if require_non_negative(name, value) == 0:
                raise InputError(f"{name} must be above 0: without noise there is nothing to test.")
        for confidence in (self.confidence, *(1 - level for level in self.levels)):
            hypothesis.two_sided_quantile(confidence)
        if not self.quick:
            return self
        levels = (1e-6, 1e-4, 1e-3, 0.0129, 0.208)
        return replace(self, sizes=(2,), combinations=1, samples=8, mse=levels, draws=16)


@dataclass(frozen=True)
class Merged:
    """The merged model of a combination, and the strength of its noise."""

    params: Any
    scale: float
    unit_std: float
    """Standard deviation of a parameter's noise at MSE 1."""


def merged(inputs: SweepInputs, combination: Combination, options: Options) -> Merged:
    """Merge the task vectors of a combination, all with the same scale, without noise."""
    users = np.array([inputs.tasks.index(task) for task in combination])
    vectors = jax.tree.map(lambda leaf: leaf[users], inputs.vectors)
    scale = fusion.scale_of(options.scale, len(users))
    weights, same = jnp.full(len(users), scale), jnp.ones(len(users))
    kappa = uplink.kappa_from_c0(vectors, options.c0_db)
    model = uplink.get_error_model(options.error_model, len(users))
    params = fusion.add_to_base(inputs.base, fusion.weighted_sum(vectors, weights), 1.0)
    return Merged(params, scale, float(model.std_of_sum(weights, kappa, same)))


def task_rows(
    inputs: SweepInputs, model: Merged, combination: Combination, task: str, options: Options
) -> Iterator[dict[str, Any]]:
    """Yield one row per MSE: the theory, from one computation of the gradients, and Monte Carlo."""
    user = inputs.tasks.index(task)
    test = inputs.data[user].test
    test = test.take(evaluation_subset(len(test), options.samples, options.seed))
    (batch,) = evaluation_set(test.images, test.labels, len(test)).batches
    batch = batch.at_size(inputs.model.image_size)
    what = (model.params, inputs.heads, jnp.asarray(user), batch)
    logits = logit_jacobian_norms(*what, backbone=inputs.model, chunk=options.chunk)
    margin = margin_jacobian_norms(*what, backbone=inputs.model)
    noise = model.unit_std * np.sqrt(np.array(options.mse))
    reference = model.unit_std * np.sqrt(options.reference_mse)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), _NOISE), options.draws)
    moved = hypothesis.disturbed_logits(
        *what, jnp.asarray(noise, jnp.float32), keys, backbone=inputs.model
    )
    for level, (mse, std) in enumerate(zip(options.mse, noise.tolist(), strict=True)):
        yield {
            "combination": "+".join(combination),
            "size": len(combination),
            "task": task,
            "mse": mse,
            "scale": model.scale,
            "noise_std": std,
            "samples": len(test),
            "draws": options.draws,
            **numbers(logits, margin, std, float(reference), moved[:, level], options),
        }


def numbers(
    logits: Any, margin: Any, std: float, reference: float, moved: jax.Array, options: Options
) -> dict[str, float]:
    """Return the numbers of one noise level, by the names of `COLUMNS`."""
    keep = np.asarray(logits.counted)
    predicted = hypothesis.ratio_std(logits, std)
    own = hypothesis.threshold(predicted, options.confidence)
    ratio, change = hypothesis.ratio_spread(logits, std, moved)
    gap = hypothesis.margin_spread(margin, std, logits.values, moved)
    measured = hypothesis.robust_std(hypothesis.ratios(logits, moved), axis=0)
    row = {
        "predicted_std": float(np.median(np.asarray(predicted)[keep])),
        "measured_std": float(np.median(measured)),
        "blind": float((np.asarray(own)[keep] >= 1).mean()),
    }
    for name, spread in (("ratio", ratio), ("change", change), ("margin", gap)):
        row |= {f"{name}_rms": spread.std, f"{name}_robust": spread.robust}
        row[f"{name}_spread_error"] = spread.error
    limits = {
        "own": own,
        "reference": hypothesis.threshold(
            hypothesis.ratio_std(logits, reference), options.confidence
        ),
        "tolerance": options.tolerance,
    }
    for name, limit in limits.items():
        rate, law = hypothesis.rejections(logits, std, moved, limit)
        row |= {f"{name}_{part}": value for part, value in asdict(rate).items()}
        row[f"{name}_ratio_law"] = law
    for level in options.levels:
        limit = hypothesis.threshold(predicted, 1 - level)
        rate, law = hypothesis.rejections(logits, std, moved, limit)
        row |= {f"own_measured_at_{level:g}": rate.measured, f"own_ratio_law_at_{level:g}": law}
    overtaken, changed = hypothesis.flips(margin, std, logits.values, moved)
    row |= {f"overtaken_{part}": value for part, value in asdict(overtaken).items()}
    return row | {"changed_measured": changed.measured, "changed_error": changed.error}


def study(inputs: SweepInputs, options: Options, parts: CellStore) -> pd.DataFrame:
    """Return the table; a (combination, task) that is in the store is not computed again."""
    chosen = [
        combination
        for combination in choose_combinations(inputs.tasks, options.combinations, options.seed)
        if len(combination) in options.sizes
    ]
    rows = []
    with progress_bar("hypothesis test", sum(map(len, chosen))) as advance:
        for combination in chosen:
            names = [f"{'+'.join(combination)}/{task}" for task in combination]
            fresh = any(name not in parts for name in names)
            model = merged(inputs, combination, options) if fresh else None
            for name, task in zip(names, combination, strict=True):
                work = partial(task_rows, inputs, model, combination, task, options)
                rows += done(parts, name, work)
                advance(1)
    return pd.DataFrame(rows)


def figures(table: pd.DataFrame, options: Options) -> dict[str, Figure]:
    """Return the figures by the stems of their files."""
    note = f"{options.error_model} errors, {options.draws} draws, {options.samples} images per task"
    return {
        "spread": spread_figure(table, note),
        "rejection": rejection_figure(table, options.confidence, note),
        "levels": level_figure(table, options.levels, note),
        "flips": flip_figure(table, note),
    }


def sheet(table: pd.DataFrame) -> Sheet:
    """Return medians over combinations and tasks, one row per MSE."""
    shown = ["predicted_std", "measured_std", "ratio_robust", "change_robust", "margin_robust"]
    shown += ["own_measured", "own_ratio_law", "reference_measured", "tolerance_measured", "blind"]
    shown += ["overtaken_predicted", "overtaken_measured", "changed_measured"]
    middle = table.groupby("mse")[shown].median()
    rows = [
        [f"{mse:.3g}", *(f"{value:.3g}" for value in row)]
        for mse, row in zip(middle.index, middle.to_numpy(), strict=True)
    ]
    return Sheet("Medians over combinations and tasks", ["mse", *shown], rows)


def conclusion(table: pd.DataFrame, confidence: float) -> str:
    """Say up to which MSE the first order holds, and how it fails at the preset's MSEs.

    Rates are means, with intervals that resample the tasks.
    """
    granted = AGREE + 2 * table["ratio_spread_error"].fillna(0.0)
    fits = (table["ratio_robust"] - 1).abs() <= granted
    holds = fits.groupby(table["mse"]).all().cummin()
    every, middle = holds.index[holds].max(), first_order_holds_up_to(table)
    to_all, to_half = (
        f"up to an MSE of {end:g}" if np.isfinite(end) else "at none of the MSEs"
        for end in (every, middle)
    )
    shown = [mse for mse in holds.index if mse in PRESET] or [holds.index[-1]]
    clauses, rests = [], []
    for mse in shown:
        at = table[table["mse"] == mse].drop(columns="size")
        at = at.assign(rest=at["own_measured"] - at["own_ratio_law"])
        measured, rest, changed = (
            interval(at, column, ("task",))
            for column in ("own_measured", "rest", "changed_measured")
        )
        rests.append(rest)
        part = f"{rest.text('.1f', '+')} points" if sign(rest) else "nothing measurable"
        ratios, name = at["ratio_robust"], f" ({PRESET[mse]})" if mse in PRESET else ""
        clauses.append(
            f"at {mse:g}{name} {measured.text('.1f')} % are rejected, to which curvature adds "
            f"{part}, spreads are {ratios.min():.2f} to {ratios.max():.2f} of the "
            f"predicted, and {changed.text('.1f')} % of decisions change"
        )
    covered = [PRESET[mse] for mse in shown if mse in PRESET and mse <= every]
    return (
        f"Within {100 * AGREE:.0f} % (and two standard errors) the first order predicts the spread "
        f"of R for each of {fits.groupby(table['mse']).size().max()} pairs of combination and task "
        f"{to_all}, for their median {to_half}: of the preset's scenarios, "
        f"{listed(covered) if covered else 'none'} for every pair. With a nominal rate of "
        f"{100 * (1 - confidence):.0f} %, {'; '.join(clauses)}.{caution(rests, 'tasks')}"
    )


def page(table: pd.DataFrame, options: Options, seconds: float, resumed: bool) -> list[str]:
    """Return the paragraphs of the page."""
    ends = [
        f"{what} up to an MSE of {end:.3g}" if np.isfinite(end) else f"{what} at none of the MSEs"
        for what, end in (
            (what, first_order_holds_up_to(table, column))
            for what, column in (
                ("R", "ratio"),
                ("z'/z", "change"),
                ("the margin", "margin"),
            )
        )
    ]
    lines = [
        made_by("hypothesis_test.py", options.seed, seconds, resumed=resumed),
        conclusion(table, options.confidence),
        "Every combination and task: results.csv.",
        f"Combinations: {table['combination'].nunique()}; {options.samples} test images per task, "
        f"{options.draws} disturbed models at each MSE, {options.error_model} errors, all users "
        f"with the same MSE, scale {options.scale}, c0 = {options.c0_db:g} dB; confidence "
        f"{options.confidence}, reference MSE {options.reference_mse}, tolerance "
        f"{options.tolerance}.",
        "Rates in the first paragraph are means with 95 % intervals over tasks. First order within "
        "10 % of Monte Carlo (spread by quantiles, two standard errors granted, "
        "median over combinations and tasks; spread.png shades how far they lie apart): "
        f"{'; '.join(ends)}.",
    ]
    columns = COLUMNS | level_columns(options.levels)
    legend = [f"- `{name}`: {what}" for name, what in columns.items()]
    parts = ["# The hypothesis test (9)-(12), theory beside Monte Carlo", *lines]
    parts += [markdown_table(sheet(table)), *(f"![{stem}]({stem}.png)" for stem in STEMS)]
    return [*parts, "## Columns", "\n".join(legend)]


STEMS = ("spread", "rejection", "levels", "flips")
"""Files of the figures."""


def main(options: Options) -> None:
    """Run the study; print the page and write table and figures."""
    started = time.perf_counter()
    options = options.checked()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    if not options.sizes or not 2 <= min(options.sizes) <= max(options.sizes) <= len(inputs.tasks):
        raise InputError(
            f"--sizes must lie between 2 and the number of tasks, {len(inputs.tasks)}; got "
            f"{', '.join(map(str, options.sizes)) or 'none'}."
        )
    speed = ("run", "model", "data", "chunk", "out", "cache_dir", "quick", "sizes", "combinations")
    meaning = {name: value for name, value in asdict(options).items() if name not in speed}
    # TF32, the default on some devices, is coarser than the smallest noise.
    with (
        jax.default_matmul_precision("highest"),
        work_store(options.run, "hypothesis_test", inputs, meaning) as parts,
    ):
        resumed = len(parts) > 0
        table = study(inputs, options, parts)
    lines = page(table, options, time.perf_counter() - started, resumed)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "results.csv", index=False, float_format="%.6g")
    for stem, figure in figures(table, options).items():
        write_figure(options.out / stem, figure)
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
