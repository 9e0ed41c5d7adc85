"""What language models say, on the page: every text once, in its place, and harmless."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import report_tables as made

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.io import read_said
from rmtllmf_jax.report.said import ALONE, said_sheets, shortened
from rmtllmf_jax.report.write import write_report

MODELS = [
    *(("-", name) for name in ALONE),
    *(("clean", "none"), ("clean", "control"), ("sum_rate", "none"), ("sum_rate", "r-mtllmf")),
]


def table() -> pd.DataFrame:
    rows = [
        {
            "rule": "task_arithmetic",
            "scenario": scenario,
            "protection": protection,
            "task": task,
            "number": number,
            "given": f"{task} {number}?",
            "text": f" {task} {number} of {protection} under {scenario}\nnext",
        }
        for task in ("sums", "dates")
        for number in range(3)
        for scenario, protection in MODELS
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def write_run(folder: Path, said: pd.DataFrame) -> Path:
    folder.mkdir()
    made.results(("ideal",), draws=1).to_parquet(folder / "results.parquet")
    said.to_parquet(folder / "said.parquet")
    (folder / "run.json").write_text(json.dumps(made.RUN))
    return folder


def test_a_table_per_task_has_a_row_per_model_and_a_column_per_prompt():
    dates, sums = said_sheets(table())
    assert sums.title == "What the models say: sums"
    assert sums.header == ["model", "scenario", "sums 0?", "sums 1?", "sums 2?"]
    assert dates.header[2] == "dates 0?"
    assert [row[:2] for row in sums.rows] == [
        *([name, "-"] for name in ALONE),
        *(["control", "-"], ["none", "clean"], ["none", "sum_rate"], ["r-mtllmf", "sum_rate"]),
    ]
    for row in sums.rows[4:]:
        assert row[2:] == [f"sums {n} of {row[0]} under {row[1]} ⏎ next" for n in range(3)]
    assert sums.names == len(sums.header)


def test_several_merge_methods_are_named():
    both = pd.concat([table(), table().query("scenario == 'sum_rate'").assign(rule="ties")])
    sheet = next(said_sheets(both))
    named = [row[0] for row in sheet.rows]
    assert named[:4] == [*ALONE, "control"]
    assert {"none, task_arithmetic", "none, ties", "r-mtllmf, ties"} <= set(named)


def test_they_are_on_both_pages(tmp_path: Path):
    said = table()
    said.loc[said["protection"] == "none", "text"] = '<script>alert("x")</script> ![x](http://y)'
    write_report(write_run(tmp_path / "run", said))
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    markdown = (tmp_path / "run" / "report" / "summary.md").read_text()
    assert '<a href="#what-the-models-say">' in page
    assert "<script" not in page + markdown
    assert "![x](" not in markdown
    assert '<script>alert("x")</script>' in unescape(page)
    for text in ("sums 2 of r-mtllmf under sum_rate", "dates 0 of fine-tuned under -"):
        assert page.count(text) == markdown.count(text) == 1


def test_a_run_of_images_has_no_such_section(tmp_path: Path):
    run = write_run(tmp_path / "run", table())
    (run / "said.parquet").unlink()
    write_report(run)
    assert "models say" not in (run / "report" / "index.html").read_text()


def test_texts_are_cut_and_kept_on_one_line():
    assert shortened("a" * 500) == "a" * 200 + "…"
    assert shortened(" \n ") == ""
    assert shortened("a\x1b[31m\x00b\u202ec") == "a�[31m�b�c"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: pd.concat([said, said[:1]]), "a row is there more than once"),
        (lambda said: said.drop(columns="given"), "lacks the columns given"),
        (lambda said: said.assign(text=1.0), "column text is not str"),
        (lambda said: said.assign(task="<b>"), "not allowed as a name"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, change, message: str):
    run = write_run(tmp_path / "run", change(table()))
    with pytest.raises(InputError, match=rf"said\.parquet.*{message}"):
        read_said(run / "said.parquet")
