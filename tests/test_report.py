"""Tables, averages and the verdict: every number is computed again here with plain loops."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import report_tables as made

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.io import RENAMED, read_cosines, read_results, read_scales
from rmtllmf_jax.report.sheet import Sheet
from rmtllmf_jax.report.sheets import all_sheets, scale_sheet
from rmtllmf_jax.report.tables import (
    best_scales,
    cell_scores,
    for_seeds,
    parts,
    summary,
    versions,
    weak_tasks,
)
from rmtllmf_jax.report.verdict import comparisons, replication, sentences, verdict

LEVELS = (-10.0, 0.0, 10.0)
RULES = ("task_arithmetic", "ties")
IDEAL = "Ideal (no attack)"
KINDS = ("rule", "axis", "level", "scenario")
INTERVALS = "95 % intervals: bootstrap over combinations, channel realisations and seeds"


@pytest.fixture(scope="module")
def plain() -> pd.DataFrame:
    """Two seeds, an attack of the user's own, without an axis."""
    return made.results(("clean", "ideal", "sum_rate", "a_new_attack"), seeds=2)


@pytest.fixture(scope="module")
def axis() -> pd.DataFrame:
    """Two rules along an axis, with clean merges and controls, which have no level."""
    kinds = {"protections": ("none", "r-mtllmf"), "axis": "snr_db", "levels": LEVELS}
    return made.results(rules=RULES, **kinds)


@pytest.fixture(scope="module")
def holes(plain: pd.DataFrame) -> pd.DataFrame:
    """Without some cells, among them unprotected ones whose partners must not enter a mean."""
    lost = (plain["scenario"] == "ideal") & ((plain["seed"] == 0) | (plain["size"] == 2))
    lost |= (
        (plain["combination"] == "dtd+mnist")
        & (plain["scenario"] == "sum_rate")
        & (plain["protection"] == "none")
        & (plain["draw"] == 1)
    )
    return plain[~lost]


@pytest.fixture(scope="module")
def replicated() -> pd.DataFrame:
    """Six channel realisations, enough to decide."""
    return made.results(("clean", "ideal", "sum_rate"), draws=6)


@pytest.fixture(params=["plain", "axis", "holes"])
def table(request: pytest.FixtureRequest) -> pd.DataFrame:
    """Each of the three tables."""
    return request.getfixturevalue(request.param)


def flat(table: pd.DataFrame, values: dict[str, float], other: float = 0.9) -> pd.DataFrame:
    """Give every cell of a protection one score; freezing alone is weak unless it is given."""
    scores = table["protection"].map({"freeze": 0.1} | values)
    return table.assign(normalised=scores.fillna(other))


