"""The report says what the tables say: every number is computed again here with plain loops."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.figures import figure_2
from rmtllmf_jax.report.io import read_cosines, read_results
from rmtllmf_jax.report.pages import Report, html_page, markdown_page, markdown_table
from rmtllmf_jax.report.plates import plates
from rmtllmf_jax.report.sheets import Sheet, all_sheets
from rmtllmf_jax.report.tables import cell_scores, summary, versions, weak_tasks
from rmtllmf_jax.report.terminal import print_summary
from rmtllmf_jax.report.vector_figures import cosine_figure
from rmtllmf_jax.report.verdict import comparisons, sentences, verdict
from rmtllmf_jax.report.write import write_report

Row = dict[str, Any]
TASKS = ("dtd", "mnist", "svhn")
SCENARIOS = ("clean", "ideal", "sum_rate", "a_new_attack")
PROTECTIONS = ("none", "freeze", "realign", "r-mtllmf")
BASE = "Base model, its own heads"
SHEET = Sheet("t", ["a", "b"], [["x", "y"]])
LABELS = {
    "none": "Unprotected",
    "freeze": "Freeze only",
    "realign": "Realign only",
    "r-mtllmf": "R-MTLLMF",
}


def result_rows(
    scenarios: tuple[str, ...] = SCENARIOS, sizes: tuple[int, ...] = (2, 3), draws: int = 2
) -> list[Row]:
    """Rows in a shuffled order; accuracies are random, fine-tuned ones differ between tasks."""
    rng = random.Random(7)
    tuned = {"dtd": 0.8, "mnist": 0.99, "svhn": 0.95}
    rows = []
    for size in sizes:
        for tasks in itertools.combinations(TASKS, size):
            cells = [("clean", 0, "control")]
            for scenario in scenarios:
                count = 1 if scenario == "clean" else draws
                cells += itertools.product([scenario], range(count), PROTECTIONS)
            for (scenario, draw, protection), seed in itertools.product(cells, (0, 1)):
                mean = rng.random()
                for task in tasks:
                    accuracy = rng.random() * tuned[task]
                    rows.append(
                        {
                            "combination": "+".join(tasks),
                            "size": size,
                            "scenario": scenario,
                            "draw": draw,
                            "seed": seed,
                            "protection": protection,
                            "task": task,
                            "scale": 0.3,
                            "kappa": 1.0,
                            "mse": mean,
                            "mse_mean": mean,
                            "score": accuracy,
                            "finetuned_score": tuned[task],
                            "base_score": tuned[task] / 2,
                            "normalised": accuracy / tuned[task],
                        }
                    )
    rng.shuffle(rows)
    return rows


def cosine_rows(scenarios: tuple[str, ...] = ("ideal", "sum_rate")) -> list[Row]:
    rng = random.Random(8)
    keys = itertools.product(scenarios, (0, 1), (0, 1), ("r-mtllmf", "none"), TASKS, TASKS)
    names = ("scenario", "draw", "seed", "protection", "task_a", "task_b")
    rows = [dict(zip(names, key)) for key in keys]
    rng.shuffle(rows)
    return [
        row | {"cosine": 1.0 if row["task_a"] == row["task_b"] else rng.uniform(-1, 1)}
        for row in rows
    ]


def loop_scores(rows: list[Row]) -> dict[tuple[Any, ...], float]:
    """(combination, size, scenario, draw, seed, protection) -> mean over the cell's tasks."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        names = ("combination", "size", "scenario", "draw", "seed", "protection")
        cells.setdefault(tuple(row[n] for n in names), []).append(row["normalised"])
    return {cell: sum(values) / len(values) for cell, values in cells.items()}


def loop_groups(rows: list[Row], *places: int) -> dict[tuple[Any, ...], list[float]]:
    groups: dict[tuple[Any, ...], list[float]] = {}
    for cell, score in loop_scores(rows).items():
        groups.setdefault(tuple(cell[p] for p in places), []).append(score)
    return groups


@pytest.fixture
def rows() -> list[Row]:
    return result_rows()


