"""What the pages of experiments/ conclude: computed from their tables, as far as they decide it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cosine_study
import defences
import disentanglement
import figure_2
import figure_5
import frontier
import hypothesis_test
import learned_attack
import link_study
import merge_rules
import noise_scale
import numpy as np
import pandas as pd
import power_control
import pytest
import realign_choice
import sensitivity
import testbed
from study import (
    FAILS,
    HOLDS,
    OPEN,
    at_the_ends,
    caution,
    claimed,
    gap,
    grouped,
    quotient,
    sign,
    stands,
)

from rmtllmf_jax.gradients import Sensitivity
from rmtllmf_jax.report.intervals import Interval
from rmtllmf_jax.report.vector_figures import DRAWN, largest_cosine

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/README.md")))
def test_a_page_says_under_its_command_what_it_shows(name: str):
    page = (RESULTS / name / "README.md").read_text("utf-8")
    assert "docstring of the script" not in page
    title, made, *rest = page.split("\n\n")
    assert title.startswith("# ")
    assert "`python experiments/" in made
    before = list(itertools.takewhile(lambda part: part[:1] not in ("#", "|", "!"), rest))
    assert before, "no paragraph before the first table"


# What the conclusions share


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Interval(0.1, 0.05, 0.2, 5), 1),
        (Interval(-0.1, -0.2, -0.05, 5), -1),
        (Interval(0.1, -0.05, 0.2, 5), 0),
        (Interval(0.1, 0.0004, 0.2, 5), 0),  # 0.0 as printed
        (Interval(0.1, 0.05, 0.2, 4), 0),
        (Interval(0.1), 0),
    ],
)
def test_the_side_of_zero(found: Interval, expected: int):
    assert sign(found) == expected
    words = {1: "beats", -1: "loses to", 0: "cannot be distinguished from"}[expected]
    if found.levels < 5:
        number = "1 cell" if found.levels == 1 else "4 cells"
        words = f"cannot be judged on {number} against"
        assert caution([Interval(0.0, 0.0, 0.0, 9), found], "cells") != ""
    else:
        assert caution([found], "cells") == ""
    assert stands(found, "beats", "loses to", "cell") == words


@pytest.mark.parametrize(
    ("low", "high", "levels", "expected"),
    [
        (0.25, 0.4, 5, HOLDS),
        (0.1, 0.15, 5, FAILS),
        (0.6, 0.9, 5, FAILS),
        (0.1, 0.3, 5, OPEN),
        (0.25, 0.4, 4, OPEN),
    ],
)
def test_a_claim_is_of_the_whole_interval(low: float, high: float, levels: int, expected: str):
    assert claimed(Interval((low + high) / 2, low, high, levels), 0.21, 0.53) == expected


def test_words_are_grouped():
    assert (
        grouped([("beat", "a"), ("lose to", "b"), ("beat", "c")]) == "beat a and c, and lose to b"
    )


def test_a_gap_is_of_pairs_and_resamples_what_comes_first():
    """Channels of a cell are no replication: the interval is that of three cells."""
    rows = strips("control", {"a": 0.5, "b": 0.4}, cells=3, per_cell=50, shift={"a": 0.1})
    found = gap(rows, "control", "a", "b", "cell", "channel")
    assert found.levels == 3
    assert found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.3)


def test_a_quotient_is_of_the_means():
    cells = pd.DataFrame({"a": [1.0, 2.0, 3.0, 6.0, 3.0], "b": [2.0, 2.0, 1.0, 3.0, 2.0]})
    found = quotient(cells.assign(draw=range(5)), "a", "b", ("draw",))
    assert found.mean == pytest.approx(1.5)
    assert found.low < 1.5 < found.high
    alike = quotient(cells.assign(a=2 * cells["b"], draw=range(5)), "a", "b", ("draw",))
    assert (alike.low, alike.high) == pytest.approx((2.0, 2.0))


# Learned attacks and powers


def strips(
    column: str,
    means: Mapping[str, float],
    cells: int = 6,
    per_cell: int = 1,
    shift: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Accuracies by cell and channel: a common effect of the cell, and `shift` times its number."""
    return pd.DataFrame(
        {
            "cell": cell,
            "channel": channel,
            "draw": cell,
            column: name,
            "accuracy": mean
            + 0.01 * (cell % 3)
            + 0.001 * channel
            + (shift or {}).get(name, 0) * cell,
            "mse": 0.1,
        }
        for cell in range(cells)
        for channel in range(per_cell)
        for name, mean in means.items()
    )


ATTACKS = {"none": 0.8, "sum_rate": 0.5, "sum_mse": 0.45, "learned": 0.4}


def attacks(**changes: Any) -> str:
    given = {"channels": 6} | changes
    channels = given.pop("channels")
    rows = strips("attack", ATTACKS | given, cells=channels).drop(columns="channel")
    return learned_attack.conclusion(rows.rename(columns={"cell": "channel"}))


def test_the_learned_attack_is_compared_with_its_strongest_rival_and_p1_with_the_worst():
    said = attacks()
    assert "The learned attack leaves 41.0" in said
    assert "It leaves less than `sum_mse`" in said
    assert "(-5.0 [-5.0, -5.0] points, channel by channel): it is the worst for accuracy" in said
    assert "P1 (`sum_rate`) leaves more than `learned`" in said
    assert "+10.0" in said
    assert said.endswith("it is not the worst for accuracy.")


