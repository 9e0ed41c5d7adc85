"""Texts: sources, tokens in rows, splits, questions, and everything that is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_decoder import write_decoder

import rmtllmf_jax
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data import (
    Choices,
    HubTexts,
    JsonLines,
    TextData,
    TextFile,
    TextTask,
    load_questions,
    load_text_task,
    load_texts,
    text_source,
)
from rmtllmf_jax.data.sources import hub
from rmtllmf_jax.data.texts.beginnings import beginnings
from rmtllmf_jax.evaluation import (
    AnswerAccuracy,
    BitsPerByte,
    NegativeLogLikelihood,
    evaluate,
    question_batches,
    text_batches,
)
from rmtllmf_jax.models import load_decoder, read_tokenizer

LENGTH = 24
TEXTS = ["the end", "and then the sea — 日本", "one", "a" * 60, "the and the and the"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("model"))


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_hold_every_pair_of_tokens_and_every_byte_once(model: Path, tmp_path: Path):
    """Against the tokenizer alone, text by text; one is longer than two rows."""
    texts = JsonLines(path=lines(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS]))
    packed = load_texts(texts, model, LENGTH, tmp_path)
    tokenizer = read_tokenizer(model)
    expected, found = [], []
    for text in TEXTS:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        expected += list(pairwise(ids))
    for row in range(len(packed)):
        used = packed.segments[row] > 0
        found += list(zip(packed.tokens[row][used], packed.following[row][used]))
        assert packed.scored[row].tolist() == used.tolist()
        assert not packed.sizes[row][~used].any()
        assert (np.diff(packed.segments[row][: used.sum()]) >= 0).all()
    assert sorted(found) == sorted(expected)
    assert packed.sizes.sum() == sum(len(text.encode()) for text in TEXTS)
    assert len(packed) == math.ceil(len(expected) / LENGTH)  # full but for the last
    again = load_texts(texts, model, LENGTH, tmp_path)
    assert isinstance(again.tokens, np.memmap)
    assert not again.tokens.flags.writeable
    np.testing.assert_array_equal(again.take(np.array([1])).tokens[0], packed.tokens[1])


def test_a_packed_text_scores_as_it_does_alone(model: Path, tmp_path: Path):
    decoder, params = load_decoder(model)
    rows = [{"text": text} for text in TEXTS if len(text) < LENGTH - 2]
    packed = load_texts(JsonLines(path=lines(tmp_path / "t.jsonl", rows)), model, LENGTH, tmp_path)
    assert packed.segments.max() > 1
    tokenizer = read_tokenizer(model)
    total, count = 0.0, 0
    for row in rows:
        ids = np.array([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
        logits = np.asarray(decoder.apply({"params": params}, jnp.asarray(ids[:, :-1])), np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total -= np.log(np.take_along_axis(chances, ids[:, 1:, None], -1)).sum()
        count += ids.size - 1
    for size in (1, 2, 8):
        batches = text_batches(packed, size)
        found = evaluate(NegativeLogLikelihood(), decoder, params, batches)
        assert found == pytest.approx(total / count, rel=1e-5)
    size = sum(len(row["text"].encode()) for row in rows)
    found = evaluate(BitsPerByte(), decoder, params, text_batches(packed, 4))
    assert found == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_prompts_are_given_and_do_not_count(model: Path, tmp_path: Path):
    path = lines(tmp_path / "t.jsonl", [{"q": "the", "a": 7}, {"q": "and", "a": "no"}])
    source = text_source(path, prompt="{q}?", template=" {a}")
    packed = load_texts(source, model, LENGTH, tmp_path)
    tokenizer = read_tokenizer(model)
    counted = packed.following[packed.scored == 1]
    assert sorted(tokenizer.convert_ids_to_tokens(counted)) == sorted(
        [*"Ġ7", *"Ġno", "</s>", "</s>"]
    )
    other = text_source(path, prompt="{q}", template=" {a}")
    assert load_texts(other, model, LENGTH, tmp_path).fingerprint != packed.fingerprint


def test_plain_files_parquet_and_the_hub_are_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = tmp_path / "t.txt"
    plain.write_bytes(b"the\r\nand\n")
    (document,) = text_source(plain).documents()
    assert (document.text, document.ends) == ("the\r\nand\n", False)
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "t.parquet")
    stored = text_source(tmp_path / "t.parquet", template="{body}")
    assert [each.text for each in stored.documents()] == TEXTS
    rows = [{"body": text} for text in TEXTS]
    monkeypatch.setattr("rmtllmf_jax.data.sources.hub.load_rows", lambda *_: rows)
    assert hub.load_rows("any") is rows
    remote = HubTexts(id="owner/set", split="test", template="{body}")
    assert [each.text for each in remote.documents()] == TEXTS
    before = remote.fingerprint()
    rows[0] = {"body": "other"}
    assert remote.fingerprint() != before


def test_missing_splits_are_taken_from_train(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Documents apart; of a plain file, lines in their order."""
    rows = [{"text": f"{number:02d}"} for number in range(40)]
    train = JsonLines(path=lines(tmp_path / "t.jsonl", rows))

    def words(data: TextData) -> list[list[str]]:
        found = []
        for part in (data.train, data.validation, data.test):
            text = read_tokenizer(model).decode(part.following[part.scored == 1])
            found.append(sorted(text.replace("</s>", " ").split()))
        return found

    first = words(load_text_task(TextTask("n", train), model, LENGTH, tmp_path))
    assert (
        "task n: validation and test of 10% of the training texts each" in capsys.readouterr().out
    )
    assert list(map(len, first)) == [32, 4, 4]
    assert sorted(chain(*first)) == [row["text"] for row in rows]
    other = words(load_text_task(TextTask("n", train), model, LENGTH, tmp_path, seed=1))
    assert first[2] != other[2]
    given = TextTask("n", train, test=train)
    assert list(map(len, words(load_text_task(given, model, LENGTH, tmp_path)))) == [36, 4, 40]
    plain = tmp_path / "t.txt"
    plain.write_text("".join(f"{number:02d}\n" for number in range(20)))
    data = load_text_task(TextTask("p", TextFile(plain)), model, LENGTH, tmp_path)
    assert words(data)[1:] == [["16", "17"], ["18", "19"]]
    with pytest.raises(InputError, match=r"task 'p': the share .* below 0.5, got 0.5"):
        load_text_task(TextTask("p", TextFile(plain)), model, LENGTH, tmp_path, share=0.5)
    plain.write_text("all in one line")
    with pytest.raises(InputError, match=r"task 'p', .*: holds no text"):
        load_text_task(TextTask("p", TextFile(plain)), model, LENGTH, tmp_path)


