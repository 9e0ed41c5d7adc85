"""docs/evidence.md: what stands behind the README, sentence by sentence."""

from __future__ import annotations

import re
from pathlib import Path

import merge_rules
import pandas as pd
import pytest

from rmtllmf_jax.cli.reproduce import DEMO_SWEEP
from rmtllmf_jax.fusion.files.plan import file_methods
from rmtllmf_jax.fusion.scale import MEAN_SCALES, SUM_SCALES
from rmtllmf_jax.report.intervals import differences, interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
REAL = "merge_rules_real"


def plain(text: str) -> str:
    """Return Markdown on one line, without emphasis and with the words of its links alone."""
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"(?<!\w)\*+|\*+(?!\w)", "", text).split())


README = (ROOT / "README.md").read_text("utf-8")
PROSE = re.sub(r"```.*?```|^\|.*?$|^#.*?$|^!\[.*?$", "\n", README, flags=re.DOTALL | re.MULTILINE)
SENTENCES = [
    sentence
    for block in re.split(r"\n\s*\n|^\* ", PROSE, flags=re.MULTILINE)
    for sentence in re.split(r"(?<=\.) (?=[A-Z]|docs/)", plain(block))
]
ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs" / "evidence.md").read_text("utf-8").splitlines()
    if line.startswith("| ")
][1:]


def test_every_sentence_with_a_number_and_every_item_has_its_evidence():
    items = [plain(item) for item in re.findall(r"^\* (.*(?:\n  .*)*)", README, re.MULTILINE)]
    numbered = [each for each in SENTENCES if re.search(r"(?<![\w/.-])\d", each)]
    assert len(items) >= 6
    assert len(numbered) >= 5
    said = {sentence for sentence, _ in ROWS}
    assert [each for each in [*items, *numbered] if each not in said] == []


def test_what_is_quoted_is_in_the_readme():
    whole = plain(README)
    quoted = [sentence for sentence, _ in ROWS if sentence != "The table by N"]
    assert [each for each in quoted if each not in whole] == []


@pytest.mark.parametrize(("sentence", "evidence"), ROWS, ids=[row[0][:30] for row in ROWS])
def test_the_evidence_is_there(sentence: str, evidence: str):
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", evidence)
    files = re.findall(r"`((?:docs|experiments)/[\w/.]+)`", evidence)
    assert named or files, sentence
    assert evidence.count("`") == 2 * (len(named) + len(files)), evidence
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text("utf-8"), test
    assert [file for file in files if not (ROOT / file).exists()] == []


def table_of(page: str) -> pd.DataFrame:
    """Return the first table of an experiment's page, as text."""
    text = (RESULTS / page / "README.md").read_text("utf-8").replace("\\", "")
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines
    header, _, *rows = (line.strip("| ").split(" | ") for line in lines[0].splitlines())
    return pd.DataFrame(rows, columns=header)


def means(table: Path) -> pd.Series:
    """Return per cents by scenario and protection, of eight tasks."""
    cells = pd.read_csv(table)
    by = cells[cells["size"] == 8].groupby(["scenario", "protection"])
    return 100 * by["mean" if "mean" in cells else "score"].mean()


def test_the_lead_over_the_control_is_small():
    demo = pd.read_csv(ROOT / "docs" / "demo" / "summary.csv")
    by = demo.set_index(["scenario", "protection", "size"])["mean"].sort_index()
    lead = 100 * (by["sum_rate", "r-mtllmf"] - by["clean", "control"])
    assert {round(each) for each in lead} == {2, 3}
    page = (RESULTS / "noise_scale" / "README.md").read_text("utf-8")
    found = re.search(r"cannot be distinguished from the control at c0 = -29 dB \(-(\d)\.\d", page)
    assert found
    assert f"{found[1]} below at N = 8 with three channels more" in plain(README)
    assert "20 channel realisations (8 where a model is realigned)" in page
    assert (DEMO_SWEEP["draws"], DEMO_SWEEP["repaired_draws"]) == (8, 8 - 3)
    assert "eight channels (five where a model is realigned)" in plain(README)