def test_another_strongest_attack_is_named():
    said = attacks(learned=0.6, sum_rate=0.3)
    assert "It leaves more than `sum_rate`" in said
    assert "P1 (`sum_rate`) leaves less than `sum_mse`" in said
    assert said.endswith("it is the worst for accuracy.")


def test_alike_attacks_and_few_channels_decide_nothing():
    assert "It cannot be distinguished from `sum_mse`" in attacks(learned=0.45)
    said = attacks(channels=3)
    assert said.count("cannot be judged on 3 channels") == 2
    assert "the worst for accuracy" not in said


POWERS = {"full power": 0.5, "full inversion": 0.2, "max-min MSE": 0.45, "learned": 0.53}


def powers(cells: int = 6, **changes: float) -> str:
    return power_control.conclusion(strips("control", POWERS | changes, cells, per_cell=4))


def test_powers_are_compared_with_the_strongest_rival_cell_by_cell():
    said = powers()
    assert "+3.0 [3.0, 3.0] points over full power (their strongest rival)" in said
    assert "+33.0 [33.0, 33.0] points over full inversion (the worst control)" in said
    assert said.endswith("They beat full power and full inversion.")
    said = powers(**{"max-min MSE": 0.6})
    assert "-7.0 [-7.0, -7.0] points over max-min MSE (their strongest rival)" in said
    assert "full power (the paper's)" in said
    assert said.endswith("They fall behind max-min MSE, and beat full power and full inversion.")


def test_equal_powers_and_few_cells_decide_nothing():
    said = powers(learned=0.5)
    assert "cannot be distinguished from full power" in said
    assert said.endswith("In every channel of every cell they are as accurate as full power.")
    assert "They cannot be judged on 3 cells against full power" in powers(cells=3)
    assert "They cannot be judged on 1 cell against full power" in powers(cells=1)


# Sensitivity

LEAVES = {"nothing": 0.3, "embeddings": 0.34, "most sensitive": 0.33, "everything": 0.6}
LEAVES |= {"random 0": 0.31, "random 1": 0.29}


def leaves(draws: int = 8, shift: Mapping[str, float] | None = None, **changes: float) -> str:
    named = {name.replace("_", " "): value for name, value in changes.items()}
    rows = strips("protected", LEAVES | named, draws, shift=shift)
    layers = pd.DataFrame({"a": [-0.03, -0.01], "b": [-0.03, -0.01]}, ["embeddings", "layernorm"])
    return sensitivity.conclusion(rows.drop(columns="channel"), layers, 0.028)


def test_whether_a_small_set_of_leaves_holds_the_damage():
    said = leaves()
    assert "The noise costs 30.0 [30.0, 30.0] points. Without it in at most 2.8 % of the" in said
    assert "+4.0 [4.0, 4.0] (embeddings), +3.0 [3.0, 3.0] (most sensitive)" in said
    assert "none of these sets holds 50 % of the damage" in said
    assert "fall behind the embeddings, and beat the random leaves" in said
    assert "75 % lie in embeddings and 25 % lie in layernorm" in said
    said = leaves(most_sensitive=0.5)
    assert "the best of these sets holds at least 50 % of the damage" in said
    assert "beat the embeddings and the random leaves" in said


def test_what_draws_cannot_tell_of_leaves():
    said = leaves(embeddings=0.38, shift={"embeddings": 0.02})  # +8 to +22 of 30 points
    assert "whether the best of these sets holds 50 % of the damage cannot be said" in said
    assert "cannot be distinguished from the embeddings" in leaves(most_sensitive=0.34)
    for said in (leaves(draws=4), leaves(everything=0.3)):
        assert said.endswith("where the noise hurts cannot be said.")


@pytest.mark.parametrize(("room", "best"), [(8, {"b", "c"}), (7, {"a"}), (3, set())])
def test_the_most_sensitive_leaves_gain_most_together(room: int, best: set[str]):
    """A small leaf with a large gain per parameter may leave no room for a better one."""
    mean = np.array([[-4.0, -3.0, -2.5, 0.1], [-1.0, 0.0, -0.5, 0.1]])
    found = Sensitivity(mean, np.zeros_like(mean), ("a", "b", "c", "d"), (6, 4, 4, 2))
    assert sensitivity.best_leaves(found, room) == best


# Figure 5


def ablation(combinations: int = 6, draws: int = 5, **changes: float) -> str:
    """Scores by variant and samples per class; one scenario, all pairs with the same gaps."""
    scores = {"freeze": 0.5, "realign": 0.55, "r-mtllmf": 0.9, "more": 0.92, "less": 0.7}
    scores |= {"patch": 0.9} | changes
    kinds = [
        ("halves", "none", 0, 0.45),
        ("halves", "freeze", 0, scores["freeze"]),
        ("halves", "realign", 10, scores["realign"]),
        ("halves", "r-mtllmf", 10, scores["r-mtllmf"]),
        ("shots", "r-mtllmf", 1, scores["less"]),
        ("shots", "r-mtllmf", 50, scores["more"]),
        ("frozen", "frozen: patch", 10, scores["patch"]),
        ("unfused", "base", 0, 0.6),
        ("unfused", "control", 10, 0.95),
    ]
    rows = [
        {"combination": f"c{number}", "size": 4, "scenario": "sum_rate", "draw": draw, "seed": 0}
        | {"group": group, "variant": variant, "shots": shots, "score": score + 0.01 * number}
        for number, draw in itertools.product(range(combinations), range(draws))
        for group, variant, shots, score in kinds
    ]
    return figure_5.conclusion(pd.DataFrame(rows))


