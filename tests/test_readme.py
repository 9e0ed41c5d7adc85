"""The README: short, whole, and its Python runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from rmtllmf_jax.fusion import power_law
from rmtllmf_jax.report.intervals import Interval
from rmtllmf_jax.report.io import completed
from rmtllmf_jax.report.paper import ACCURACIES
from rmtllmf_jax.report.tables import summary, versions
from rmtllmf_jax.training.task_models import FineTuned

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "experiments" / "results"
PAPER = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_it_has_at_most_100_lines():
    assert len(README.splitlines()) <= 100


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 10
    assert [link for link in local if not (ROOT / link.partition("#")[0]).exists()] == []


ROWS = {
    "base model, nothing fused": ("clean", "base"),
    "base model realigned on the same shots (control)": ("clean", "control"),
    "fused, no noise": ("clean", "none"),
    "thermal noise: unprotected": ("ideal", "none"),
    "thermal noise: R-MTLLMF": ("ideal", "r-mtllmf"),
    "strongest-user attack: unprotected": ("strongest_user", "none"),
    "strongest-user attack: R-MTLLMF": ("strongest_user", "r-mtllmf"),
    "sum-rate attack: unprotected": ("sum_rate", "none"),
    "sum-rate attack: realignment alone": ("sum_rate", "realign"),
    "sum-rate attack: R-MTLLMF": ("sum_rate", "r-mtllmf"),
}
"""What the README's table of the demo calls the rows of docs/demo/summary.csv."""


def summary_of(path: Path) -> pd.DataFrame:
    """Return a report's summary.csv by number of tasks, scenario and protection."""
    return pd.read_csv(path).set_index(["size", "scenario", "protection"]).sort_index()


def test_the_demos_table_is_that_of_the_committed_summary():
    summary = summary_of(ROOT / "docs" / "demo" / "summary.csv")
    sizes = summary.index.unique("size")
    for name, kind in ROWS.items():
        rows = [summary.loc[(size, *kind)] for size in sizes]
        cells = [Interval(row["mean"], row["low"], row["high"]).text() for row in rows]
        assert f"| {name} | {' | '.join(cells)} |" in README


@pytest.mark.parametrize(
    ("page", "least"),
    [
        ("figure_2_real", 10),
        ("figure_2_vit_probe", 10),
        ("figure_2_vit_lda", 10),
        ("figure_2_every", 5),
    ],
)
def test_the_tables_beside_the_papers_are_those_of_the_committed_results(page: str, least: int):
    path = ROOT / "experiments" / "results" / page / "results.parquet"
    *_, results = versions(completed(pd.read_parquet(path))).values()  # without weak tasks
    means = summary(results, "size").set_index(["size", "scenario", "protection"]).sort_index()
    sizes, there = means.index.unique("size"), set(means.index.droplevel("size"))
    told = [name for name, kind in ROWS.items() if kind in there]
    assert len(told) >= least
    for name in told:
        rows = [means.loc[(size, *ROWS[name])] for size in sizes]
        cells = [Interval(row["mean"], row["low"], row["high"]).text() for row in rows]
        printed = ACCURACIES.get(ROWS[name], "-")
        assert f"| {name} | {' | '.join(cells)} | {printed} |" in PAPER


def test_what_the_head_decides():
    gains, bases = {}, {}
    for head in ("probe", "lda"):
        means = summary_of(RESULTS / f"figure_2_vit_{head}" / "summary.csv")["mean"]
        base = means.xs(("clean", "base"), level=("scenario", "protection"))
        merged = means.xs(("clean", "none"), level=("scenario", "protection"))
        gains[head], bases[head] = 100 * (merged - base), 100 * base
    more = bases["lda"] - bases["probe"]
    text = " ".join(PAPER.split())
    assert f"{more.min():.0f} to {more.max():.0f} points more with LDA" in text
    two, four, seven = (f"{gain:.0f}" for gain in gains["probe"])
    assert f"gains {two}, {four} and {seven} points over the base model with probes" in text
    two, four, seven = (f"{gain:.0f}" for gain in gains["lda"])
    assert f"and {two}, {four} and {seven} with LDA" in text


def test_what_the_halves_contribute():
    """Of the table of a page, `| variant | samples | ideal | sum_rate | ... difference |`."""
    below: dict[str, list[str]] = {}
    for page in ("figure_5", "figure_5_real"):
        text = (RESULTS / page / "README.md").read_text("utf-8").replace("\\", "")
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
        gaps = {tuple(row[:2]): row[4:] for row in rows}
        for half, samples in (("freeze", "0"), ("realign", "10")):
            for scenario, gap in zip(("thermal noise", "sum-rate attack"), gaps[half, samples]):
                mean, high, low = re.findall(r"\d+", gap)
                below.setdefault(f"{scenario}: {half}", []).append(f"{mean} [{low}, {high}]")
        for variant in (("r-mtllmf", "1"), ("r-mtllmf", "50"), ("frozen: patch", "10")):
            below.setdefault(" ".join(variant), []).append(gaps[variant][1].split()[0])
    assert below.pop("r-mtllmf 1") == ["-5", "-5"]
    assert all(int(gap) <= 0 for gap in below.pop("r-mtllmf 50"))
    assert below.pop("frozen: patch 10") == ["-6", "+0"]
    for name, (demo, real) in below.items():
        said = name.replace("freeze", "freezing alone").replace("realign", "realignment alone")
        assert f"| {said} | {demo} | {real} | 21 to 53 |" in PAPER
    text = " ".join(PAPER.split())
    assert "one per class costs 5 points under the attack" in text
    assert "cost nothing on the real tasks and 6 points on the embedded ones" in text


