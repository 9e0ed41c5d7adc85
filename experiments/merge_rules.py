"""Which merge rule is best on the eight real tasks, and do layer-wise weights help?

    python experiments/merge_rules.py --run runs/vit-tiny --model MODEL --data DATA

needs a run folder with the fine-tuned ViT-Ti/16 of all tasks (`rmtllmf finetune`) and merges 2, 4
and 8 of them with every method of `fusion.rules`. For each number of tasks, options and scale of a
method are those with the highest average normalised accuracy on *validation* samples, of the
candidates in merge_rules_study.py and over the same combinations that are then tested; the test
split plays no part in the choice. Some methods see more than task vectors: AdaMerging the test
images that are evaluated, without their labels (its own protocol), Fisher merging and RegMean a few
training images of each task. LATA's reference is the mean of the other tasks' vectors.

Written to results/merge_rules/: README.md (average normalised accuracy, mean and standard deviation
over combinations; with and without tasks that fine-tuning did not teach), results.csv (every task's
test accuracy), choices.csv (every candidate's validation score). What is finished is kept in the
run folder, so that a killed run resumes. The committed tables are of an earlier version, which
wrote a method's options as JSON in a column of their own; they took 93 minutes on two busy cores
(stopped and resumed several times, read from the journal at the end):

    python experiments/merge_rules.py --run runs/vit-tiny --model MODEL --data DATA \
        --validation-samples 50 --eval-samples 200

What they show (six combinations of 2 and of 4 tasks, the one of 8; 200 test images a task; without
cars, which fine-tuning did not teach; per cent, mean and standard deviation over combinations):

    N               2            4           8
    base            76.3 ± 12.5  71.4 ± 5.4  71.2
    task arithmetic 91.3 ±  4.7  73.9 ± 7.4  60.2
    TIES            92.6 ±  3.1  76.8 ± 5.7  72.2
    LATA, linear    92.3 ±  3.4  72.9 ± 7.8  60.9
    AdaMerging, lw. 93.7 ±  4.5  73.8 ± 5.8  62.8
    RegMean         96.2 ±  2.6  88.0 ± 3.5  73.5

RegMean wins at every size, 2.5, 11 and 1.3 points before the next; it looks at training images of
every task (128, without labels) layer by layer. When this was run it saw all their tokens in the
last block, too, of which models by now compute the class token alone. Of the rules that see task
vectors alone TIES is best. Layer-wise weights do not clearly help: LATA-style and learned ones are
1 to 2 points above task arithmetic at N = 2, which is less than the spread, and no better at N = 4;
at N = 8 learned ones are 2.6 points above it, and still below the base model. There only RegMean
and TIES are above the base by a point or more. The choice on 50 validation images a task is noisy:
neighbouring scales may change places.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import tyro
from journal import Journal
from merge_rules_study import VARIANTS, Candidate, Options, Study, choose, measure
from study import load, made_by

from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.common.files import content_hash, write_bytes
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.common.values import described
from rmtllmf_jax.report.sheets import Sheet, markdown_table, percent
from rmtllmf_jax.report.tables import caveat, versions
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.grid import Combination


def tested_rows(study: Study, one: Candidate, combination: Combination) -> Iterator[dict[str, Any]]:
    """Yield a row a task: what a merge reached on test samples, beside base and fine-tuned."""
    accuracies = study.journal[one.name(combination, "test")]
    for task, accuracy in zip(combination, accuracies, strict=True):
        alone = study.reference(task, "finetuned", "test")
        yield {
            "rule": one.variant,
            "method": described(one.method),
            "scale": one.scale,
            "size": len(combination),
            "combination": "+".join(combination),
            "task": task,
            "score": accuracy,
            "base_score": study.reference(task, "base", "test"),
            "finetuned_score": alone,
            "normalised": accuracy / alone,
        }


def base_rows(study: Study, combination: Combination) -> Iterator[dict[str, Any]]:
    """Yield a row a task of the base model under the tasks' heads: what merging has to beat."""
    one = Candidate("base", None, 0.0)
    name = one.name(combination, "test")
    if name not in study.journal:
        values = [study.reference(task, "base", "test") for task in combination]
        study.journal.add(name, values)
    yield from tested_rows(study, one, combination)