def test_what_holds_of_the_ablation():
    said = ablation()
    assert "Freezing alone is worse than both halves by 40 [40, 40] (sum_rate) points" in said
    assert said.count("21 to 53 holds under sum_rate") == 2
    assert "Against both halves the base model, which fuses nothing, has -30 [-30, -30]" in said
    assert "Against both halves the control, which fuses nothing, has +5 [5, 5]" in said
    assert "50 samples per class instead of 10 bring +2 [2, 2] (sum_rate) points" in said
    assert "at most 5, holds under sum_rate" in said
    assert said.endswith("in place of the embeddings makes no measurable difference.")
    said = ablation(realign=0.88, more=0.99, patch=0.8)
    assert "Realignment alone is worse than both halves by 2 [2, 2] (sum_rate)" in said
    assert "21 to 53 does not hold under sum_rate" in said
    assert "at most 5, does not hold under sum_rate" in said
    assert said.endswith("brings -10 [-10, -10] (patch, sum_rate) points.")


@pytest.mark.parametrize(("combinations", "draws"), [(4, 4), (4, 1), (6, 4)])
def test_four_channels_decide_nothing_of_the_ablation(combinations: int, draws: int):
    """Of however many combinations: all are sent over the same channels."""
    said = ablation(combinations, draws)
    assert said.count("cannot be decided under sum_rate") == 3
    assert said.endswith(f"So few combinations and draws ({draws}) decide nothing.")


# Figures 3 and 4


def cosines(scenario: str, values: Mapping[str, tuple[float, float]], draws: int = 6) -> str:
    """Cosines of two pairs of tasks by error model; `values` those of the pairs."""
    rows = []
    for (model, pairs), draw, protection in itertools.product(
        values.items(), range(draws), ("none", "freeze")
    ):
        for (a, b), cosine in zip((("x", "y"), ("x", "z")), pairs, strict=True):
            row = {"error_model": model, "protection": protection, "seed": 0, "task_a": a}
            row |= {"task_b": b, "sign_agreement": 0.5}
            noise = 0.01 * (-1) ** draw
            less = 0.05 if protection == "freeze" and model == "reloading" else 0.0
            rows.append(row | {"scenario": "clean", "draw": 0, "cosine": 0.07})
            received = {"scenario": scenario, "draw": draw, "cosine": cosine + noise - less}
            rows.append(row | received)
    table = pd.DataFrame(rows).drop_duplicates()
    printed = str(cosine_study.summary(table).rows)
    assert " [" in printed
    assert "±" not in printed
    return cosine_study.conclusion(table, scenario)


@pytest.mark.parametrize(("largest", "drawn"), [(0.004, False), (0.006, True), (-0.006, True)])
def test_cosines_that_all_round_to_zero_are_not_drawn(largest: float, drawn: bool):
    pairs = [("x", "x", 1.0), ("x", "y", largest), ("x", "z", 0.001)]
    table = pd.DataFrame(pairs, columns=["task_a", "task_b", "cosine"]).assign(scenario="ideal")
    sent = table.assign(scenario="clean", cosine=0.5)
    every = pd.concat([table, sent]).assign(protection="none")
    assert (largest_cosine(every[every["scenario"] == "ideal"]) >= DRAWN) == drawn


def test_under_which_errors_the_papers_cosines_are_found():
    values = {"independent": (0.0, 0.02), "noisy_reference": (0.45, 0.6)}
    said = cosines("ideal", values)
    assert "with independent errors that holds: 0.010" in said
    assert "with noisy_reference errors that does not hold: 0.525" in said
    assert "0.450 to 0.600 by pair" in said
    assert said.endswith("Reloading the embeddings changes no mean measurably.")
    said = cosines("sum_rate", {"independent": (0.0, 0.02), "halfway": (0.495, 0.505)})
    assert "with independent errors that does not hold" in said
    assert "with halfway errors that holds" in said


def test_reloading_and_few_draws_are_told():
    said = cosines("sum_rate", {"reloading": (0.52, 0.53)})
    assert "changes their mean by -0.050 [-0.050, -0.050] with reloading errors" in said
    assert "that cannot be decided" in said
    said = cosines("ideal", {"independent": (0.0, 0.02)}, draws=4)
    assert "that cannot be decided" in said
    assert said.endswith("So few draws (4) decide nothing.")


# Disentanglement


def interference(noise: float, number: int = 6, clean: float = 0.2) -> str:
    """Errors of so many combinations of each size, over as many channels."""
    rows = [
        {"combination": f"{size}-{place}", "size": size, "scenario": scenario, "draw": draw}
        | {"task": task, "wde": clean + 0.01 * place + added, "distance": "disagreement"}
        for size, place, task in itertools.product((2, 3), range(number), "ab")
        for scenario, draws, added in (("clean", 1, 0.0), ("ideal", number, noise))
        for draw in range(draws)
    ]
    table = pd.DataFrame(rows)
    assert "±" not in str(disentanglement.sizes_sheet(table, "share"))
    return disentanglement.conclusion(table)