def same_cell(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a row's values of these columns; no level is None."""
    return {name: None if row[name] != row[name] else row[name] for name in names}


# Averages


def test_cell_scores_are_means_over_the_tasks_of_a_cell(table: pd.DataFrame):
    expected, seen = made.cells(table), cell_scores(table).to_dict("records")
    assert len(seen) == len(expected)
    for row in seen:
        (cell,) = made.where(expected, **same_cell(row, *made.CELL))
        assert [row["score"], row["mse"]] == pytest.approx([cell["score"], cell["mse"]])


@pytest.mark.parametrize("by", [(), ("size",)])
def test_summary_is_over_combinations_draws_and_seeds(table: pd.DataFrame, by: tuple[str, ...]):
    cells, seen = made.cells(table), summary(table, *by).to_dict("records")
    keys = ("rule", "axis", "level", *by, "scenario", "protection")
    assert len(seen) == len({tuple(cell[key] for key in keys) for cell in cells})
    for row in seen:
        own = made.where(cells, **same_cell(row, *keys))
        assert row["cells"] == len(own)
        assert row["mean"] == pytest.approx(made.mean(own))
        assert (row["low"], row["high"]) == pytest.approx(made.ends(own), nan_ok=True)
        assert row["mse"] == pytest.approx(statistics.mean(cell["mse"] for cell in own))


def test_rows_stand_in_the_order_of_the_paper(plain: pd.DataFrame):
    ideal = plain[plain["scenario"] == "ideal"]
    extra = [plain[plain["protection"] == "none"].assign(protection="b_defence")]
    extra += [ideal.assign(scenario=name) for name in ("strongest_user", "z_attack")]
    whole = pd.concat([plain, *extra])
    seen = summary(whole)
    order = ["clean", "ideal", "strongest_user", "sum_rate", "a_new_attack", "z_attack"]
    assert list(dict.fromkeys(seen["scenario"])) == order
    clean = seen.loc[seen["scenario"] == "clean", "protection"]
    assert list(clean) == ["base", "control", *made.PROTECTIONS, "b_defence"]
    shuffled = summary(whole.sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(shuffled, seen, check_exact=False, rtol=1e-12)


def test_the_base_models_own_score(axis: pd.DataFrame):
    # By construction 0.4 + 0.05 N of the fine-tuned score.
    base = summary(axis, "size").query("protection == 'base'").set_index("size")
    assert base["mean"].to_dict() == pytest.approx({2: 0.5, 3: 0.55})
    assert base["cells"].to_dict() == {2: 3, 3: 1}
    # Seeds that are other fine-tunings: the mean of its two fractions of the fine-tuned score.
    other = axis.assign(seed=axis["seed"] + 9, finetuned_score=2 * axis["finetuned_score"])
    base = summary(pd.concat([axis, other]), "size").query("protection == 'base'")
    assert base.set_index("size")["mean"].to_dict() == pytest.approx({2: 0.375, 3: 0.4125})


def test_parts_hold_one_rule_and_one_axis_each(axis: pd.DataFrame):
    found = parts(axis)
    assert [(part.axis, part.rule, part.title, part.stem) for part in found] == [
        ("", "task_arithmetic", "task arithmetic", "_task_arithmetic"),
        ("", "ties", "ties", "_ties"),
        ("snr_db", "task_arithmetic", "task arithmetic", "_task_arithmetic"),
        ("snr_db", "ties", "ties", "_ties"),
    ]
    controls = int((axis["protection"] == "control").sum())
    for part in found:
        merged = part.results[part.results["protection"] != "control"]
        assert (set(merged["rule"]), set(merged["axis"])) == ({part.rule}, {part.axis})
        assert len(part.results) - len(merged) == controls
    (only,) = parts(made.results())
    assert (only.title, only.stem, len(only.results)) == ("", "", len(made.results()))
    # Names that differ in other characters than those of a file's name have files of their own.
    same = axis.assign(rule=axis["rule"].map({"task_arithmetic": "a b", "ties": "a-b"}))
    assert len({part.stem for part in parts(same) if part.axis}) == 2


def sheet_of(table: pd.DataFrame, title: str, spread: bool) -> tuple[Sheet, dict[Any, list[str]]]:
    (sheet,) = [each for each in all_sheets(table, spread=spread) if each.title == title]
    return sheet, {(row[0], row[1]): row[2:] for row in sheet.rows}


def test_sheets_without_an_axis(plain: pd.DataFrame):
    cells = made.cells(plain)
    kinds = [*itertools.product(("clean", "ideal", "sum_rate", "a_new_attack"), made.PROTECTIONS)]
    for spread in (True, False):
        title = "Average normalised accuracy (%) by number of tasks"
        title += f"; {INTERVALS}" if spread else ""
        sheet, rows = sheet_of(plain, title, spread)
        assert sheet.header[2:] == ["2", "3", "mean over N", "cells", "mean MSE"]
        assert list(rows) == [("-", "base"), ("-", "control"), *kinds]
        for (scenario, protection), texts in rows.items():
            where = {"scenario": "clean" if scenario == "-" else scenario}
            own = made.where(cells, **where, protection=protection)
            for size, text in zip((2, 3), texts):
                here = made.where(own, size=size)
                low, high = made.ends(here)
                ends = f" [{100 * low:.0f}, {100 * high:.0f}]" if spread and low == low else ""
                assert text == f"{100 * made.mean(here):.0f}{ends}"
            mse = statistics.mean(cell["mse"] for cell in own)
            beside = [f"{100 * made.mean(own):.0f}", str(len(own)), f"{mse:.3g}" if mse else "-"]
            assert texts[2:] == beside
    alone = plain[plain["size"] == 3]
    alone = alone[(alone["draw"] == 0) & (alone["seed"] == 0)]
    sheet = all_sheets(alone, spread=True)[0]  # nothing is replicated, one size
    assert sheet.header[2:] == ["3", "cells", "mean MSE"]
    assert not any("[" in row[2] for row in sheet.rows)
    sheet, rows = sheet_of(plain, "Mean accuracy (%) of each task", True)
    assert sheet.header[2:] == list(made.TASKS)
    assert rows["-", "fine-tuned"] == ["80", "99", "95"]
    own = made.where(plain.to_dict("records"), task="svhn", scenario="ideal", protection="none")
    assert rows["ideal", "none"][2] == f"{100 * made.mean(own):.0f}"


def test_sheets_of_an_axis_have_a_column_a_level(axis: pd.DataFrame):
    """By number of tasks, and then their mean, which has no interval."""
    cells = made.where(made.cells(axis), rule="ties", scenario="ideal", protection="none")
    control = made.where(made.cells(axis), protection="control")
    for by, sizes in (("N = 2", (2,)), ("N = 3", (3,)), ("mean over N", (2, 3))):
        title = f"Average normalised accuracy (%) by snr_db, {by}"
        title += f"; {INTERVALS}, ties" if len(sizes) == 1 else ", ties"
        sheet, rows = sheet_of(axis, title, True)
        assert sheet.header[2:] == ["-10", "0", "10"]
        for place, level in enumerate(LEVELS):
            own = [cell for cell in cells if cell["level"] == level and cell["size"] in sizes]
            mean, text = f"{100 * made.mean(own):.0f}", rows["ideal", "none"][place]
            low, high = made.ends(own)
            assert text == (
                mean if len(sizes) > 1 else f"{mean} [{100 * low:.0f}, {100 * high:.0f}]"
            )
        mean = made.mean([cell for cell in control if cell["size"] in sizes])
        assert {text.split()[0] for text in rows["-", "control"]} == {f"{100 * mean:.0f}"}
        assert set(rows) >= {("-", "base"), ("ideal", "r-mtllmf"), ("sum_rate", "none")}


def test_tasks_that_fine_tuning_did_not_teach_are_named_and_left_out(plain: pd.DataFrame):
    weak = plain["task"] == "dtd"
    tuned = (0.9 - 0.39 * weak).to_numpy()
    taught = plain.assign(base_score=0.5, finetuned_score=tuned, normalised=0.5 + 0.5 * weak)
    assert weak_tasks(taught) == ["dtd"]
    assert list(versions(plain)) == [""]
    rest = versions(taught)["without dtd"]
    means = summary(rest).query("protection != 'base'")["mean"]
    assert means.to_numpy() == pytest.approx(0.5)
    lines = verdict(taught)
    assert any("did not teach dtd (51% fine-tuned, 50% head on the base)" in x for x in lines)
    assert any(x.startswith("Without dtd: ") and f" {IDEAL}: R-MTLLMF" in x for x in lines)
    titles = [sheet.title for sheet in all_sheets(taught, spread=False)]
    assert sum(title.endswith(", without dtd") for title in titles) == 1


# Verdict


def test_comparisons_are_paired(table: pd.DataFrame):
    cells, seen = made.cells(table), comparisons(table).to_dict("records")
    protected = made.where(cells, protection="r-mtllmf")
    partners = {
        "base": ["combination"],
        "control": ["combination", "seed"],
        "none": [*KINDS, "combination", "draw", "seed"],
        "freeze": [*KINDS, "combination", "draw", "seed"],
        "realign": [*KINDS, "combination", "draw", "seed"],
    }
    expected = set()
    for cell in protected:
        size = None if cell["axis"] else cell["size"]
        kind = (*(cell[key] for key in KINDS), size)
        expected |= {
            (*kind, against)
            for against, names in partners.items()
            if made.where(cells, protection=against, **{name: cell[name] for name in names})
        }
    found = [tuple(same_cell(row, *KINDS, "size", "against").values()) for row in seen]
    assert len(found) == len(set(found))
    assert set(found) == expected
    for row in seen:
        pairs = []
        sizes = {} if row["axis"] else {"size": row["size"]}
        for cell in made.where(protected, **same_cell(row, *KINDS), **sizes):
            names = {name: cell[name] for name in partners[row["against"]]}
            for other in made.where(cells, protection=row["against"], **names):
                gain = cell["score"] - other["score"]
                pairs.append(cell | {"gain": gain, "other": other["score"]})
        assert row["pairs"] == len(pairs)
        assert row["protected"] == pytest.approx(made.mean(pairs))
        assert row["other"] == pytest.approx(made.mean(pairs, "other"))
        assert row["difference"] == pytest.approx(made.mean(pairs, "gain"))
        assert (row["low"], row["high"]) == pytest.approx(made.ends(pairs, "gain"), nan_ok=True)
        rivals = made.where(seen, **{key: row[key] for key in ("rule", "axis", "scenario")})
        rivals = [
            each
            for each in rivals
            if same_cell(each, "level", "size") == same_cell(row, "level", "size")
        ]
        assert row["strongest"] == (row["other"] == max(each["other"] for each in rivals))


def said_of(table: pd.DataFrame, scenario: str = IDEAL) -> str:
    """Return the sentence of a scenario."""
    (line,) = [line for line in sentences(table) if line.startswith(scenario)]
    return line


@pytest.mark.parametrize(
    ("protected", "words"),
    [
        (
            0.75,
            "beats its strongest rival, realignment alone, at N = 2 (+5 points [5, 5]) and 3 (+5",
        ),
        (
            0.704,
            "cannot be distinguished from its strongest rival, realignment alone, at N = 2 (+0",
        ),
        (
            0.25,
            "is worse than its strongest rival, realignment alone, at N = 2 (-45 points [-45, -",
        ),
    ],
)
def test_a_sentence_says_who_wins_against_the_strongest(
    replicated: pd.DataFrame, protected: float, words: str
):
    values = {"none": 0.5, "r-mtllmf": protected, "control": 0.6, "realign": 0.7}
    said = said_of(flat(replicated, values))
    assert said.startswith(f"{IDEAL}: R-MTLLMF {words}")
    assert "fusing" not in said


def test_a_rival_without_task_vectors_means_that_fusing_brought_nothing(replicated: pd.DataFrame):
    """The strongest one may differ: at N = 3 the base model, of score 0.55."""
    scores = flat(replicated, {"none": 0.4, "r-mtllmf": 0.52, "control": 0.51, "realign": 0.45})
    assert said_of(scores) == (
        f"{IDEAL}: R-MTLLMF beats its strongest rival at N = 2 (the control, +1 points [1, 1]); is "
        "worse than it at N = 3 (the base model, -3 [-3, -3]). At N = 3 fusing brought no "
        "measurable gain: that rival needs no task vectors."
    )


def test_a_half_of_the_repair_is_a_rival(replicated: pd.DataFrame):
    values = {"none": 0.5, "r-mtllmf": 0.75, "control": 0.6, "realign": 0.7, "freeze": 0.8}
    words = "is worse than its strongest rival, freezing alone, at N = 2 (-5 points [-5, -5]) and 3"
    assert said_of(flat(replicated, values)).startswith(f"{IDEAL}: R-MTLLMF {words}")


def test_a_gain_within_its_noise_is_not_called_a_win(replicated: pd.DataFrame):
    odd = (replicated["draw"] + replicated["seed"]) % 2
    gain = (replicated["protection"] == "r-mtllmf") * (0.01 + 0.2 * (2 * odd - 1))
    said = said_of(replicated.assign(normalised=0.6 + gain))
    words = "cannot be distinguished from its strongest rival, the control, at N = 2 (+1 points [-"
    assert said.startswith(f"{IDEAL}: R-MTLLMF {words}")


def test_what_is_hardly_replicated_is_not_judged(plain: pd.DataFrame, replicated: pd.DataFrame):
    values = {"none": 0.5, "r-mtllmf": 0.8, "control": 0.6, "realign": 0.7}
    few = "cannot be judged against its strongest rival, realignment alone, at N = 2 (+10 points "
    alone = (plain["protection"] != "r-mtllmf") | (plain["scenario"] == "ideal")
    assert said_of(flat(plain, values)[alone]) == (
        f"{IDEAL}: R-MTLLMF {few}[10, 10]) and 3 (+10 [10, 10]): fewer than five combinations, "
        "realisations or seeds."
    )
    once = replicated["combination"].isin(["dtd+mnist", "dtd+mnist+svhn"])
    once &= (replicated["draw"] == 0) & (replicated["seed"] == 0)
    once &= (replicated["protection"] != "r-mtllmf") | (replicated["scenario"] == "ideal")
    said = said_of(flat(replicated, values)[once])
    assert "at N = 2 (+10 points) and 3 (+10): fewer than five" in said


def test_what_is_hardly_replicated_is_one_sentence(plain: pd.DataFrame, replicated: pd.DataFrame):
    """However many scenarios and protections; what can be judged has its own sentences."""
    two = pd.concat([plain, plain.query("protection == 'r-mtllmf'").assign(protection="phy")])
    lead = "Too few combinations, realisations or seeds (fewer than five) for a verdict on "
    both = "R-MTLLMF, Physical layer alone"
    names = ["Clean (no noise)", IDEAL, "Sum-rate attack", "a_new_attack"]
    assert sentences(two) == [lead + "; ".join(f"{name}: {both}" for name in names) + "."]
    some = (replicated["scenario"] != "sum_rate") | (replicated["draw"] < 2)
    *judged, last = sentences(replicated[some])
    assert [line.partition(":")[0] for line in judged] == [IDEAL]
    assert last == f"{lead}Clean (no noise): R-MTLLMF; Sum-rate attack: R-MTLLMF."


def test_samples_of_its_own_mean_a_control_of_its_own(replicated: pd.DataFrame):
    """Which has no verdict either, and no uplink."""
    own = "reload+realign(shots=5)"
    names = {"r-mtllmf": own, "control": f"from_base+{own}"}
    table = replicated.replace({"protection": names})
    values = {"none": 0.3, "realign": 0.4, own: 0.6, f"from_base+{own}": 0.8}
    said = sentences(flat(table, values))
    assert said_of(flat(table, values)).startswith(
        f"{IDEAL}: {own} is worse than its strongest rival, the control, at N = 2 (-20 points"
    )
    assert not [line for line in said if "from_base" in line]
    assert replication(table) == replication(replicated)
    _, rows = sheet_of(table, "Average normalised accuracy (%) by number of tasks", False)
    assert ("-", f"from_base+{own}") in rows
    usual = flat(
        pd.concat([table, replicated], ignore_index=True),
        values | {"control": 0.9, "r-mtllmf": 0.2},
    )
    (line,) = [each for each in sentences(usual) if each.startswith(f"{IDEAL}: {own}")]
    assert "the control, at N = 2 (-20 points" in line


def test_the_strongest_rival_is_that_of_the_same_channels():
    """Realignment was computed for the first and worst of them alone."""
    rows = made.results(("ideal",), protections=("none", "r-mtllmf", "phy"), draws=10)
    rows = rows[(rows["protection"] != "r-mtllmf") | (rows["draw"] < 5)]
    better = 0.4 * (rows["draw"] >= 5)
    values = rows["protection"].map({"phy": 0.4, "none": 0.3, "r-mtllmf": 0.45, "control": 0.1})
    table = rows.assign(normalised=values + better, base_score=0.0)
    found = comparisons(table, "phy")
    assert found.loc[found["against"] == "none", "other"].min() > 0.45
    assert set(found.loc[found["strongest"], "against"]) == {"r-mtllmf"}
    (line,) = [each for each in sentences(table) if "Physical layer alone" in each]
    assert "is worse than its strongest rival, R-MTLLMF, at N = 2 (-5 points" in line


def test_a_clean_merge_stands_for_all_seeds():
    rows = made.results(("clean",), protections=("none", "r-mtllmf"), seeds=6)
    rows = rows[(rows["protection"] != "none") | (rows["seed"] == 0)]
    first = (rows["protection"] == "r-mtllmf") & (rows["seed"] == 0)
    values = {"none": 0.8, "r-mtllmf": 0.95, "control": 0.1}
    table = flat(rows, values)
    found = comparisons(table.assign(normalised=table["normalised"] - 0.25 * first))
    gain = found.loc[found["against"] == "none", "difference"]
    assert gain.to_list() == pytest.approx([0.15 - 0.25 / 6] * 2)


def test_a_merge_of_a_fine_tuning_stands_for_the_seeds_that_follow():
    """A random one has seeds of its own."""
    cells = pd.DataFrame({"rule": [*"aaabb"], "seed": [0, 2, 2, 1, 3], "score": range(5)})
    found = for_seeds(cells, pd.Series([3, 1, 0, 1]))
    expected = [["a", 0, 0], ["a", 1, 0], ["a", 3, 1], ["a", 3, 2], ["b", 1, 3], ["b", 3, 4]]
    assert found.to_numpy().tolist() == expected
    assert for_seeds(cells, pd.Series([], dtype=int)).empty
    assert for_seeds(cells.iloc[:0], pd.Series([1])).empty


def test_sentences_without_anything_to_compare_say_so(plain: pd.DataFrame):
    alone = plain[(plain["protection"] == "r-mtllmf") & (plain["scenario"] == "ideal")]
    (said,) = sentences(alone)
    assert "its strongest rival, the base model" in said
    assert "cannot be said" in sentences(plain[plain["protection"] != "r-mtllmf"])[0]


def test_an_axis_is_one_sentence_with_the_levels_of_each_outcome():
    kinds = {"protections": ("none", "r-mtllmf"), "axis": "snr_db", "levels": LEVELS}
    rows = made.results(**kinds, draws=5)
    values = rows["protection"].map({"none": 0.6, "control": 0.58})
    values = values.fillna(rows["level"].map({-10.0: 0.4, 0.0: 0.6, 10.0: 0.7})).fillna(0.9)
    assert said_of(rows.assign(normalised=values)) == (
        f"{IDEAL}, mean over N: R-MTLLMF beats its strongest rival, unprotected, at snr_db = 10 "
        "(+10 points [10, 10]); cannot be distinguished from it at snr_db = 0 (+0 [0, 0]); is "
        "worse than it at snr_db = -10 (-20 [-20, -20])."
    )
    *several, few = sentences(made.results(rules=RULES, **kinds, draws=5))
    assert len(several) == 4
    assert all(line.startswith(("Task arithmetic, ", "Ties, ")) for line in several)
    assert few.endswith(
        "Task arithmetic, Clean (no noise): R-MTLLMF; Ties, Clean (no noise): R-MTLLMF."
    )


def test_what_is_resampled_is_said(plain: pd.DataFrame, axis: pd.DataFrame):
    what, counts = replication(plain)
    assert "bootstrap" in what
    assert counts == ("Combinations: 3 of N = 2 and 1 of N = 3; channel realisations: 2; seeds: 2.")
    assert [line.partition(":")[0] for line in replication(axis)[1:]] == [
        *("Task arithmetic", "Ties"),
        *("Task arithmetic, along snr_db", "Ties, along snr_db"),
    ]


# Reading


def test_tables_are_read_as_written(tmp_path: Path, table: pd.DataFrame):
    """Those of older sweeps too: other names, task arithmetic, no axis."""
    table.to_parquet(tmp_path / "results.parquet")
    names = [name for name in table if name != "size"]
    read = read_results(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(read[names], table[names].reset_index(drop=True))
    old_names = {new: old for old, new in RENAMED.items()}
    new = made.results()
    old = new.drop(columns=["rule", "axis", "level"]).rename(columns=old_names)
    old.to_parquet(tmp_path / "results.parquet")
    made.cosines().to_parquet(tmp_path / "cosines.parquet")
    curve = made.scales().drop(columns="rule").rename(columns=old_names)
    curve.to_parquet(tmp_path / "scales.parquet")
    pd.testing.assert_frame_equal(
        read_results(tmp_path / "results.parquet"), new, check_like=True, check_dtype=False
    )
    cosines = read_cosines(tmp_path / "cosines.parquet")
    assert set(cosines["rule"]) == {"task_arithmetic"}
    assert set(cosines["axis"]) == {""}
    assert cosines["cosine"].tolist() == made.cosines()["cosine"].tolist()
    scales = read_scales(tmp_path / "scales.parquet")
    assert set(scales["rule"]) == {"task_arithmetic"}
    assert scales["normalised"].tolist() == made.scales()["normalised"].tolist()
    pd.testing.assert_frame_equal(summary(old), summary(new))


@pytest.mark.parametrize("read", [read_results, read_cosines, read_scales])
def test_missing_and_truncated_tables_are_named(tmp_path: Path, read: Any):
    path = tmp_path / "table.parquet"
    with pytest.raises(InputError, match=r"table\.parquet: no such file"):
        read(path)
    pd.DataFrame({"unknown": [1]}).to_parquet(path)
    whole = path.read_bytes()
    with pytest.raises(InputError, match=r"table\.parquet: lacks the columns .*; it has unknown"):
        read(path)
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"table\.parquet: not a whole parquet file"):
            read(path)


SPOILT = {
    "no rows": lambda t: t.iloc[:0],
    r"more than once .*level=": lambda t: pd.concat([t, t.iloc[:1]]),
    r"tasks, expected [23]\..*level=": lambda t: t.iloc[1:],
    "lacks the columns seed, mse; it has": lambda t: t.drop(columns=["seed", "mse"]),
    "normalised is nan": lambda t: t.assign(normalised=math.nan),
    "column score is not float": lambda t: t.assign(score="0.5"),
    r"column score is not float \(.*bool": lambda t: t.assign(score=True),
    "column seed is not int .*not a whole number": lambda t: t.assign(seed=0.5),
    "score is 7.0; expected .* from 0 to 1": lambda t: t.assign(score=7.0),
    "finetuned_score is 1.01": lambda t: t.assign(finetuned_score=1.01),
    "base_score is -0.1": lambda t: t.assign(base_score=-0.1),
    "normalised is -0.1; .* >= 0": lambda t: t.assign(normalised=-0.1),
    "is 0.5 where .* expected the quotient": lambda t: t.assign(normalised=0.5),
    "expected the quotient": lambda t: t.assign(finetuned_score=0.0),
    "mse is -1.0": lambda t: t.assign(mse=-1.0),
    "mse_mean is inf": lambda t: t.assign(mse_mean=math.inf),
    "scale is inf": lambda t: t.assign(scale=math.inf),
    "kappa is -inf": lambda t: t.assign(kappa=-math.inf),
    "draw is -1": lambda t: t.assign(draw=t["draw"] - 1),
    "is none of the combination": lambda t: t.assign(task="x" + t["task"]),
    "axis is 'snr_db' and level inf;": lambda t: t.assign(level=t["level"].replace(0.0, math.inf)),
    "axis is '' and level (-10|0|10).0": lambda t: t.assign(axis=""),
    "axis is 'snr_db' and level nan": lambda t: t[t["level"] == 0.0].assign(level=math.nan),
    "column level is not float": lambda t: t.assign(level="high"),
    "column axis .* is not allowed": lambda t: t.assign(axis="x/../../escaped", level=1.0),
    "column scenario .* is not allowed": lambda t: t.assign(scenario="<script>"),
    "column rule .* is not allowed": lambda t: t.assign(rule="a\x1b[31m"),
    "column rule is not str": lambda t: t.assign(rule=None),
    "column draw is not int": lambda t: t.assign(draw=t["draw"].where(t.index > 0)),
    "column task is not str": lambda t: t.assign(task=t["task"].where(t.index > 0)),
}


@pytest.mark.parametrize("message", SPOILT)
def test_spoilt_results_are_refused(tmp_path: Path, axis: pd.DataFrame, message: str):
    path = tmp_path / "results.parquet"
    SPOILT[message](axis).to_parquet(path)
    with pytest.raises(InputError, match=rf"results\.parquet: .*{message}"):
        read_results(path)


def test_spoilt_scales_and_cosines_are_refused(tmp_path: Path):
    path = tmp_path / "table.parquet"
    pd.concat([made.scales(), made.scales().iloc[:1]]).to_parquet(path)
    with pytest.raises(InputError, match=r"table\.parquet: .*more than once"):
        read_scales(path)
    made.cosines().assign(cosine=1.1).to_parquet(path)
    with pytest.raises(InputError, match=r"table\.parquet: cosine is 1\.1"):
        read_cosines(path)


# The merging coefficient


def test_best_scales_and_whether_they_are_at_the_edge():
    best = best_scales(made.scales())
    assert best["size"].tolist() == [2, 3]
    assert best["scale"].tolist() == [0.3, 0.1]
    assert best["mean"].tolist() == pytest.approx([0.9, 0.85])
    assert best["low"].tolist() == [False, True]
    assert not best["high"].any()
    tied = made.scales().assign(normalised=0.5)
    assert best_scales(tied)["scale"].tolist() == [0.1, 0.1]
    rising = made.scales().assign(normalised=made.scales()["scale"])
    assert best_scales(rising)["high"].all()


def test_the_scale_sheet_stands_next_to_the_public_law():
    sheet = scale_sheet(made.results(), made.scales())
    assert sheet is not None
    assert sheet.header[2:] == ["2", "3"]
    assert {row[1]: row[2:] for row in sheet.rows} == {
        "used": ["0.3", "0.3"],
        "best on validation": ["0.3", "0.1 (edge)"],
        "there, on validation": ["90", "85"],
        "published fit 1.13 N^-0.655": [f"{1.13 * n**-0.655:.2f}" for n in (2, 3)],
    }
    assert scale_sheet(made.results(protections=()), None) is None