@pytest.fixture
def results(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def write_run(folder: Path, rows: list[Row], cosines: list[Row] | None, run: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "results.parquet")
    if cosines is not None:
        pd.DataFrame(cosines).to_parquet(folder / "cosines.parquet")
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run))
    return folder


# Averages


def test_cell_scores_average_over_the_tasks_of_a_cell(
    rows: list[Row], results: pd.DataFrame
) -> None:
    expected = loop_scores(rows)
    seen = cell_scores(results)
    names = ["combination", "size", "scenario", "draw", "seed", "protection"]
    assert len(seen) == len(expected)
    for row in seen.to_dict("records"):
        assert row["score"] == pytest.approx(expected[tuple(row[name] for name in names)])
        control = (row["combination"], row["size"], "clean", 0, row["seed"], "control")
        assert row["control"] == pytest.approx(expected[control])


def test_summary_is_over_combinations_draws_and_seeds(
    rows: list[Row], results: pd.DataFrame
) -> None:
    groups = loop_groups(rows, 2, 5)
    seen = summary(results)
    assert len(seen) == len(groups)
    controls = groups["clean", "control"]
    for row in seen.to_dict("records"):
        values = groups[row["scenario"], row["protection"]]
        assert row["mean"] == pytest.approx(statistics.mean(values))
        assert row["std"] == pytest.approx(statistics.stdev(values))
        assert row["cells"] == len(values)
        assert row["control"] == pytest.approx(statistics.mean(controls))
        mses = {
            (r["combination"], r["draw"], r["seed"]): r["mse_mean"]
            for r in rows
            if (r["scenario"], r["protection"]) == (row["scenario"], row["protection"])
        }
        assert row["mse"] == pytest.approx(statistics.mean(mses.values()))


def test_by_size(rows: list[Row], results: pd.DataFrame) -> None:
    groups = loop_groups(rows, 1, 2, 5)
    seen = summary(results, "size")
    assert len(seen) == len(groups)
    for row in seen.to_dict("records"):
        values = groups[row["size"], row["scenario"], row["protection"]]
        assert row["mean"] == pytest.approx(statistics.mean(values))
        assert row["std"] == pytest.approx(statistics.stdev(values))
        assert row["cells"] == len(values)


def test_rows_stand_in_the_order_of_the_paper(rows: list[Row]) -> None:
    extra = [row | {"protection": "b_defence"} for row in rows if row["protection"] == "none"]
    extra += [row | {"scenario": "strongest_user"} for row in rows if row["scenario"] == "ideal"]
    extra += [row | {"scenario": "z_attack"} for row in rows if row["scenario"] == "ideal"]
    seen = summary(pd.DataFrame(rows + extra))
    order = ["clean", "ideal", "strongest_user", "sum_rate", "a_new_attack", "z_attack"]
    assert list(dict.fromkeys(seen["scenario"])) == order
    clean = seen.loc[seen["scenario"] == "clean", "protection"]
    assert list(clean) == [*PROTECTIONS, "control", "b_defence"]
    shuffled = pd.DataFrame(rows + extra).sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(summary(shuffled), seen, check_exact=False, rtol=1e-12)


def test_control_is_that_of_the_same_combination_and_seed(rows: list[Row]) -> None:
    kept = [row for row in rows if row["scenario"] != "ideal" or row["seed"] == 1]
    kept = [row for row in kept if row["scenario"] != "ideal" or row["size"] == 3]
    controls = [
        score
        for cell, score in loop_scores(rows).items()
        if cell[1] == 3 and cell[4] == 1 and cell[5] == "control"
    ]
    seen = summary(pd.DataFrame(kept)).set_index(["scenario", "protection"])
    assert seen.loc[("ideal", "none"), "control"] == pytest.approx(statistics.mean(controls))


# Verdict