def compare(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the test accuracies of what was chosen, and the validation score of candidates."""
    rules, sizes = study.options.rules, study.options.sizes
    merges = [len(VARIANTS[rule].methods) * len(VARIANTS[rule].scales) + 1 for rule in rules]
    results, choices = [], []
    for combination in study.combinations:
        results += base_rows(study, combination)
    # Merges that are in the journal already advance the bar at once.
    with progress_bar("merge rules", sum(merges) * len(study.combinations)) as advance:
        for rule in rules:
            for size in sizes:
                best, rows = choose(study, rule, size, advance)
                choices += rows
                for combination in study.of_size(size):
                    measure(study, [best], combination, "test", advance)
                    results += tested_rows(study, best, combination)
    return pd.DataFrame(results), pd.DataFrame(choices)


def by_rule(results: pd.DataFrame, title: str) -> Sheet:
    """Return mean ± standard deviation over combinations, a row a rule and a column a size."""
    cells = results.groupby(["rule", "size", "combination"], sort=False, as_index=False).agg(
        score=("normalised", "mean"),
        method=("method", "first"),
        scale=("scale", "first"),
    )
    sizes = sorted(cells["size"].unique())
    rows = []
    for rule, group in cells.groupby("rule", sort=False):
        texts, chosen = [], []
        for size in sizes:
            scores = group[group["size"] == size]
            spread = f" ± {percent(scores['score'].std())}" if len(scores) > 1 else ""
            texts.append(f"{percent(scores['score'].mean())}{spread}" if len(scores) else "-")
            chosen += [as_used(scores.iloc[0])] if len(scores) else []
        rows.append([str(rule), "; ".join(dict.fromkeys(chosen)), *texts])
    return Sheet(title, ["rule", "method chosen", *(f"N = {size}" for size in sizes)], rows)


def as_used(row: pd.Series) -> str:
    """Return method and scale in one line."""
    return f"N = {row['size']}: {row['method']} scale={row['scale']}"


def page(results: pd.DataFrame, options: Options, seconds: float, resumed: bool) -> str:
    """Return the markdown page of the tables."""
    title = "Average normalised accuracy (%), mean ± standard deviation over combinations"
    sheets = [
        by_rule(rows, f"{title}, {without}" if without else title)
        for without, rows in versions(results).items()
    ]
    note = caveat(results)
    lines = [
        made_by("merge_rules.py", options.seed, seconds, resumed=resumed),
        "Test accuracies; options and scales were chosen on validation samples.",
        *([note] if note else []),
        "`base` is the model without any task vector. Every task: results.csv; every candidate: "
        "choices.csv.",
    ]
    parts = ["# Every merge rule on the eight tasks", *lines]
    for sheet in sheets:
        parts += [f"## {sheet.title}", markdown_table(sheet)]
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> None:
    """Compare the rules; print and write the tables."""
    started = time.perf_counter()
    for rule in options.rules:
        require_known("--rules", rule, VARIANTS)
    require_at_least("--combinations", options.combinations, 1)
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    if max(options.sizes) > len(inputs.tasks) or min(options.sizes) < 2:
        raise InputError(
            f"--sizes must lie between 2 and the number of tasks, {len(inputs.tasks)}; got "
            f"{', '.join(map(str, options.sizes))}."
        )
    kept = ("eval_samples", "validation_samples", "adamerging_steps", "adamerging_batch")
    kept += ("statistics_samples", "seed")
    meaning = {name: getattr(options, name) for name in kept}
    name = content_hash({"inputs": inputs.fingerprint, **meaning})
    with Journal(options.run / "merge_rules" / f"{name}.jsonl") as journal:
        resumed = journal.path.stat().st_size > 0
        results, choices = compare(Study(inputs, options, journal))
    text = page(results, options, time.perf_counter() - started, resumed)
    options.out.mkdir(parents=True, exist_ok=True)
    results.to_csv(options.out / "results.csv", index=False, float_format="%.6g")
    choices.to_csv(options.out / "choices.csv", index=False, float_format="%.6g")
    write_bytes(options.out / "README.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Options))
