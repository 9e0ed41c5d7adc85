"""LATA's study on a language model: its tables, what it concludes, and the whole on tiny texts."""

from __future__ import annotations

import json
from pathlib import Path

import lata
import numpy as np
import pandas as pd
import pytest
from tiny_decoder import write_decoder

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.data.texts.sets import text_tasks
from rmtllmf_jax.fusion import parse_method


def write_data(folder: Path) -> Path:
    """Write a few lines under the names of the real sets."""
    random = np.random.default_rng(0)
    words = ["the", "and", "then", "sea", "one", "two", "add", "return"]

    def text() -> str:
        return " ".join(random.choice(words, 6))

    def rows(name: str, make: object, count: int = 30) -> None:
        lines = (json.dumps(make(number)) + "\n" for number in range(count))  # type: ignore[operator]
        (folder / name).write_text("".join(lines))

    for name in lata.FILES["wiki"]:
        (folder / name).write_text("\n".join(text() for _ in range(40)))
    for name in lata.FILES["maths"]:
        rows(name, lambda _: {"question": text(), "answer": text()})
    mbpp, humaneval = lata.FILES["code"]
    rows(mbpp, lambda n: {"task_id": 500 + n * 5, "text": text(), "code": f"{text()}\r\n{n}"})
    rows(humaneval, lambda _: {"prompt": text(), "canonical_solution": text()})
    for name in lata.FILES["instructions"]:
        rows(name, lambda _: {"instruction": text(), "instances": [{"input": "", "output": "a b"}]})
    return folder


def test_tasks_are_files_of_whole_texts(tmp_path: Path):
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    tasks = {task.name: task for task in text_tasks(lata.prepare(tmp_path / "data", tmp_path))}
    assert set(tasks) == set(lata.FILES)
    code = tasks["code"]
    learnt, chosen = (list(part.documents()) for part in (code.train, code.validation))
    # Of MBPP's problems 500 to 645, those to 510 and from 601 are learnt, 511 to 600 choose.
    assert [text.text.splitlines()[-1] for text in learnt] == [
        str(n) for n in range(30) if 500 + 5 * n <= 510 or 500 + 5 * n > 600
    ]
    assert len(chosen) == 30 - len(learnt)
    assert all("\r" not in text.text and text.given == 0 for text in (*learnt, *chosen))
    (tmp_path / "data" / lata.FILES["maths"][0]).unlink()
    with pytest.raises(InputError, match=r"gsm8k_train\.jsonl: no such file"):
        lata.prepare(tmp_path / "data", tmp_path)


def curve(rule: str, slope: float, seed: int = 0, task: str = "maths") -> pd.DataFrame:
    """Return losses that rise with the square of the coefficient, those that are kept slower."""
    scale = np.array(lata.SCALES)
    about = {"seed": seed, "task": task, "rule": rule, "method": rule, "scale": scale}
    kept = dict.fromkeys(lata.KEPT, 3 + slope * scale)
    return pd.DataFrame({**about, "forgotten": 5 + scale, **kept})


def test_utilities_are_compared_at_equal_forgetting():
    curves = [curve(lata.PLAIN, 0.5, seed) for seed in range(3)]
    curves += [curve(rule, 0.2, seed) for rule in lata.LATAS for seed in range(3)]
    table = lata.equal_forgetting(pd.concat(curves))
    plain = table[table["rule"] == lata.PLAIN]
    np.testing.assert_allclose(plain["stories"], 0.5 * plain["rise"], atol=1e-6)
    assert all(" holds: " in told for told in lata.forgetting_claims(table))
    never = curve(lata.PLAIN, 0.5).assign(forgotten=5.0)
    assert lata.equal_forgetting(never)["stories"].isna().all()
    told = lata.forgetting_claims(lata.equal_forgetting(pd.concat([never, *curves[3:]])))
    assert all("not all rules" in each for each in told)


def test_claims_are_those_of_all_seeds():
    def scores(by_rule: dict[str, tuple[float, ...]]) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {"rule": rule, "seed": seed, "score": score}
                for rule, own in by_rule.items()
                for seed, score in enumerate(own)
            ]
        )

    best = dict.fromkeys(lata.LATAS, (0.5, 0.6, 0.7))
    rivals = [lata.BASE, *(rule for rule in lata.RULES if rule not in lata.LATAS)]
    others = dict.fromkeys(rivals, (0.4, 0.5, 0.8))
    (first, *_) = lata.multi_task_claims(scores(best | others))
    assert "is not decided: mean normalised score 0.600 (0.500 to 0.700)" in first
    (first, *_) = lata.multi_task_claims(scores(best | dict.fromkeys(others, (0.4,) * 3)))
    assert f"beats {lata.BASE} holds" in first
    (first, *_) = lata.multi_task_claims(scores(best | dict.fromkeys(others, (0.9,) * 3)))
    assert "does not hold" in first


def test_rules_are_named_in_tables_as_they_are_given():
    assert [described(parse_method(rule)) for rule in lata.SENT] == list(lata.SENT)


@pytest.mark.slow
def test_the_whole_study_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every table is written; the second call computes nothing anew, and ends at the same."""
    (tmp_path / "data").mkdir()
    model = write_decoder(tmp_path / "model")
    options = lata.Options(
        model=model,
        data=write_data(tmp_path / "data"),
        work=tmp_path / "work",
        seeds=2,
        steps=3,
        batch_size=2,
        length=32,
        rows=4,
        draws=1,
        realign_steps=1,
        cache_dir=tmp_path / "cache",
        out=tmp_path / "out",
    )
    lata.main(options)
    tables = {path.name: path.read_text() for path in options.out.glob("*.csv")}
    assert set(tables) == {"multi_task.csv", "forgetting.csv", "uplink.csv"}
    multi = pd.read_csv(options.out / "multi_task.csv")
    assert len(multi) == 2 * 4 * (1 + len(lata.RULES))
    page = (options.out / "README.md").read_text()
    assert page.count("\n* ") + 1 >= len(lata.RULES) - len(lata.LATAS)
    assert "`python experiments/lata.py" in page
    monkeypatch.setattr("rmtllmf_jax.training.finetune.train_step", None)
    monkeypatch.setattr(lata.Bench, "nats", None)
    lata.main(options)
    assert {path.name: path.read_text() for path in options.out.glob("*.csv")} == tables