@pytest.mark.parametrize("against", ["none", "realign", "control"])
def test_comparisons_are_paired(rows: list[Row], against: str) -> None:
    # One unprotected cell is missing: its partner must not enter the mean.
    lost = ("dtd+mnist", "sum_rate", 1, 0, "none")
    names = ("combination", "scenario", "draw", "seed", "protection")
    rows = [row for row in rows if tuple(row[name] for name in names) != lost]
    scores = loop_scores(rows)
    pairs = []
    for cell, score in scores.items():
        combination, size, scenario, draw, seed, protection = cell
        if (scenario, protection) != ("sum_rate", "r-mtllmf"):
            continue
        place = ("clean", 0) if against == "control" else (scenario, draw)
        other = scores.get((combination, size, *place, seed, against))
        if other is not None:
            pairs.append((score, other))
    seen = comparisons(pd.DataFrame(rows)).set_index(["scenario", "against"])
    row = seen.loc[("sum_rate", against)]
    assert row["pairs"] == len(pairs) == (15 if against == "none" else 16)
    assert row["protected"] == pytest.approx(statistics.mean(a for a, _ in pairs))
    assert row["other"] == pytest.approx(statistics.mean(b for _, b in pairs))
    assert row["difference"] == pytest.approx(statistics.mean(a - b for a, b in pairs))
    assert row["better"] == sum(a > b for a, b in pairs)
    gains = [a - b for a, b in pairs]
    assert row["error"] == pytest.approx(statistics.stdev(gains) / len(gains) ** 0.5)


def test_one_pair_is_no_verdict(rows: list[Row]) -> None:
    kept = {("ideal", "none"), ("ideal", "r-mtllmf"), ("clean", "control")}
    one = [
        row
        for row in rows
        if row["combination"] == "dtd+mnist"
        and row["seed"] == row["draw"] == 0
        and (row["scenario"], row["protection"]) in kept
    ]
    said = sentences(pd.DataFrame(one))
    assert len(said) == 2
    for sentence in said:
        assert "cannot be distinguished from" in sentence
        assert "in the only pair, which has no spread" in sentence
        assert "no measurable gain" not in sentence


def test_a_gain_within_its_noise_is_not_called_a_win(rows: list[Row]) -> None:
    noisy = []
    for row in rows:
        if row["protection"] not in ("none", "r-mtllmf") or row["scenario"] != "ideal":
            continue
        sign = 1 if (row["draw"] + row["seed"]) % 2 else -1
        gain = 0.01 + 0.2 * sign if row["protection"] == "r-mtllmf" else 0.0
        noisy.append(row | {"normalised": 0.5 + gain})
    said = [line for line in sentences(pd.DataFrame(noisy)) if "unprotected" in line]
    assert "protected cannot be distinguished from unprotected: 51.0% against 50.0%" in said[0]


def test_tasks_that_fine_tuning_did_not_teach_are_named_and_left_out(
    rows: list[Row], tmp_path: Path
) -> None:
    rest = {"finetuned_score": 0.9, "score": 0.45, "normalised": 0.5}
    taught = [
        row
        | {
            "base_score": 0.5,
            "normalised": 1.0,
            **({"finetuned_score": 0.51, "score": 0.51} if row["task"] == "dtd" else rest),
        }
        for row in rows
    ]
    results = pd.DataFrame(taught)
    assert weak_tasks(results) == ["dtd"]
    assert summary(versions(results)["without dtd"])["mean"].to_numpy() == pytest.approx(0.5)
    lines = verdict(results)
    assert any("did not teach dtd (51.0% fine-tuned, 50.0% head on the base)" in x for x in lines)
    assert any(x.startswith("Without dtd: Ideal (no attack): protected") for x in lines)
    results.to_parquet(tmp_path / "results.parquet")
    names = {path.name for path in write_report(tmp_path)}
    assert "figure_2_informative.png" in names
    page = (tmp_path / "report" / "summary.md").read_text()
    assert "over combinations, draws and seeds, without dtd" in page
    pd.DataFrame([r | rest for r in taught]).to_parquet(tmp_path / "results.parquet")
    names = {path.name for path in write_report(tmp_path)}
    assert "figure_2_informative.png" not in names
    assert not (tmp_path / "report" / "figure_2_informative.png").exists()