def test_what_noise_adds_to_merging():
    said = interference(0.1)
    assert "+0.10 [0.10, 0.10] and +0.10 [0.10, 0.10] under ideal" in said
    assert "(measurable at N = 2 and 3)" in said
    assert said.endswith("Nowhere does it measurably add more than merging itself.")
    assert interference(0.6).endswith("more than merging itself under ideal at N = 2 and 3.")


def test_noise_that_adds_nothing_and_few_combinations():
    assert "(measurable at no N)" in interference(0.0)
    said = interference(0.1, number=3)
    assert "(measurable at no N)" in said
    assert said.endswith("At N = 2 and 3 so few combinations and draws decide nothing.")


# Hypothesis test


def first_order(ratio: float, rest: float, tasks: int = 6) -> str:
    """Spreads at three MSEs; the second task's ratio is `ratio` at the second and the third."""
    rows = [
        {"combination": "c", "size": 2, "task": f"t{task}", "mse": mse, "ratio_robust": own}
        | {"ratio_spread_error": 0.0, "own_ratio_law": 0.06, "changed_measured": 0.2}
        | {"own_measured": 0.06 + rest + 0.001 * task}
        for task in range(tasks)
        for mse, own in ((0.001, 1.0), (0.0129, ratio if task == 1 else 1.0), (0.208, ratio))
    ]
    return hypothesis_test.conclusion(pd.DataFrame(rows), 0.95)


def test_where_the_first_order_ends_for_every_pair():
    said = first_order(1.3, 0.05)
    assert "for each of 6 pairs of combination and task up to an MSE of 0.001" in said
    assert "for their median up to an MSE of 0.0129" in said
    assert "of the preset's scenarios, none for every pair" in said
    assert "With a nominal rate of 5 %, at 0.0129 (ideal) 11.2" in said
    assert "to which curvature adds +5.2 [5.1, 5.4] points" in said
    assert "spreads are 1.00 to 1.30 of the predicted" in said
    said = first_order(1.05, 0.0)
    assert "up to an MSE of 0.208, for their median up to an MSE of 0.208" in said
    assert "ideal and sum rate for every pair" in said


def test_curvature_that_does_not_show_and_few_tasks():
    assert "curvature adds nothing measurable" in first_order(1.0, -0.0025)
    said = first_order(1.0, 0.05, tasks=2)
    assert "curvature adds nothing measurable" in said
    assert said.endswith("So few tasks (2) decide nothing.")


# Merge methods


def methods(combinations: int = 6, seeds: int = 1, control: float = 0.58, **scores: float) -> str:
    given = {"task_arithmetic": 0.7, "ties(density=[0.1, 0.2])": 0.75, "regmean": 0.8}
    given |= {"lata(weighting=threshold, sigma=[0.0, 0.1])": 0.72, "average": 0.6}
    given |= {"adamerging(granularity=task, initial=[0.1])": 0.5} | scores
    cells = list(itertools.product((2, 3), range(combinations), range(seeds), "ab"))
    rows = [
        {"combination": f"{size}-{number}", "size": size, "seed": seed, "task": task}
        | {"rule": rule, "method": rule, "scale": 0.3, "protection": protection}
        | {"normalised": score + 0.01 * number, "base_score": 0.5, "finetuned_score": 0.9}
        for protection, scores in (("none", given), ("control", {"task_arithmetic": control}))
        for rule, score in scores.items()
        for size, number, seed, task in cells
    ]
    return merge_rules.conclusion(pd.DataFrame(rows))


def test_which_method_is_best():
    said = methods()
    assert "next: regmean beats ties at N = 2 (+5 [5, 5] points) and 3 (+5 [5, 5] points)" in said
    assert "merges nothing: regmean beats control at N = 2 (+22 [22, 22] points)" in said
    assert "see task vectors alone, and of the others: ties is worse than regmean at N = 2" in said
    layers = "layer-wise weights and task arithmetic: lata(weighting=threshold) "
    assert layers + "beats task_arithmetic at N = 2 (+2" in said
    said = methods(average=0.9, task_arithmetic=0.76)
    assert "next: average beats regmean at N = 2 (+10" in said
    assert layers + "is worse than task_arithmetic at N = 2 (-4" in said


def test_alike_methods_and_one_combination_decide_nothing():
    assert "ties cannot be distinguished from regmean at N = 2 (+0" in methods(regmean=0.75)
    said = methods(combinations=1)
    assert "regmean cannot be judged on 1 replicate against ties at N = 2 (+5 points)" in said
    assert "beats" not in said
    two = methods(combinations=1, seeds=2)
    assert "regmean cannot be judged on 2 replicates against ties at N = 2 (+5 [5, 5] po" in two


def test_a_control_that_beats_every_merge_is_said_to():
    said = methods(control=0.9)
    assert "merges nothing: regmean is worse than control at N = 2 (-10 [-10, -10] points)" in said
    assert "The best method and the next: regmean beats ties" in said
    assert "merges nothing: regmean beats base at N = 2 (+27 [" in methods(control=0.5)