@pytest.mark.parametrize("page", ["noise_scale", "noise_scale_real"])
def test_from_which_noise_on_sending_is_not_worth_it(page: str):
    """docs/testbed.md has the leads over the control of both pages, and how many of six fit."""
    told = plain((ROOT / "docs" / "testbed.md").read_text("utf-8"))
    found = (RESULTS / page / "README.md").read_text("utf-8")
    leads = re.findall(r"at c0 = (-\d+) dB \((\S+ \[\S+ \S+\]) points", found)
    assert sum(f"{level} dB ({lead}" in told for level, lead in leads) >= 3
    most = re.search(r"within ten points: (\d) of them at most", found)
    assert most
    assert f"{['', 'one', 'two', 'three'][int(most[1])]} of the" in told
    levels = table_of(page)["c0 (dB)"][1:].astype(float)  # the first row is the paper's
    assert f"from {levels.max():g} to {levels.min():g} dB" in told


@pytest.mark.parametrize("page", ["noise_scale", "noise_scale_real"])
def test_what_realignment_alone_lacks_by_noise_scale(page: str):
    """docs/testbed.md: by how much R-MTLLMF is above it, in the table of the page."""
    table = table_of(page)[1:].drop(columns="worst").astype(float).set_index("c0 (dB)")
    lead = {
        attack: table[f"{attack}, r-mtllmf"] - table[f"{attack}, realign"]
        for attack in ("ideal", "sum_rate")
    }
    told = plain((ROOT / "docs" / "testbed.md").read_text("utf-8"))
    assert set(lead["ideal"][table.index >= -31]) == {1, 2}
    assert told.count("Realignment alone is 1 or 2 points below R-MTLLMF") == 2
    largest, where = lead["sum_rate"].max(), lead["sum_rate"].idxmax()
    assert f"up to {largest:g} below it, at {where:g} dB" in told


@pytest.mark.parametrize("page", ["power_control", "power_control_total", "learned_attack"])
def test_what_is_learned_stands_beside_the_base_model(page: str):
    told = plain((ROOT / "docs" / "gradients.md").read_text("utf-8"))
    found = (RESULTS / page / "README.md").read_text("utf-8")
    base = re.search(r"needs no uplink, has ([\d.]+) %", found)
    assert base
    assert f"the base model alone has {base[1]} %" in told
    gains = re.findall(r"\+(\d\.\d) \\?(\[\d\S+ \S+\])", found)
    printed = {(mean, ends) for mean, ends in gains if f" {mean} " in told and ends in told}
    assert len(printed) >= {"power_control": 1, "power_control_total": 2}.get(page, 3)


@pytest.mark.parametrize(("page", "least"), [("merge_rules", 9), ("merge_rules_real", 9)])
def test_the_tables_of_merge_methods_are_those_of_the_committed_pages(page: str, least: int):
    told = (ROOT / "docs" / "fusion.md").read_text("utf-8")
    table = table_of(page).set_index("rule").drop(columns="method chosen")
    kinds = ("base", "control", "task_arithmetic", "ties", "lata", "adamerging", "fisher")
    for size, cells in table.items():
        row = [
            cell
            for kind in (*kinds, "regmean", "tsv_merge")
            for rule, cell in cells.items()
            if rule.startswith(kind) and not rule.startswith("lata(weighting=")
        ]
        assert len(row) == least
        assert f"| {size.removeprefix('N = ')} | {' | '.join(row)} |" in told