@pytest.mark.parametrize(
    ("protected", "words"),
    [
        (0.75, "beats unprotected: 75.0% against 50.0% (+25.00 ± 0.00 points, twice the standard"),
        (0.5, "cannot be distinguished from unprotected: 50.0% against 50.0% (+0.00 ± 0.00 points"),
        (0.25, "is worse than unprotected: 25.0% against 50.0% (-25.00 ± 0.00 points"),
    ],
)
def test_sentences_say_who_wins(rows: list[Row], protected: float, words: str) -> None:
    values = {"none": 0.5, "r-mtllmf": protected, "control": 0.6, "realign": 0.7}
    flat = [
        row | {"normalised": values[row["protection"]]}
        for row in rows
        if row["protection"] in values and row["scenario"] in ("clean", "ideal")
    ]
    said = "\n".join(sentences(pd.DataFrame(flat)))
    assert f"Ideal (no attack): protected {words}" in said
    verb = "beats" if protected > 0.6 else "is worse than"
    assert f"Ideal (no attack): protected {verb} the control: {protected:.1%} against 60.0%" in said
    verb = "beats" if protected > 0.7 else "is worse than"
    assert f"protected {verb} realignment alone: {protected:.1%} against 70.0%" in said
    assert ("no measurable gain over realignment alone." in said) == (protected < 0.7)


def test_sentences_without_partners_say_so(rows: list[Row]) -> None:
    alone = [row for row in rows if row["protection"] == "r-mtllmf" and row["scenario"] == "ideal"]
    said = sentences(pd.DataFrame(alone))
    assert len(said) == 2
    assert all("cannot be compared" in sentence for sentence in said)
    bare = [row for row in rows if row["protection"] != "r-mtllmf"]
    assert "cannot be said" in sentences(pd.DataFrame(bare))[0]


# Figures


def test_figure_2_draws_the_means_bands_and_control(rows: list[Row], results: pd.DataFrame) -> None:
    groups = loop_groups(rows, 1, 2, 5)
    figure = figure_2(results)
    titles = ["Clean (no noise)", "Ideal (no attack)", "Sum-rate attack", "a_new_attack"]
    assert [panel.get_title() for panel in figure.axes] == titles
    assert len({panel.get_ylim() for panel in figure.axes}) == 1
    for panel, scenario in zip(figure.axes, ("clean", "ideal", "sum_rate", "a_new_attack")):
        lines = {line.get_label(): line for line in panel.get_lines()}
        assert list(lines) == [*LABELS.values(), "Control (realigned base)", BASE]
        for place, (protection, label) in enumerate(LABELS.items()):
            values = [groups[size, scenario, protection] for size in (2, 3)]
            means = [100 * statistics.mean(v) for v in values]
            stds = [100 * statistics.stdev(v) for v in values]
            np.testing.assert_array_equal(lines[label].get_xdata(), [2, 3])
            np.testing.assert_allclose(lines[label].get_ydata(), means)
            corners = panel.collections[place].get_paths()[0].vertices[:, 1]
            edges = [min(m - s for m, s in zip(means, stds)), max(map(sum, zip(means, stds)))]
            np.testing.assert_allclose([corners.min(), corners.max()], edges)
        control = [100 * statistics.mean(groups[size, "clean", "control"]) for size in (2, 3)]
        np.testing.assert_allclose(lines["Control (realigned base)"].get_ydata(), control)
        np.testing.assert_allclose(lines[BASE].get_ydata(), [50, 50])  # half of the fine-tuned
    assert "± 1 standard deviation" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*LABELS.values(), "Control (realigned base)", BASE]


def test_figure_2_with_one_cell_spreads_its_points() -> None:
    rows = [row for row in result_rows(("ideal",), (3,), draws=1) if row["seed"] == 0]
    figure = figure_2(pd.DataFrame(rows))
    (panel,) = figure.axes
    groups = loop_groups(rows, 5)
    lines = {line.get_label(): line for line in panel.get_lines()}
    places = [float(lines[label].get_xdata()[0]) for label in LABELS.values()]
    assert len(set(places)) == 4
    assert all(abs(place - 3) < 0.5 for place in places)
    for protection, label in LABELS.items():
        np.testing.assert_allclose(lines[label].get_ydata(), [100 * groups[protection,][0]])
    control = lines["Control (realigned base)"]
    np.testing.assert_allclose(control.get_ydata(), [100 * groups["control",][0]] * 2)
    assert np.ptp(control.get_xdata()) > 0.5
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_figure_2_of_controls_only_is_refused(results: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="only control rows"):
        figure_2(results[results["protection"] == "control"])


