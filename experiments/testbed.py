"""Is a fine-tuned run fit to study fusion on? Base, fine-tuned and merged models without noise.

    python experiments/testbed.py --run runs/demo [--card MODEL_DIRECTORY] [--quick]

Attacks, repair and defences can be judged only where fusing helps: where the base model knows the
tasks a little, and the merged model much better. CLIP ViT-B/16, for which task arithmetic was made,
reaches 60 % of fine-tuning's accuracy without it, and 84 % with eight tasks merged, at a
coefficient of .3 (Tang et al., arXiv 2406.03280). The same is asked of a testbed (`reached`).
Noiseless merges of 2 to all tasks by task arithmetic, every candidate of `fusion.candidate_scales`;
the best on validation samples is evaluated on the test split. Of a run of texts scores are
perplexities, and shares of fine-tuning their quotients. With `--card` the section "Accuracy" of
the model's README.md is written too.

Another figure is the scale law: the best coefficient by number of tasks beside the published fit
1.13 N^-0.655.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from study import Users, made_by, opened, sweep, write_figure, write_page

from rmtllmf_jax.common.files import write_bytes
from rmtllmf_jax.report.figures import scale_figure
from rmtllmf_jax.report.io import metric_of
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.tables import best_scales, is_share, models_alone, shown, summary
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings

ASKED = ["quantity", "asked", "reached"]


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    card: Path | None = None
    """Directory of the model whose card gets the accuracies."""
    combinations: int | None = 5
    """Combinations of each size; None is all."""
    eval_samples: int = 0
    """Test images per task, or rows of texts; 0 is all."""
    validation_samples: int = 100
    """Validation images per task, or rows; 0 is all."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """One combination of each size, 50 images or rows."""
    out: Path = Path(__file__).parent / "results" / "testbed"
    """Where tables and figures go."""


def main(options: Options) -> None:
    """Measure; write tables, figure and page."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    run = opened(options)
    inputs, quick = run.inputs(), options.quick
    settings = Settings(
        metric=run.config.metric,
        scale="validation",
        eval_samples=50 if quick else options.eval_samples,
        validation_samples=50 if quick else options.validation_samples,
        seed=options.seed,
    )
    chosen = choose_combinations(inputs.tasks, 1 if quick else options.combinations, options.seed)
    tables = sweep(options.run, inputs, settings, Grid(chosen, ("clean",), ("none",), 1, 1))
    results, scales, cosines = (tables[name] for name in ("results", "scales", "cosines"))
    options.out.mkdir(parents=True, exist_ok=True)
    scales.to_csv(options.out / "scales.csv", index=False, float_format="%.6g")
    write_figure(options.out / "scale_law", scale_figure(scales))
    targets = reached(results, scales, cosines)
    rows = [[each.quantity, each.asked, each.reached] for each in targets]
    sheets = alone(results), by_size(results, scales), Sheet("A testbed", ASKED, rows, names=1)
    accuracies = [markdown_table(sheet) for sheet in sheets]
    made = made_by("testbed.py", options.seed, time.perf_counter() - started)
    figure = "![Validation curves and the published fit](scale_law.png)"
    write_page(
        options.out, ["# A testbed for fusion", made, conclusion(targets), *accuracies, figure]
    )
    if options.card is not None:
        write_card(options.card / "README.md", made, accuracies)


def alone(results: pd.DataFrame) -> Sheet:
    """Return the test scores of base and fine-tuned models by task."""
    models, share = models_alone(results), is_share(results)
    rows = [
        [what, *(shown(results, each) for each in (*models[column], models[column].mean()))]
        for what, column in (
            ("zero-shot" if share else "base", "base_score"),
            ("fine-tuned", "finetuned_score"),
        )
    ]
    name = f"{metric_of(results)}{' (%)' if share else ''}"
    return Sheet(f"Test {name}", [name, *models.index, "mean"], rows, names=1)


def averages(results: pd.DataFrame) -> pd.DataFrame:
    """Return base and merged models' fractions of the fine-tuned accuracy, by number of tasks."""
    table = summary(results, "size").pivot(index="size", columns="protection", values="mean")
    return table.rename(columns={"none": "merged"})


def by_size(results: pd.DataFrame, scales: pd.DataFrame) -> Sheet:
    """Return base and merged models by number of tasks, and the coefficient."""
    means, best = averages(results), best_scales(scales).set_index("size")
    rows = [
        ["base model", *(f"{100 * value:.0f}" for value in means["base"])],
        ["merged", *(f"{100 * value:.0f}" for value in means["merged"])],
        ["coefficient", *(f"{best['scale'][size]:g}" for size in means.index)],
    ]
    name = f"{metric_of(results)} (%)"
    header = [f"normalised {name}, N =", *(str(size) for size in means.index)]
    return Sheet(f"Normalised test {name} by number of tasks", header, rows, names=1)


@dataclass(frozen=True)
class Target:
    """What a testbed should have, and what a run has."""

    quantity: str
    asked: str
    reached: str
    met: bool


def reached(
    results: pd.DataFrame, scales: pd.DataFrame, cosines: pd.DataFrame
) -> tuple[Target, ...]:
    """Return what was asked of a testbed (the paper's own model has it), and what this one has."""
    models, means = models_alone(results).mean(), averages(results)
    base, merged = models["base_score"] / models["finetuned_score"], means["merged"].iloc[-1]
    base = base if is_share(results) else means["base"].iloc[-1]
    last, gains = best_scales(scales).iloc[-1], means["merged"] - means["base"]
    pairs = cosines[(cosines["scenario"] == "clean") & (cosines["task_a"] < cosines["task_b"])]
    least, at, cosine = gains.min(), gains.idxmin(), pairs["cosine"].max()
    inside = not (last["low"] or last["high"])
    return (
        Target(
            "base model over fine-tuned",
            "45 to 70 %",
            f"{100 * base:.0f} %",
            0.45 <= round(base, 2) <= 0.7,
        ),
        Target(
            "merged over fine-tuned, all tasks",
            ">= 80 %",
            f"{100 * merged:.0f} %",
            round(merged, 2) >= 0.8,
        ),
        Target(
            "least gain over the base model, any N",
            ">= 15 points",
            f"{100 * least:.0f} points, at N = {at}",
            round(least, 2) >= 0.15,
        ),
        Target(
            "best coefficient, all tasks",
            "inside the grid",
            f"{last['scale']:g}{'' if inside else ', at the edge'}",
            inside,
        ),
        Target(
            "largest cosine of two task vectors",
            "<= .24",
            f"{cosine:.2f}",
            round(cosine, 2) <= 0.24,
        ),
    )


def conclusion(targets: tuple[Target, ...]) -> str:
    """Say whether a run is a testbed, and what it lacks."""
    missed = [each for each in targets if not each.met]
    if not missed:
        return "This run is a testbed: it has all that is asked."
    lacking = listed(f"{each.quantity} {each.reached} (asked: {each.asked})" for each in missed)
    return f"This run is no testbed: {lacking}."


def write_card(card: Path, made: str, accuracies: list[str]) -> None:
    """Write the section "Accuracy" of a model card."""
    text = "\n\n".join(["## Accuracy", "Made by " + made, *accuracies, "## Licence"])
    page = card.read_text(encoding="utf-8")
    page = re.sub(r"## Accuracy\n.*?## Licence", lambda _: text, page, flags=re.DOTALL)
    write_bytes(card, page.encode())


if __name__ == "__main__":
    main(tyro.cli(Options))