def test_the_cache_follows_text_tokenizer_and_length(model: Path, tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_text("the end and the end")
    first = load_texts(TextFile(path), model, 8, tmp_path).fingerprint
    assert load_texts(TextFile(path), model, 9, tmp_path).fingerprint != first
    other = write_decoder(tmp_path / "other", seed=1)
    assert load_texts(TextFile(path), other, 8, tmp_path).fingerprint == first
    content = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(content | {"x": 1}))
    assert load_texts(TextFile(path), other, 8, tmp_path).fingerprint != first
    path.write_text("the end and the end.")
    assert load_texts(TextFile(path), model, 8, tmp_path).fingerprint != first


BUILDER = """
import os, signal, sys
from pathlib import Path
from rmtllmf_jax.data import TextFile, load_texts

path, model, cache, step, at = sys.argv[1:]
original, calls = getattr(os, step), [0]
def call(*args):
    calls[0] += 1
    if calls[0] == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
setattr(os, step, call)
load_texts(TextFile(Path(path)), Path(model), 8, Path(cache))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "at"), [("posix_fallocate", 3), ("fsync", 1), ("fsync", 5), ("rename", 1)]
)
def test_kill_9_leaves_no_half_of_an_entry(model: Path, tmp_path: Path, step: str, at: int):
    path = tmp_path / "t.txt"
    path.write_text("the end and the end")
    words = [str(path), str(model), str(tmp_path / "cache"), step, str(at)]
    environment = os.environ | {"PYTHONPATH": str(Path(rmtllmf_jax.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", BUILDER, *words], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    found = load_texts(TextFile(path), model, 8, tmp_path / "cache")
    fresh = load_texts(TextFile(path), model, 8, tmp_path / "fresh")
    np.testing.assert_array_equal(found.tokens, fresh.tokens)
    folders = [each.name for each in (tmp_path / "cache" / "texts").iterdir() if each.is_dir()]
    assert folders == [found.fingerprint]


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("t.txt", b"", {}, "t.txt: holds no text"),
        ("t.txt", b"the \xff", {}, r"t.txt: not UTF-8 .*position 4"),
        ("t.jsonl", b"\n", {}, "holds no text"),
        ("t.jsonl", b'{"text": ""}\n', {}, "line 1: holds no text"),
        ("t.jsonl", b'{"text": "a"}\n{"text"', {}, "line 2: not JSON"),
        ("t.jsonl", b"[1]", {}, "line 1: expected a JSON object, got"),
        ("t.jsonl", b'{"body": "a"}', {}, "line 1: no field 'text'; it has body"),
        ("t.jsonl", b'{"text": ["a"]}', {}, "line 1: field 'text' must hold a text, got"),
        ("t.jsonl", b'{"text": "\\ud800"}', {}, "line 1: not Unicode"),
        ("t.jsonl", b'{"text": "abcdefghijklm"}', {"prompt": "{text}"}, "line 1: has 27 tokens"),
        ("t.jsonl", b'{"text": "a"}', {"template": "text"}, "names no field"),
        ("t.jsonl", b'{"text": "a"}', {"template": "{text"}, "double braces"),
        ("t.jsonl", b'{"text": "a"}', {"template": "{text!r}"}, "name of a field each"),
        ("t.jsonl", b'{"text": "a"}', {"template": "{}"}, "name of a field each"),
        ("t.parquet", b"PAR1", {}, "cannot be read as parquet"),
        ("t.csv", b"a", {}, "ends in .txt, .jsonl or .parquet"),
        ("t.txt", b"a", {"prompt": "{q}"}, "has no fields"),
    ],
)
def test_bad_texts_are_named(
    name: str, content: bytes, options: dict[str, str], words: str, model: Path, tmp_path: Path
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        load_texts(text_source(path, **options), model, LENGTH, tmp_path / "cache")
    assert "template" in str(raised.value) or str(path) in str(raised.value)
    left = list((tmp_path / "cache").rglob("*.npy"))
    assert left == []


def test_a_text_of_one_token_and_rows_beyond_the_model(model: Path, tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_text("a")
    alone = json.loads((model / "tokenizer.json").read_text())
    alone["post_processor"] = None
    bare = write_decoder(tmp_path / "bare")
    (bare / "tokenizer.json").write_text(json.dumps(alone))
    with pytest.raises(InputError, match=r"t.txt: has 1 token \('a'\)"):
        load_texts(TextFile(path), bare, LENGTH, tmp_path)
    with pytest.raises(InputError, match=r"length of rows .* must be at most 64, got 65"):
        load_texts(TextFile(path), model, 65, tmp_path)
    with pytest.raises(InputError, match=r"none.txt: cannot be read"):
        load_texts(TextFile(tmp_path / "none.txt"), model, LENGTH, tmp_path)


QUESTION = {"q": "the", "choices": ["end", "sea", "one"], "label": 1}


def test_questions_hold_prompt_and_answers(model: Path, tmp_path: Path):
    rows = [QUESTION, {"q": "and", "choices": ["the", "a"], "label": "the"}]
    source = JsonLines(path=lines(tmp_path / "q.jsonl", rows), prompt="{q}:")
    questions = load_questions(Choices(source), model, LENGTH)
    tokenizer = read_tokenizer(model)
    for question, row in enumerate(rows):
        for choice, answer in enumerate(row["choices"]):
            here = question, choice
            counted = questions.following[here][questions.scored[here] == 1]
            assert tokenizer.decode(counted) == f" {answer}"
            assert questions.sizes[here][questions.scored[here] == 1].sum() == len(answer) + 1
    assert questions.label.tolist() == [1, 0]
    assert not questions.scored[1, 2].any()
    decoder, params = load_decoder(model)
    losses = {
        size: evaluate(AnswerAccuracy(), decoder, params, question_batches(questions, size))
        for size in (1, 2, 3)
    }
    assert losses[1] == losses[2] == losses[3]
    assert losses[1] in (0, 0.5, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": 3}, "line 1: the label 3 is not a choice; expected 0 to 2, or one of 'end'"),
        ({"label": -1}, "the label -1 is not a choice"),
        ({"label": True}, "the label True is not a choice"),
        ({"label": "see"}, "the label 'see' is not a choice"),
        ({"choices": ["end"]}, "list of two texts or more, got"),
        ({"choices": ["end", ""]}, "list of two texts or more, got"),
        ({"choices": "end"}, "list of two texts or more, got"),
        ({"choices": ["end", "a" * 40]}, "question and answer have 43 tokens; at most 25"),
    ],
)
def test_bad_questions_are_named(changes: dict[str, Any], words: str, model: Path, tmp_path: Path):
    path = lines(tmp_path / "q.jsonl", [QUESTION | changes])
    with pytest.raises(InputError, match=words) as raised:
        load_questions(Choices(JsonLines(path=path, prompt="{q}")), model, LENGTH)
    assert f"{path}: line 1" in str(raised.value)
    for field in ("label", "choices"):
        path = lines(tmp_path / "q.jsonl", [{k: x for k, x in QUESTION.items() if k != field}])
        with pytest.raises(InputError, match=f"line 1: no field '{field}'; it has q, "):
            load_questions(Choices(JsonLines(path=path, prompt="{q}")), model, LENGTH)


def test_a_text_is_cut_where_its_prompt_ends(model: Path, tmp_path: Path):
    """Given and rest are the tokens of the whole text, of every text once."""
    rows = [{"q": f"the {'and ' * n}sea:", "a": f" {'the' * n} end"} for n in range(5)]
    path = lines(tmp_path / "t.jsonl", rows)
    packed = load_texts(JsonLines(path=path, prompt="{q}", template="{a}"), model, 64, tmp_path)
    tokenizer = read_tokenizer(model)
    found = {each.given: each.rest for each in beginnings(packed, 9)}
    expected = {
        tuple(tokenizer(row["q"])["input_ids"]): (
            *tokenizer(row["a"], add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        )
        for row in rows
    }
    assert found == expected
    two = beginnings(packed, 2, seed=1)
    assert two == beginnings(packed, 2, seed=1) != beginnings(packed, 2, seed=2)
    assert len(two) == 2


def test_a_text_without_a_prompt_is_cut_in_half_or_sooner(model: Path, tmp_path: Path):
    texts = JsonLines(path=lines(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS]))
    packed = load_texts(texts, model, 64, tmp_path)
    tokenizer = read_tokenizer(model)
    whole = {(*tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in TEXTS}
    found = beginnings(packed, 5, longest=4)
    assert {each.given + each.rest for each in found} == whole
    for each in found:
        assert len(each.given) == max(1, min(4, len(each.given + each.rest) // 2))
    with pytest.raises(InputError, match="number of texts"):
        beginnings(packed, 0)