def test_cosine_figure_holds_the_means_of_each_protection() -> None:
    rows, tasks = cosine_rows(), sorted(TASKS)
    figure = cosine_figure(pd.DataFrame(rows), "sum_rate")
    maps = [panel for panel in figure.axes if panel.images]
    assert [panel.get_title() for panel in maps] == ["Unprotected", "R-MTLLMF"]
    assert "Sum-rate attack" in figure.get_suptitle()
    assert [text.get_text() for text in maps[0].get_yticklabels()] == tasks
    for panel, protection in zip(maps, ("none", "r-mtllmf")):
        (image,) = panel.images
        assert image.get_clim() == (-1, 1)
        assert [text.get_text() for text in panel.get_xticklabels()] == tasks
        words = [text.get_text() for text in panel.texts]
        for i, j in itertools.product(range(3), repeat=2):
            key = ("sum_rate", protection, tasks[i], tasks[j])
            names = ("scenario", "protection", "task_a", "task_b")
            values = [r["cosine"] for r in rows if tuple(r[name] for name in names) == key]
            assert len(values) == 4
            assert image.get_array()[i, j] == pytest.approx(statistics.mean(values))
            assert words[3 * i + j] == f"{statistics.mean(values):.2f}"


def test_cosine_figure_names_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"unknown scenario 'sum_rat'.*'sum_rate'"):
        cosine_figure(pd.DataFrame(cosine_rows()), "sum_rat")


# Reading


def test_tables_are_read_as_written(tmp_path: Path, rows: list[Row]) -> None:
    run = write_run(tmp_path / "run", rows, cosine_rows())
    added = ["rule", "axis", "level"]  # of older tables, see test_report_levels.py
    read = read_results(run / "results.parquet").drop(columns=added)
    assert read.to_dict("records") == rows
    cosines = read_cosines(run / "cosines.parquet").drop(columns=added)
    assert cosines.to_dict("records") == cosine_rows()


@pytest.mark.parametrize("read", [read_results, read_cosines])
def test_missing_and_truncated_tables_are_named(tmp_path: Path, rows: list[Row], read: Any) -> None:
    with pytest.raises(InputError, match=r"nowhere\.parquet: no such file"):
        read(tmp_path / "nowhere.parquet")
    whole = write_run(tmp_path / "run", rows, None) / "results.parquet"
    for size in (0, 3, whole.stat().st_size // 2, whole.stat().st_size - 1):
        short = tmp_path / "short.parquet"
        short.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(InputError, match=r"short\.parquet: not a whole parquet file"):
            read(short)


def test_missing_columns_are_listed(tmp_path: Path, results: pd.DataFrame) -> None:
    path = tmp_path / "results.parquet"
    results.drop(columns=["seed", "mse"]).to_parquet(path)
    with pytest.raises(InputError, match=r"results\.parquet: lacks the columns seed, mse; it has"):
        read_results(path)
    pd.DataFrame(cosine_rows()).drop(columns="task_b").to_parquet(path)
    with pytest.raises(InputError, match="lacks the columns task_b;"):
        read_cosines(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "more than once"),
        (lambda t: t.iloc[1:], "tasks, expected"),
        (lambda t: t.assign(normalised=math.nan), "normalised is nan"),
        (lambda t: t.assign(score="high"), "column score is not float"),
        (lambda t: t.assign(score="0.5"), "column score is not float"),
        (lambda t: t.assign(score=True), "column score is not float"),
        (lambda t: t.assign(seed=0.5), "column seed is not int .*not a whole number"),
        (lambda t: t.assign(score=7.0), "score is 7.0; expected .* from 0 to 1"),
        (lambda t: t.assign(finetuned_score=1.01), "finetuned_score is 1.01"),
        (lambda t: t.assign(base_score=-0.1), "base_score is -0.1"),
        (lambda t: t.assign(normalised=-0.1), "normalised is -0.1; .* >= 0"),
        (lambda t: t.assign(normalised=0.5), "expected the quotient"),
        (lambda t: t.assign(finetuned_score=0.0), "expected the quotient"),
        (lambda t: t.assign(mse=-1.0), "mse is -1.0"),
        (lambda t: t.assign(mse_mean=math.inf), "mse_mean is inf"),
        (lambda t: t.assign(scale=math.inf), "scale is inf"),
        (lambda t: t.assign(kappa=-math.inf), "kappa is -inf"),
        (lambda t: t.assign(draw=t["draw"] - 1), "draw is -1"),
        (lambda t: t.assign(task="x" + t["task"]), "is none of the combination"),
        (lambda t: t.assign(axis="mse", level=math.inf), "axis is 'mse' and level inf;"),
        (lambda t: t.assign(axis="x/../../escaped", level=1.0), "column axis .* is not allowed"),
        (lambda t: t.assign(scenario="<script>"), "column scenario .* is not allowed"),
        (lambda t: t.assign(rule="a\x1b[31m"), "column rule .* is not allowed"),
        (lambda t: t.assign(draw=t["draw"].where(t.index > 0)), "column draw is not int"),
        (lambda t: t.assign(task=t["task"].where(t.index > 0)), "column task is not str"),
    ],
)
def test_spoilt_results_are_refused(
    tmp_path: Path, results: pd.DataFrame, spoil: Any, message: str
) -> None:
    path = tmp_path / "results.parquet"
    spoil(results).to_parquet(path)
    with pytest.raises(InputError, match=rf"results\.parquet: .*{message}"):
        read_results(path)