@pytest.mark.parametrize(
    ("page", "size", "one", "other", "told"),
    [
        ("merge_rules", 4, "tsv_merge", "task_arithmetic", "is {} points {} above task arithmetic"),
        ("merge_rules", 4, "adamerging", "task_arithmetic", "unlabelled test images) {} {}"),
        ("merge_rules", 4, "lata", "task_arithmetic", "and LATA {} {}. TSV"),
        ("merge_rules", 4, "tsv_merge", "lata", "is {} points {} below it"),
        (
            "merge_rules",
            8,
            "tsv_merge",
            "task_arithmetic",
            "the three are {}, 9 and 6 points ahead",
        ),
        ("merge_rules", 8, "adamerging", "task_arithmetic", "are 10, {} and 6 points ahead"),
        ("merge_rules", 8, "lata", "task_arithmetic", "are 10, 9 and {} points ahead"),
        ("merge_rules", 2, "task_arithmetic", "control", "task arithmetic is {} {}, 9 [7, 10] and"),
        ("merge_rules", 4, "task_arithmetic", "control", "is 6 [2, 8], {} {} and 9 points above"),
        ("merge_rules", 8, "task_arithmetic", "control", "9 [7, 10] and {} points above it"),
        (REAL, 4, "tsv_merge", "task_arithmetic", "alone: {} points {} above task arithmetic and"),
        (REAL, 4, "tsv_merge", "regmean", "and {} {} above RegMean at N = 4"),
        (REAL, 7, "tsv_merge", "task_arithmetic", "and {}, 8 and 5 points above the three"),
        (REAL, 7, "tsv_merge", "regmean", "and 10, {} and 5 points above the three"),
        (REAL, 7, "tsv_merge", "adamerging", "and 10, 8 and {} points above the three"),
        (REAL, 2, "task_arithmetic", "control", "arithmetic is {} {}, 15 [8, 20] and 10 points"),
        (REAL, 4, "task_arithmetic", "control", "19 [7, 29], {} {} and 10 points above the"),
        (REAL, 7, "task_arithmetic", "control", "15 [8, 20] and {} points above the control"),
    ],
)
def test_how_far_merge_methods_are_apart(page: str, size: int, one: str, other: str, told: str):
    """In pairs, docs/fusion.md; of LATA the linear weights."""
    scores = merge_rules.scored(pd.read_csv(RESULTS / page / "results.csv"))
    scores = scores[scores["size"] == size]
    first, second = (
        scores[scores["rule"] == next(rule for rule in scores["rule"] if rule.startswith(name))]
        for name in (one, other)
    )
    pairs = differences(first, second, merge_rules.SHARED)
    numbers = interval(pairs, "difference").text().split(" ", 1)
    assert told.format(*numbers) in plain((ROOT / "docs" / "fusion.md").read_text("utf-8"))


def test_what_sparsifying_methods_bring_on_the_demo():
    told = plain((ROOT / "docs" / "fusion.md").read_text("utf-8"))
    assert "DARE, DELLA, Breadcrumbs and Consensus TA are within a point of task arithm" in told
    scores = merge_rules.scored(pd.read_csv(RESULTS / "merge_rules" / "results.csv"))
    means = 100 * scores.groupby(["rule", "size"])["score"].mean().unstack()
    near = [
        rule for rule in means.index if rule.startswith(("dare", "della", "bread", "consensus"))
    ]
    assert len(near) == 5
    assert (means.loc[near] - means.loc["task_arithmetic"]).abs().to_numpy().max() < 1


@pytest.mark.parametrize("page", ["hypothesis_test", "hypothesis_test_real"])
def test_the_tables_of_the_hypothesis_test_are_those_of_the_committed_pages(page: str):
    told = (ROOT / "docs" / "hypothesis.md").read_text("utf-8")
    pairs = pd.read_csv(RESULTS / page / "results.csv")
    shown = pairs[pairs["mse"] >= 1e-3]
    assert shown["mse"].nunique() == 5
    for mse, of in shown.groupby("mse"):
        ratio, percent = of["ratio_robust"], 100 * of.median(numeric_only=True)
        rates = (
            f"{percent[name]:.1f} %"
            for name in ("own_measured", "own_ratio_law", "changed_measured")
        )
        row = (
            f"{ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f}) | {' | '.join(rates)} |"
        )
        assert re.search(rf"^\| {f'{mse:g}'[1:]}[^|]* \| {re.escape(row)}$", told, re.MULTILINE), (
            row
        )
    assert re.search(rf"\b{shown.value_counts('mse').iloc[0]}\b[^.]* pairs", plain(told))


def test_what_is_kept_without_a_channel():
    kept = means(RESULTS / "defences" / "by_n.csv")
    assert f"({kept['clean', 'r-mtllmf']:.0f} without a channel)" in plain(README)


def test_what_realignment_loses_to_the_control_on_real_tasks():
    cells = pd.read_csv(RESULTS / "defences_real" / "by_n.csv")
    kept = 100 * cells.groupby(["scenario", "protection", "size"])["score"].mean()
    losses = [
        kept["clean", "control"] - kept["sum_rate", repair] for repair in ("r-mtllmf", "realign")
    ]
    ends = [f"by {loss.min():.0f} to {loss.max():.0f}" for loss in losses]
    told = plain((ROOT / "docs" / "defences.md").read_text("utf-8"))
    assert f"loses to the control {ends[0]} points, and realignment alone {ends[1]}," in told