def test_the_best_coefficients():
    """By number of tasks, as a sweep chose them on validation samples."""
    told = " ".join((ROOT / "docs" / "testbed.md").read_text("utf-8").split())
    best = {
        page: pd.read_parquet(RESULTS / page / "results.parquet")
        .query("protection == 'none'")
        .groupby("size")["scale"]
        .unique()
        .map(lambda few: " or ".join(f"{scale:.1g}" for scale in sorted(few)).replace("0.", "."))
        for page in ("figure_2_every", "figure_2")
    }
    real, demo = best["figure_2_every"], best["figure_2"]
    assert f"the best are {', '.join(real.loc[:6])}, and {real[7]} at N = 2 to 7" in told
    assert f"they are {demo[2]}, {demo[4]}, and {demo[8]} at N = 2, 4 and 8" in told
    law = [f"{power_law(tasks):.2f}"[1:] for tasks in range(2, 9)]
    assert f"says {', '.join(law[:5])} and {law[5]};" in told
    assert f"the law: {law[0]}, {law[2]}, {law[6]})" in told


def tables_of_a_testbed(name: str) -> list[str]:
    page = (ROOT / "experiments" / "results" / name / "README.md").read_text("utf-8")
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    return tables


def test_the_card_has_the_tables_of_the_testbeds_page():
    card = (ROOT / "checkpoints" / "clip-mini" / "README.md").read_text("utf-8")
    assert all(table in card for table in tables_of_a_testbed("testbed"))


@pytest.mark.parametrize(("name", "column"), [("testbed", 4), ("testbed_real", 5)])
def test_the_docs_have_the_numbers_of_the_pages_of_testbeds(name: str, column: int):
    docs = (ROOT / "docs" / "testbed.md").read_text("utf-8")
    (table,) = [block for block in docs.split("\n\n") if block.startswith("| | CLIP")]
    told = [line.split("|")[column] for line in table.splitlines()[2:]]
    reached = [line.split("|")[3] for line in tables_of_a_testbed(name)[2].splitlines()[2:]]
    for seen, said in zip(reached, told, strict=True):
        number = re.match(r"[\d.]+", seen.strip())
        assert number
        assert float(said.split()[0]) == float(number[0]), (seen, said)


def test_the_tables_of_the_docs_on_defences_are_those_of_the_committed_page():
    page, real = (
        (ROOT / "experiments" / "results" / name / "README.md").read_text("utf-8")
        for name in ("defences", "defences_real")
    )
    docs = (ROOT / "docs" / "defences.md").read_text("utf-8")
    reached, on_real = docs[docs.index("## What it brings") :].split("## On real tasks")
    for told, where, least in ((reached, page, 30), (on_real, real, 8)):
        rows = [line for line in told.splitlines() if line.startswith("|")]
        assert len(rows) > least
        assert [row for row in rows if row not in where] == []
    names = [("sum_rate", name) for name in ("r-mtllmf", "coded", "holistic")]
    names = [("clean", "control"), *names, ("clean", "r-mtllmf")]
    told = []
    for folder, size in (("defences", 8), ("defences_real", 7)):
        cells = pd.read_csv(ROOT / "experiments" / "results" / folder / "by_n.csv")
        cells = cells[cells["size"] == size]
        means = 100 * cells.groupby(["scenario", "protection"])["score"].mean()
        told.append([f"{means[name]:.0f}" for name in names])
    demo, seven = told
    text = " ".join(README.split())
    first = f"the control keeps {demo[0]} %, R-MTLLMF {demo[1]}, a code at the rate that the attack"
    assert f"{first} leaves {demo[2]}, and both {demo[3]} ({demo[4]} without a channel)" in text
    assert f"seven real tasks these are {', '.join(seven[:3])} and {seven[3]} ({seven[4]})" in text
    alone = re.search(r"realignment alone at N = 2 \(\+(\d+) .*?\+(\d+) .*?\+(\d+) ", page)
    assert alone
    ahead = f"alone it beats by {alone[1]}, {alone[2]} and {alone[3]} points"
    assert ahead in " ".join(docs.split())
    *_, by_control = re.findall(r"against `holistic` more than 26 dB more at .*?\.", page)
    assert "and 17 dB more at N = 8" in by_control
    assert "to pull that down to the control takes 17 dB more" in text


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_demo_gives_the_committed_summary(demo: Path):
    """To the last digit on the machine that made it; another one rounds sums differently."""
    committed, made = (
        summary_of(path)
        for path in (ROOT / "docs" / "demo" / "summary.csv", demo / "report" / "summary.csv")
    )
    assert committed.index.equals(made.index)
    assert (committed["cells"] == made["cells"]).all()
    assert (committed["mean"] - made["mean"]).abs().max() < 0.03


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_ten_lines_print_what_is_said(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """On the demo's users, which are those of `embedded_run`: nothing is fine-tuned again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    users = tmp_path / "rmtllmf" / "embedded" / "seed-0"
    shutil.copytree(demo, users, ignore=shutil.ignore_patterns("sweep", "report"))

    def refuse(*_: object) -> None:
        raise AssertionError("fine-tuned again")

    monkeypatch.setattr(FineTuned, "params", refuse)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    said = re.findall(r"`(sent [a-z ]+): (\d+)%`", README)
    printed = re.findall(r"(sent [a-z ]+): (\d+)%", capsys.readouterr().out)
    assert (
        [name for name, _ in printed]
        == [name for name, _ in said]
        == ["sent uncoded", "sent coded"]
    )
    for (_, expected), (_, reached) in zip(said, printed, strict=True):
        assert abs(int(expected) - int(reached)) <= 2  # another machine rounds sums differently