# Writing and printing

FILES = [f"figure_{n}.{kind}" for n in (2, 3, 4, 5) for kind in ("png", "svg", "pdf")]
PAGES = ["summary.md", "summary.csv", "index.html"]


def test_write_report(tmp_path: Path, rows: list[Row]) -> None:
    configuration = {"model": "vit", "image_size": 32, "hidden": 3, "shots": 10}
    settings = {"command": "rmtllmf sweep a|b", "configuration": configuration}
    run = write_run(tmp_path / "run", rows, cosine_rows(), settings)
    written = write_report(run)
    assert [path.name for path in written] == [*FILES, *PAGES]
    assert sorted(path.name for path in (run / "report").iterdir()) == sorted(
        path.name for path in written
    )
    for path in written:
        start = path.read_bytes()[:5]
        assert path.suffix not in (".png", ".svg") or start in (b"\x89PNG\r", b"<?xml")

    page = (run / "report" / "summary.md").read_text()
    for sentence in sentences(pd.DataFrame(rows)):
        assert f"- {sentence}\n" in page
    values = loop_groups(rows, 2, 5)["sum_rate", "r-mtllmf"]
    numbers = f"{100 * statistics.mean(values):.1f} | {100 * statistics.stdev(values):.1f}"
    assert f"| sum_rate | r-mtllmf | {numbers} |" in page
    for size in (2, 3):
        values = loop_groups(rows, 1, 2, 5)[size, "clean", "control"]
        cell = f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
        assert cell in page
    assert "| - | fine-tuned | 80.0 | 99.0 | 95.0 |" in page
    assert "| command | rmtllmf sweep a\\|b |" in page
    assert "| configuration.image_size | 32 |" in page
    assert "hidden" not in page
    assert "skipped" not in page

    stored = pd.read_csv(run / "report" / "summary.csv")
    stored["axis"] = stored["axis"].astype(object).fillna("")
    pd.testing.assert_frame_equal(stored, summary(pd.DataFrame(rows)), check_dtype=False)


def test_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    rows = result_rows(("ideal",), (2,), draws=1)
    run = write_run(tmp_path / "run", rows, cosine_rows(("ideal",)))
    first = {path.name: path.read_bytes() for path in write_report(run)}
    assert {path.name: path.read_bytes() for path in write_report(run)} == first