def choices(page: str) -> dict[str, pd.Series]:
    """Return the validation accuracies of a page by kind, each by steps and learning rate."""
    table = pd.read_csv(RESULTS / page / "validation.csv").set_index(["steps", "learning_rate"])
    return {name.replace(", ", " "): 100 * table[name] for name in table}


def test_how_long_and_how_fast_to_realign():
    told = plain((ROOT / "docs" / "paper.md").read_text("utf-8"))
    found = choices("realign_choice_real")
    attacked, ideal, control = (
        found[kind] for kind in ("sum_rate r-mtllmf", "ideal r-mtllmf", "clean control")
    )
    assert attacked[20].idxmax() == 2e-4
    assert f"2e-4, its best under the sum-rate attack ({attacked[20].max():.0f} %)" in told
    better = f"1e-4 is better ({ideal[20][1e-4]:.0f} %, and {ideal[20][2e-4]:.0f} at 2e-4)"
    assert better in told
    three = ", ".join(f"{control[20][rate]:.0f}" for rate in (1e-4, 2e-4))
    assert f"{three} and {control[20][5e-4]:.0f} % at 1e-4, 2e-4 and 5e-4" in told
    gains = [f"{each[60].max() - each[20].max():.0f}" for each in (attacked, ideal, control)]
    assert "{} points under the attack and {} without, the control {}.".format(*gains) in told
    for steps in (20, 60):
        assert attacked[steps].max() < control[steps].max() < ideal[steps].max()
    heads = [choices(f"realign_choice_vit_{head}") for head in ("probe", "lda")]
    assert [each["sum_rate r-mtllmf"].idxmax() for each in heads] == [(20, 1e-4)] * 2
    assert [each["clean control"].idxmax() for each in heads] == [(20, 3e-5)] * 2
    lda = heads[1]["ideal r-mtllmf"][20]
    assert lda.idxmax() == 3e-5
    assert f"better with LDA, by {lda.max() - lda[1e-4]:.0f} points" in told


def test_what_more_steps_of_realignment_bring():
    kept = means(RESULTS / "defences_60" / "by_n.csv")
    control, both = kept["clean", "control"], kept["sum_rate", "holistic"]
    assert f"not 20, the control keeps {control:.0f} and both {both:.0f}" in plain(README)


@pytest.mark.parametrize("page", ["index.md", "tutorials/protect.md"])
def test_the_figure_of_protections_says_what_its_table_has(page: str):
    kept = means(RESULTS / "defences" / "by_n.csv")["sum_rate"]
    names = ("none", "r-mtllmf", "coded", "holistic")
    numbers = re.findall(
        r"^!\[[^]]*: (\d+) %\D*, (\d+)\D*, (\d+)\D*, (\d+)\D*\]\(\S*protect.svg\)",
        (ROOT / "docs" / page).read_text("utf-8"),
        re.MULTILINE,
    )
    assert numbers == [tuple(f"{kept[name]:.0f}" for name in names)]


def test_the_noise_scale_of_the_table_and_none_at_0_db():
    assert f"({DEMO_SWEEP['c0']:.0f} dB in the table)" in plain(README)
    at_0_db = means(RESULTS / "defences_c0" / "by_n.csv")
    assert at_0_db["sum_rate", "none"] > at_0_db["clean", "none"] - 1


def test_the_coefficients_that_are_tried():
    sums, means = (
        " to ".join(f"{end:g}".removeprefix("0") for end in (each[0], each[-1]))
        for each in (SUM_SCALES, MEAN_SCALES)
    )
    testbed, sweep = (
        plain((ROOT / "docs" / name).read_text("utf-8")) for name in ("testbed.md", "sweep.md")
    )
    assert len(SUM_SCALES) == 14
    assert f"fourteen coefficients of a sum from {sums} " in testbed
    assert f"Sums try {sums}, means {means}, and" in sweep


def test_seventeen_methods_need_nothing_but_checkpoints():
    assert len(file_methods()) == 17


def test_what_users_write_has_about_ten_lines():
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    classes = re.findall(r"^>>> @dataclass.*\n((?:\.\.\..*\n)+)", page, re.MULTILINE)
    assert len(classes) >= 6
    lines = [sum(line != "..." for line in each.splitlines()) for each in classes]
    assert max(lines) <= 12
    assert sum(lines) / len(lines) <= 10
