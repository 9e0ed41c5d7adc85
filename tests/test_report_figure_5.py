"""Figure 5, read back from what it draws."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pandas as pd
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.figures import figure_5


def ablation() -> pd.DataFrame:
    rows = []
    for scenario, size in (("sum_rate", 2), ("ideal", 2), ("ideal", 3)):
        for variant, counts in (("none", [0]), ("r-mtllmf", [1, 10, 50]), ("a variant", [10])):
            for shots in counts:
                score = 0.1 * size + shots / 100 + 0.05 * (scenario == "ideal")
                names = {"variant": variant, "shots": shots, "size": size, "scenario": scenario}
                rows.append(names | {"score": score + 0.01 * len(variant)})
    return pd.DataFrame(rows)


def test_figure_5_draws_groups_and_lines():
    figure = figure_5(ablation())
    groups, ideal, sum_rate = figure.subfigs[0].axes + figure.subfigs[1].axes
    assert [panel.get_title() for panel in (ideal, sum_rate)] == [
        "(b) Ideal (no attack)",
        "(b) Sum-rate attack",
    ]
    places = [text.get_text() for text in groups.get_xticklabels()]
    assert places == ["Ideal (no attack)", "Sum-rate attack"]
    points: dict[str, list[tuple[float, float]]] = {}
    for line in groups.get_lines():
        points.setdefault(str(line.get_label()), []).append(tuple(line.get_xydata()[0]))
    heights = {name: [y for _, y in found] for name, found in points.items()}
    assert heights["Unprotected"] == pytest.approx([34, 24])  # mean of .29, .39; .24
    assert heights["R-MTLLMF"] == pytest.approx([48, 38])
    assert heights["a variant"] == pytest.approx([49, 39])
    for found in points.values():
        assert [round(x) for x, _ in found] == [0, 1]
    bars = [path.vertices[:, 1] for held in groups.collections for path in held.get_paths()]
    spread = 100 * statistics.stdev([0.2, 0.3])
    assert any(np.allclose(bar, [34 - spread, 34 + spread]) for bar in bars)
    (line,) = ideal.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[1, 39], [10, 48], [50, 88]])
    assert [text.get_text() for text in ideal.get_xticklabels()] == ["1", "10", "50"]
    assert "± 1 standard deviation" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop(columns=["size"]), "lacks size"),
        (lambda t: t.iloc[:0], "expected rows"),
        (lambda t: t.assign(score=math.nan), "a score that is finite"),
        (lambda t: t[t["shots"] != 10], r"shots are \[1, 50\], expected 10"),
    ],
)
def test_figure_5_says_what_its_table_lacks(spoil: object, message: str):
    with pytest.raises(InputError, match=message):
        figure_5(spoil(ablation()))


def test_one_number_of_samples_needs_the_first_panel_alone():
    table = ablation()
    whole, part = (figure_5(rows) for rows in (table, table[table["shots"].isin([0, 10])]))
    assert len(whole.axes) == 3
    (groups,) = part.axes
    ours, same = (
        {str(line.get_label()): line.get_xydata().tolist() for line in panel.get_lines()}
        for panel in (groups, whole.axes[0])
    )
    assert ours == same != {}