def test_figures_without_data_are_skipped_and_old_ones_removed(tmp_path: Path) -> None:
    rows = result_rows(("ideal",), (2,), draws=1)
    run = write_run(tmp_path / "run", rows, cosine_rows())
    write_report(run)
    write_run(run, rows, cosine_rows(("ideal",)))
    names = [path.name for path in write_report(run)]
    assert names == [*FILES[:6], *PAGES]
    assert not list((run / "report").glob("figure_4*"))
    page = (run / "report" / "summary.md").read_text()
    assert "- figure_4 skipped: cosines.parquet has no scenario sum_rate." in page
    assert "figure_4.png" not in page
    assert "None recorded." in page

    (run / "cosines.parquet").unlink()
    controls = [row for row in rows if row["protection"] == "control"]
    write_run(run, controls, None)
    assert [path.name for path in write_report(run)] == PAGES
    page = (run / "report" / "summary.md").read_text()
    assert "- figure_2 skipped: results.parquet holds control rows only." in page
    assert "- figure_3 skipped: the run has no cosines.parquet." in page


def test_names_of_somebody_elses_table_stay_names(tmp_path: Path) -> None:
    """Neither a path nor a part of a page, though the check of `read_results` were not there."""
    here = tmp_path / "run" / "report"
    axis, rule = "x/../../../escaped", '"><script>'
    table = pd.DataFrame(result_rows(("ideal",), (2,), draws=1))
    merged = table["protection"] != "control"
    table = table.assign(rule=rule, axis=axis, level=1.0).where(merged, table.assign(axis=""))
    more = table.assign(rule="task_arithmetic")
    found, _ = plates(pd.concat([table, more[merged]]), None, None)
    files = [(here / f"{plate.stem}.png").resolve() for plate in found]
    assert len(set(files)) == 2
    assert {file.parent for file in files} == {here}
    report = Report(
        rule, [rule, "![x](http://y)"], found, [], all_sheets(table, spread=True), SHEET, {}
    )
    svg = {plate.stem: '<svg viewBox="0 0 1 1"></svg>' for plate in found}
    for text in (markdown_page(report), html_page(report, svg).replace("![x](", "")):
        assert "<script" not in text.replace("&lt;script", "")
        assert "![x](" not in text


def test_credentials_of_a_url_are_not_shown(tmp_path: Path, rows: list[Row]) -> None:
    url = "s3://me:hunter2@bucket/a?token=hunter2&x=1"
    settings = {"command": f"rmtllmf sweep --store {url} --out a", "store": url, "scale": "1"}
    write_report(write_run(tmp_path / "run", rows, None, run=settings))
    shown = "s3://***@bucket/a?token=***&x=*** --out a"
    for name in ("summary.md", "index.html"):
        text = unescape((tmp_path / "run" / "report" / name).read_text())
        assert "hunter2" not in text
        assert shown in text


def test_a_run_json_that_is_no_object_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    run = write_run(tmp_path / "run", rows, None, run=[1])
    with pytest.raises(InputError, match=r"run\.json: expected a JSON object"):
        write_report(run)
    assert not (run / "report").exists()


def test_markdown_table() -> None:
    sheet = Sheet("t", ["a", "b", "c"], [["x|y", "two\nlines", "3"]])
    expected = "| a | b | c |\n| :-- | :-- | --: |\n| x\\|y | two lines | 3 |"
    assert markdown_table(sheet) == expected


@pytest.mark.parametrize("width", [200, 36])
def test_print_summary_cuts_no_number(rows: list[Row], results: pd.DataFrame, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, record=True)
    print_summary(results, console)
    text = console.export_text()
    assert "MSE" in text
    assert all(task in text for task in TASKS)
    for row in summary(results).to_dict("records"):
        assert f"{100 * row['mean']:.1f}" in text
    for (_, _, protection), values in loop_groups(rows, 1, 2, 5).items():
        if protection in ("none", "r-mtllmf", "control"):
            assert f"{100 * statistics.mean(values):.1f}" in text
    words = " ".join(text.split())
    assert all(" ".join(sentence.split()) in words for sentence in sentences(results))


def test_the_room_needs_no_jax_and_no_pyplot() -> None:
    code = (
        "import sys, rmtllmf_jax.report.write, rmtllmf_jax.report.terminal;"
        "print([name for name in ('jax', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
