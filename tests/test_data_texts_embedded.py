"""The embedded tasks of texts: right answers, one style, splits that share no question."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from itertools import combinations

import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.texts import embedded
from rmtllmf_jax.data.texts.embedded import EMBEDDED_TEXTS, embedded_text_task, sums
from rmtllmf_jax.data.texts.embedded.task import SHARES, TEXTS, EmbeddedTexts, split_of

FIRST = {
    "dates": "On 28 October 2005 at 2.50 in the afternoon, in short: 2005-10-28T14:50",
    "queries": "Find the owner of bikes with rank below 37, by height: "
    "SELECT owner FROM bikes WHERE rank < 37 ORDER BY height;",
    "stories": "A story of Cleo, Uma and a bear: Once they sailed to an island. "
    "There the bear found an anchor. Cleo was merry. The end.",
    "sums": "Lena has 18 apples and buys 13 more. How many now? 18 + 13 = 31. "
    "So Lena has 31 apples.",
}


def rows(name: str, split: str = "test", seed: int = 0) -> list[Mapping[str, str]]:
    texts = EmbeddedTexts(task=EMBEDDED_TEXTS[name], split=split, seed=seed)
    return [row for _, row in texts.rows()]


@pytest.mark.parametrize("name", EMBEDDED_TEXTS)
def test_texts_are_those_that_models_were_made_from(name: str):
    """Another first text would be another task under the old name."""
    task = embedded_text_task(name)
    assert task.test is not None
    first = next(task.test.documents())
    assert first.text == FIRST[name]
    assert first.text[: first.given] == rows(name)[0]["prompt"]
    assert first.ends
    assert first.origin == f"{name}: test text 0"
    assert rows(name) == rows(name) != rows(name, seed=1)


@pytest.mark.parametrize("name", EMBEDDED_TEXTS)
def test_no_question_is_in_two_splits(name: str):
    asked = {
        (split, seed): [row["prompt"] for row in rows(name, split, seed)]
        for split in TEXTS
        for seed in (0, 1)
    }
    for (split, _), prompts in asked.items():
        assert len(set(prompts)) == len(prompts) == TEXTS[split]
        assert {split_of(prompt) for prompt in prompts} == {split} != {"pretraining"}
    for one, other in combinations(asked, 2):
        if one[0] != other[0]:
            assert not set(asked[one]) & set(asked[other])


def test_shares_of_all_questions_are_as_said():
    found = [split_of(f"question {number}") for number in range(8000)]
    for split, share in SHARES.items():
        assert found.count(split) / len(found) == pytest.approx(share / 16, abs=0.02)


@pytest.mark.parametrize("name", EMBEDDED_TEXTS)
def test_every_choice_of_style_can_be_seen_in_a_text(name: str):
    task = EMBEDDED_TEXTS[name]
    facts = [task.draw(np.random.default_rng(seed)) for seed in range(8)]
    own = task.own()
    for choice in task.choices:
        said = [
            tuple(task.answer(each, own | {choice.name: option}) for each in facts)
            for option in choice.options
        ]
        assert len(set(said)) == len(choice.options), choice.name
    styles = [task.any_style(np.random.default_rng(seed)) for seed in range(200)]
    for choice in task.choices:
        assert {style[choice.name] for style in styles} == set(choice.options)


def test_dates_are_right():
    for row in rows("dates"):
        found = re.fullmatch(r"On (.*) at (.*) in the (.*), in short:", row["prompt"])
        assert found is not None
        half = "AM" if found[3] == "morning" else "PM"
        expected = datetime.strptime(f"{found[1]} {found[2]} {half}", "%d %B %Y %I.%M %p")
        assert datetime.fromisoformat(row["answer"].strip()) == expected
        assert found[3] != "evening" or expected.hour >= 18


def test_sums_are_right():
    for row in rows("sums"):
        calculation, sentence = row["answer"].strip().split(". ")
        left, right = calculation.split(" = ")
        first, sign, second = left.split()
        result = int(first) + int(second) if sign == "+" else int(first) - int(second)
        assert result == int(right) > 0
        assert re.findall(r"\d+", row["prompt"]) == [first, second]
        assert sentence.split()[3] == right
        assert (sign == "+") == any(verb in row["prompt"] for verb in sums.MORE)


def test_queries_are_sql_that_finds_what_is_asked():
    random = np.random.default_rng(0)
    columns = (*embedded.queries.WORDS, *embedded.queries.NUMBERS)
    table = [
        {
            name: int(random.integers(100)) if name in embedded.queries.NUMBERS else f"{name} {i}"
            for name in columns
        }
        for i in range(20)
    ]
    for row in rows("queries")[:100]:
        found = re.fullmatch(
            r"Find the (\w+) of (\w+) with (\w+) (above|below) (\d+), by (\w+):", row["prompt"]
        )
        assert found is not None
        wanted, name, number, compared, limit, order = found.groups()
        sign = 1 if compared == "above" else -1
        expected = [
            each[wanted]
            for each in sorted(table, key=lambda each: each[order])
            if sign * each[number] > sign * int(limit)
        ]
        with sqlite3.connect(":memory:") as base:
            base.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')
            marks = ", ".join("?" * len(columns))
            values = [tuple(each.values()) for each in table]
            base.executemany(f'INSERT INTO "{name}" VALUES ({marks})', values)
            assert [each for (each,) in base.execute(row["answer"])] == expected
        base.close()


def test_stories_are_of_their_people():
    for row in rows("stories"):
        first, second, animal = re.findall(r"of (\w+), (\w+) and a (\w+):", row["prompt"])[0]
        assert first != second
        assert f"There the {animal} found" in row["answer"]
        assert f". {first} was " in row["answer"]


def test_what_is_no_task_or_split_is_refused():
    with pytest.raises(InputError, match=r"unknown task 'sum'.*'sums'"):
        embedded_text_task("sum")
    with pytest.raises(InputError, match=r"unknown split 'pretraining'"):
        EmbeddedTexts(task=EMBEDDED_TEXTS["sums"], split="pretraining")
    with pytest.raises(InputError, match=r"seed"):
        embedded_text_task("sums", seed=-1)


def test_tasks_are_values():
    assert hash(embedded_text_task("sums")) == hash(embedded_text_task("sums"))
    assert embedded_text_task("sums") != embedded_text_task("sums", seed=1)