def test_coefficients_at_the_end_of_those_tried_are_named():
    tried = itertools.product(("average", "ties(density=[0.1, 0.2])"), (2, 4), (0.2, 1.0, 5.0))
    candidates = pd.DataFrame(tried, columns=["rule", "size", "scale"])
    fisher = pd.DataFrame([("fisher", 2, 1.0)], columns=candidates.columns)  # one for all
    candidates = pd.concat([candidates, fisher])
    chosen = candidates.assign(protection="none")
    inside = chosen[chosen["scale"] == 1.0]
    assert at_the_ends({"results": inside, "scales": candidates}).startswith("No coefficient")
    ends = chosen[chosen["scale"].eq(5.0) | chosen["rule"].eq("fisher")]
    base = ends.assign(protection="base", scale=0.0)
    said = at_the_ends({"results": pd.concat([base, ends, inside]), "scales": candidates})
    assert said.endswith("beyond it: average (N = 2 and 4) and ties (N = 2 and 4).")
    assert at_the_ends({"results": inside}) == ""


# The noise scale


def by_noise(draws: int = 6, **leads: float) -> str:
    """Cells of R-MTLLMF at three levels, and the control, which has half of the accuracy."""
    rows = [
        {"combination": "a+b", "size": 2, "scenario": scenario, "protection": "r-mtllmf"}
        | {"axis": "c0_db", "level": level, "draw": draw, "seed": 0, "score": 0.5 + lead}
        for level, lead in ((-20.0, 0.2), (-30.0, leads["middle"]), (-40.0, leads["last"]))
        for scenario, draw in itertools.product(("strongest_user", "sum_rate"), range(draws))
    ]
    control = {"scenario": "clean", "protection": "control", "axis": "", "level": np.nan}
    rows.append(rows[0] | control | {"score": 0.5})
    return noise_scale.rivalry(pd.DataFrame(rows))


def test_down_to_which_noise_scale_it_is_worth_sending():
    said = by_noise(middle=0.1, last=-0.1)
    assert said.startswith(
        "Where it leads least under the attacks, R-MTLLMF beats the control at c0 = -30 dB "
        "(+10.0 [10.0, 10.0] points, Strongest-user attack, N = 2) and loses to the control at "
        "c0 = -40 dB (-10.0"
    )
    said = by_noise(middle=0.0, last=-0.1)
    assert "beats the control at c0 = -20 dB" in said
    assert "cannot be distinguished from the control at c0 = -30 dB" in said
    assert "loses to the control at c0 = -40 dB" in said
    assert by_noise(middle=0.1, last=0.1).count("c0") == 1
    assert "cannot be judged on 4 levels" in by_noise(draws=4, middle=0.1, last=-0.1)


def test_what_needs_no_uplink_stands_beside():
    rows = [("base", 0.6), ("base", 0.64), ("control", 0.7), ("none", 0.9), ("r-mtllmf", 0.95)]
    table = pd.DataFrame(rows, columns=["protection", "mean"]).assign(scenario="clean")
    noisy = table.assign(scenario="ideal", mean=0.1)
    assert noise_scale.unsent(pd.concat([table, noisy])) == (
        "Without an uplink the base model has 62 %, the control 70 % and the tasks merged 90 %."
    )


# The link


def link(ratio: float, cost: float, channels: int = 6) -> str:
    links = {"surrogate": 1.0, "analogue": ratio, "qam64": 9.0, "qam64_propagated": 10.0}
    mse = [
        {"attack": attack, "link": name, "ratio": value, "low": value - 0.01}
        | {"high": value + 0.01, "channels": channels}
        for attack, (name, value) in itertools.product(("none", "sum_rate"), links.items())
    ]
    errors = [
        {"attack": "none", "link": name, "kurtosis": 3 * value} for name, value in links.items()
    ]
    best = [(0.001, "qam256"), (0.002, "qam256"), (0.003, ""), (0.005, "qam64")]
    tables = {
        "mse": pd.DataFrame(mse),
        "distribution": pd.DataFrame(errors),
        "best": pd.DataFrame(best, columns=["mu", "best"]),
    }
    left = {"surrogate": 0.7, "analogue": 0.7, "qam64": 0.6, "gaussian_of_qam64": 0.6 + cost}
    left |= {"qam64_propagated": 0.6 - cost}
    draws = [
        {"attack": attack, "link": name, "channel": channel, "accuracy": value - 0.01 * channel}
        for (name, value), channel in itertools.product(left.items(), range(channels))
        for attack, value in (("none", 0.75), ("sum_rate", value))
    ]
    return link_study.conclusion(tables, pd.DataFrame(draws))


def test_for_which_links_the_surrogate_is_right():
    said = link(1.0, 0.02)
    assert "has the error power of analogue (kurtosis 3.00 to 3.00). That is not found for" in said
    assert "whose error power is 9 to 10 times mu" in said
    assert "Under sum_rate" in said
    assert "+0.0 [0.0, 0.0] (analogue) to -12.0 [-12.0, -12.0] (qam64_propagated)" in said
    assert "is kinder than the link itself (+2.0" in said
    assert "it is worse than without (-2.0" in said
    assert said.endswith("qam256 up to mu = 0.002 and qam64 up to mu = 0.005.")
    said = link(1.2, -0.02)
    assert "has the error power of no link." in said
    assert "is worse than the link itself" in said
    assert "it is better than without" in said


def test_links_alike_and_few_channels():
    said = link(1.0, 0.0)
    assert said.count("cannot be distinguished from") == 2
    said = link(1.0, 0.02, channels=4)
    assert "no link" in said
    assert said.count("cannot be judged on 4 channels against") == 2
    assert said.endswith("So few channels (4) decide nothing.")


# The choice of realignment


def test_the_best_learning_rate_and_whether_it_is_the_last_one():
    kinds = [", ".join(kind) for kind in realign_choice.KINDS]
    table = pd.DataFrame({"steps": 20, "learning_rate": [1e-4, 3e-4, 1e-3]})
    table[kinds] = np.array([[0.7, 0.5, 0.1], [0.8, 0.6, 0.2], [0.75, 0.55, 0.3]])
    said = realign_choice.conclusion(table)
    assert "0.0003 with 20 steps for ideal, r-mtllmf (80.0 %)" in said
    assert "0.001 with 20 steps for clean, control (30.0 %, the end of those tried)" in said


# Figure 2


CLASSES = dict.fromkeys("abcdefghijkl", 20)


def claims(combinations: int = 6, draws: int = 5, **changes: float) -> tuple[str, pd.DataFrame]:
    """Scores as in the paper, two sizes and five draws; the base and the control beside."""
    scores = {"clean none": 0.9, "ideal none": 0.36, "ideal r-mtllmf": 0.89, "control": 0.4}
    scores |= {"strongest_user none": 0.05, "strongest_user r-mtllmf": 0.53}
    scores |= {"sum_rate none": 0.05, "sum_rate r-mtllmf": 0.54}
    scores |= {"ideal realign": 0.6, "sum_rate realign": 0.3} | changes
    rows = []
    for (kind, score), size in itertools.product(scores.items(), (2, 3)):
        scenario, _, protection = kind.rpartition(" ")
        for number in range(combinations):
            tasks = "abcdefghijkl"[number : number + size]
            channels = draws if scenario not in ("clean", "") else 1
            rows += [
                {"combination": "+".join(tasks), "size": size, "scenario": scenario or "clean"}
                | {"protection": protection, "draw": draw, "seed": 0, "task": task, "scale": 0.3}
                | {"axis": "", "level": np.nan, "rule": "task_arithmetic", "kappa": 0.07}
                | {"mse": 0.1, "mse_mean": 0.1, "error_model": "independent", "score": score}
                | {"finetuned_score": 1.0, "base_score": 0.45, "normalised": score}
                for draw, task in itertools.product(range(channels), tasks)
            ]
    results = pd.DataFrame(rows)
    floor = figure_2.guessing(results, CLASSES)
    return figure_2.conclusion(figure_2.judged(results, floor)), results


def test_which_of_the_papers_claims_hold():
    said, _ = claims()
    assert said == "At N = 2 and 3 each of the paper's claims holds."
    said, _ = claims(**{"ideal none": 0.8, "sum_rate r-mtllmf": 0.2})
    assert "it does not hold that thermal noise costs unprotected fusion more than half and" in said
    assert (
        "nine times the unprotected accuracy or more under the sum-rate attack"
        in said.partition("it holds")[0]
    )
    assert (
        "At N = 2 and 3 it holds that the strongest-user attack costs unprotected fusion nearly"
        in said
    )


def test_claims_of_few_levels_are_named_though_others_have_more():
    few, many = (Interval(0.9, 0.8, 1.0, levels) for levels in (2, 9))
    first, *others = figure_2.CLAIMS
    said = figure_2.conclusion({first: {4: few}} | {claim: {4: many} for claim in others})
    assert said.endswith("At N = 4 so few combinations, draws or seeds (2) decide nothing.")


def test_claims_on_few_combinations_or_on_other_cells():
    said, results = claims(combinations=2, draws=2)
    assert said.startswith("At N = 2 and 3 each of the paper's claims cannot be decided.")
    assert said.endswith("At N = 2 and 3 so few combinations, draws or seeds (2) decide nothing.")
    along = results.assign(axis="mse", level=0.1)
    assert "None of the paper's claims can be judged" in figure_2.conclusion(
        figure_2.judged(along, figure_2.guessing(along, CLASSES))
    )


def test_what_guessing_has_counts_for_nothing():
    """An attack that leaves guessing alone costs everything: here 25 % of the fine-tuned 80."""
    _, results = claims(**{"sum_rate none": 0.28})
    results = results.assign(finetuned_score=0.8)
    floor = figure_2.guessing(results, dict.fromkeys(CLASSES, 5))
    np.testing.assert_allclose(floor, 0.25)
    (claim,) = (each for each in figure_2.CLAIMS if "sum-rate attack costs" in each.words)
    found = figure_2.judged(results, floor)[claim][2]
    assert found.mean == pytest.approx((0.28 - 0.25) / (0.9 - 0.25))
    assert claimed(found, claim.least, claim.most) == HOLDS
    (strongest,) = (each for each in figure_2.CLAIMS if "strongest-user attack costs" in each.words)
    below = figure_2.judged(results, floor)[strongest][2]  # 5 %, worse than guessing
    assert below.mean < 0
    assert claimed(below, strongest.least, strongest.most) == HOLDS


def test_the_page_of_figure_2_has_all_rivals_by_number_of_tasks():
    _, results = claims()
    scales = pd.DataFrame({"rule": "task_arithmetic", "size": [2, 2, 3], "scale": [0.3, 0.5, 0.3]})
    tables = {"results": results, "cosines": pd.DataFrame(), "scales": scales}
    conclusion, verdicts, floor, *rest = figure_2.page(tables, {"classes": CLASSES})
    assert conclusion.startswith("At N = 2 and 3 each")
    assert floor.startswith("Guessing has 5 % (N = 2) and 5 % (N = 3). At the end of the coeff")
    assert floor.endswith("beyond it: task_arithmetic (N = 2).")
    assert "Sum-rate attack: R-MTLLMF beats its strongest rival, the base model," in verdicts
    tables = "\n".join(rest)
    for row in (
        "| - | base |",
        "| - | control |",
        "| sum_rate | realign |",
        "| sum_rate | r-mtllmf |",
    ):
        assert row in tables
    assert "| sum_rate | r-mtllmf | 54 \\[54, 54] | 54 \\[54, 54] |" in tables
    assert "10.80 \\[10.80, 10.80], holds" in tables


# Defences


def defended(draws: int = 6, combinations: int = 6, **changes: float) -> pd.DataFrame:
    """Cells of defences under the sum-rate attack, and of what has no channel."""
    means = {
        "clean none": 0.9,
        "clean r-mtllmf": 0.95,
        "clean realign": 0.94,
        "clean control": 0.8,
        "clean base": 0.6,
        "clean holistic": 0.95,
        "sum_rate none": 0.3,
        "sum_rate r-mtllmf": 0.6,
        "sum_rate realign": 0.55,
        "sum_rate shrink": 0.5,
        "sum_rate shrink+r-mtllmf": 0.7,
        "sum_rate coded": 0.85,
        "sum_rate holistic": 0.94,
    } | {name.replace("__", " ").replace("_mtllmf", "-mtllmf"): x for name, x in changes.items()}
    rows = []
    for (kind, mean), size, number in itertools.product(means.items(), (2, 8), range(combinations)):
        scenario, protection = kind.split()
        for draw in range(1 if scenario == "clean" else draws):
            wobble = 0.001 * ((number + draw) % 3 - 1)
            rows.append(
                {
                    "combination": f"{size} {number}",
                    "size": size,
                    "scenario": scenario,
                    "axis": "",
                    "level": np.nan,
                    "draw": draw,
                    "seed": 0,
                    "protection": protection,
                    "score": mean + wobble,
                    "worst": mean - 0.1,
                    "uses": float(scenario != "clean"),
                }
            )
    return pd.DataFrame(rows)


def test_what_the_holistic_defence_reaches():
    said = defences.conclusion(defended())
    assert "on average within 2 points of the same repair without any channel at every N" in said
    assert "wins back 97 % (N = 2) and 97 % (N = 8)" in said
    assert "It beats the control at N = 2 (+14 [" in said
    assert "It beats realignment alone at N = 2 (+39 [" in said
    assert "It beats R-MTLLMF at N = 2 (+34 [" in said
    assert "the best alone is `shrink` with 50 %" in said
    assert "before the repair `shrink+r-mtllmf` with 70 %" in said
    codes = defended()[lambda cells: ~cells["protection"].str.contains("shrink")]
    assert "the best alone is" not in defences.conclusion(codes)


def test_a_defence_that_falls_short_is_said_to():
    said = defences.conclusion(defended(sum_rate__holistic=0.7, clean__holistic=0.7))
    assert "without any channel at no N (-25 [" in said
    assert "wins back 29 % (N = 2)" in said
    assert "It loses to the control at N = 2 (-10 [" in said
    even = defences.conclusion(defended(sum_rate__holistic=0.8))
    assert "It cannot be distinguished from the control at N = 2" in even
    few = defences.conclusion(defended(draws=2, combinations=1))
    assert "cannot be judged on 2 levels against the control" in few
    assert "So few channel realisations" in few


def along(levels: tuple[float, ...], **values: tuple[float, ...]) -> pd.DataFrame:
    """Return cells along the attacker's power, with a protection's accuracies at the levels."""
    parts = [
        defended(**{f"sum_rate__{name}": values[name][at] for name in values}).assign(
            axis="budget_db", level=level
        )
        for at, level in enumerate(levels)
    ]
    return pd.concat(parts)


def test_how_many_decibels_a_defence_buys():
    cells = along(
        (0.0, 20.0, 40.0),
        holistic=(0.9, 0.9, 0.78),
        phy=(0.9, 0.85, 0.45),
        r_mtllmf=(0.9, 0.7, 0.1),
    )
    said = defences.bought(cells, defended(sum_rate__r_mtllmf=0.6))  # the control has 80 %
    assert "R-MTLLMF keeps 60 % at N = 2 (the control 80) and 60 % at N = 8" in said
    assert "on the 6 channels of the next tables" in said
    down, to_control = said.split(". To bring a defence down to ")[1:]
    # Down to .6: phy at 20 + 20 * .25 / .4 dB; to .8: 20 + 20 * .05 / .4 is below 23.7 dB.
    assert "against `phy` 9 dB more at N = 2 and 8; " in down
    assert "against `holistic` more than 16 dB more at N = 2 and 8" in down
    assert "against `phy` no more at N = 2 and 8; against `holistic` 13 dB more at" in to_control


def test_an_attack_that_costs_nothing_is_said_to():
    cells = defended(sum_rate__r_mtllmf=0.949)
    assert "The attack costs R-MTLLMF nothing at this scale" in defences.conclusion(cells)
    levels = along((20.0, 40.0), r_mtllmf=(0.949, 0.949))
    assert "costs R-MTLLMF nothing" in defences.bought(levels, cells)


def test_the_page_of_defences_has_worst_tasks_uses_and_attacks():
    cells = defended()
    sheet = defences.size_sheet(cells)
    rows = {(row[0], row[1]): row[2:] for row in sheet.rows}
    assert rows["Sum-rate attack", "shrink"][0] == "1.00"
    assert rows["Sum-rate attack", "shrink"][1].startswith("50 [")
    assert rows["Sum-rate attack", "shrink"][1].endswith(", 40")
    assert rows["Clean (no noise)", "Base model"][0] == "-"
    assert rows["Clean (no noise)", "Realign only"][1].startswith("94 [")
    order = [row[1] for row in sheet.rows if row[0] == "Sum-rate attack"]
    assert order.index("coded") < order.index("Realign only") < order.index("R-MTLLMF")
    both = pd.concat([cells, cells.assign(scenario=cells["scenario"].replace("sum_rate", "white"))])
    attacks = defences.attack_sheet(both)
    assert attacks.header == ["N", "defence", "Sum-rate attack", "White noise"]
    assert [row[0] for row in attacks.rows] == sorted(row[0] for row in attacks.rows)
    found = {row[1]: [each[:2] for each in row[2:]] for row in attacks.rows if row[0] == "8"}
    assert list(found)[:3] == ["Base model", "Control (realigned base)", "Unprotected"]
    assert list(found.values())[:3] == [["60"] * 2, ["80"] * 2, ["30"] * 2]
    powers = pd.concat([cells.assign(axis="budget_db", level=level) for level in (0.0, 20.0)])
    power_sheet = defences.power_sheet(powers)
    assert power_sheet.header == ["N", "defence", "0 dB", "20 dB"]
    assert [row[0] for row in power_sheet.rows] == sorted(row[0] for row in power_sheet.rows)
    labels = [row[1] for row in power_sheet.rows if row[0] == "2"]
    assert labels[:2] == ["Base model", "Control (realigned base)"]
    assert "Realign only" in labels
    assert power_sheet.rows[1][2:] == power_sheet.rows[1][2:3] * 2  # whatever the power


# Testbed and frontier


def tables_of_a_testbed(base: float = 0.6, merged: float = 0.85, cosine: float = 0.1) -> tuple:
    """Two tasks, alone and merged, at a coefficient of .3 of .1 to .5."""
    rows = [
        {"combination": "a+b", "size": 2, "scenario": "clean", "draw": 0, "seed": 0, "task": task}
        | {"protection": "none", "rule": "task_arithmetic", "scale": 0.3, "mse": 0.0}
        | {"base_score": base, "finetuned_score": 1.0, "score": merged, "normalised": merged}
        | {"mse_mean": 0.0, "axis": "", "level": np.nan, "metric": "accuracy"}
        for task in "ab"
    ]
    scales = [
        {"combination": "a+b", "size": 2, "scale": scale, "normalised": 1 - abs(scale - 0.3)}
        | {"rule": "task_arithmetic", "method": "task_arithmetic"}
        for scale in (0.1, 0.3, 0.5)
    ]
    cosines = [{"scenario": "clean", "task_a": "a", "task_b": "b", "cosine": cosine}]
    return tuple(map(pd.DataFrame, (rows, scales, cosines)))


def test_a_run_is_a_testbed_or_lacks_something():
    whole = testbed.reached(*tables_of_a_testbed())
    assert [each.reached for each in whole] == [
        *("60 %", "85 %", "25 points, at N = 2", "0.3", "0.10"),
    ]
    assert testbed.conclusion(whole) == "This run is a testbed: it has all that is asked."
    said = testbed.conclusion(testbed.reached(*tables_of_a_testbed(base=0.72, cosine=0.3)))
    assert said == (
        "This run is no testbed: base model over fine-tuned 72 % (asked: 45 to 70 %), least gain "
        "over the base model, any N 13 points, at N = 2 (asked: >= 15 points) and largest cosine "
        "of two task vectors 0.30 (asked: <= .24)."
    )


def test_what_small_pretrainings_gain_where_the_base_is_in_its_range():
    kinds = ("all classes named", "classes seen as r^-2", "classes named as exp(-8 r)")
    rows = [(kinds[0], 90, 95), (kinds[1], 60, 70), (kinds[1], 30, 90), (kinds[2], 50, 80)]
    said = frontier.conclusion(pd.DataFrame(rows, columns=["captions", "base", "n8"]))
    assert "all named no such run, some seen rarely +10 to +10 points" in said
    assert said.endswith("some named rarely +30 to +30 points.")


def test_whole_pretrainings_are_told_apart_by_tasks_and_start():
    names = ["tasks", "start", "base", "merged"]
    rows = [("embedded", "scratch", 60, 75), ("real, all", "scratch", 50, 55)]
    rows += [("real, half", "scratch", 50, 67), ("real, all", "a ViT", 60, 85)]
    said = frontier.whole_conclusion(pd.DataFrame(rows, columns=names))
    assert "on the embedded tasks by 15 points, on the real tasks by 5 to 17 points and" in said
    assert "on the real tasks by 25 points with the image tower begun from a ViT." in said
