"""Rows of embeddings go by token: against merges written out token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common.errors import InputError

EMBEDDING, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
WORDS = ["<unk>", "a", "b", "c"]


def write(
    folder: Path, seed: int, words: list[str], added: Sequence[str] = (), rows: int | None = None
) -> Path:
    """Write a language model whose tokenizer has words, and added tokens after them."""
    folder.mkdir()
    tokens = [*words, *added]
    size = rows or len(tokens)
    random = np.random.default_rng(seed)
    shapes = {EMBEDDING: (size, 3), HEAD: (size, 3), BIAS: (size,), "model.norm.weight": (3,)}
    content = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    save_file(content, folder / "model.safetensors")
    config = {"model_type": "own", "vocab_size": size, "eos_token_id": tokens.index("c")}
    (folder / "config.json").write_text(json.dumps(config))
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False}
    flags["single_word"] = False
    listed = [{"id": tokens.index(each), "content": each} | flags for each in added]
    model = {"type": "WordLevel", "vocab": {word: row for row, word in enumerate(words)}}
    tokenizer = {"model": model, "added_tokens": listed}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def row_of(folder: Path, token: str) -> dict[str, np.ndarray] | None:
    """Return what a folder has for a token."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    rows = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    if token not in rows:
        return None
    content = load_file(folder / "model.safetensors")
    return {key: content[key][rows[token]] for key in (EMBEDDING, HEAD, BIAS)}


def tokens_of(folder: Path) -> set[str]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    return {*tokenizer["model"]["vocab"], *(t["content"] for t in tokenizer["added_tokens"])}


def fuse(base: Path, models: list[Path], out: Path, **options: Any) -> list[str]:
    Fuse(base=base, models=tuple(models), out=out, scale="0.5", **options).run()
    return json.loads((out / "fusion.json").read_text())["notes"]


def assert_merged(out: Path, base: Path, models: list[Path], scale: float = 0.5) -> None:
    """Check every token's row; that of a token that the base lacks starts from the mean."""
    for token in tokens_of(out):
        found, start = row_of(out, token), row_of(base, token)
        rows = [row for row in (row_of(model, token) for model in models) if row is not None]
        assert found is not None
        for key, value in found.items():
            there = [row[key] for row in rows]
            first = np.mean(there, axis=0) if start is None else start[key]
            expected = first + scale * sum(row - first for row in there)
            np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=f"{token} {key}")
    size = load_file(out / "model.safetensors")[EMBEDDING].shape[0]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == size


@pytest.fixture
def chat(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base and two models that added tokens, one of them common to both, in other rows."""
    models = [write(tmp_path / "one", 1, WORDS, ["<s>", "<e>"])]
    models.append(write(tmp_path / "two", 2, WORDS, ["<e>", "<pad>"], rows=8))
    return write(tmp_path / "base", 0, WORDS), models


def test_added_tokens_need_a_choice(chat: tuple[Path, list[Path]], tmp_path: Path):
    with pytest.raises(InputError) as caught:
        fuse(*chat, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[1:3] == [
        "  one: 2 tokens that the base has not (<s>, <e>), 4 in common",
        "  two: 2 tokens that the base has not (<e>, <pad>), 4 in common",
    ]
    assert all(f"--tokenizer {each}" in lines[3] for each in ("union", "base", "one"))


def test_a_union_has_all_tokens(chat: tuple[Path, list[Path]], tmp_path: Path):
    base, models = chat
    notes = fuse(base, models, tmp_path / "out", tokenizer="union")
    assert tokens_of(tmp_path / "out") == {*WORDS, "<s>", "<e>", "<pad>"}
    assert_merged(tmp_path / "out", base, models)
    assert notes[0] == "one: 2 tokens of its own (<s>, <e>) are in the output"
    only = row_of(tmp_path / "out", "<pad>"), row_of(models[1], "<pad>")
    assert only[0] is not None
    assert only[1] is not None
    for key in (EMBEDDING, HEAD, BIAS):
        np.testing.assert_array_equal(only[0][key], only[1][key])


@pytest.mark.parametrize("method", ["ties(density=0.4)", "dare(drop=0.5)", "average", "median"])
def test_a_token_of_one_model_comes_from_it_by_any_method(
    chat: tuple[Path, list[Path]], tmp_path: Path, method: str
):
    base, models = chat
    fuse(base, models, tmp_path / "out", tokenizer="union", method=method)
    for model, token in zip(models, ("<s>", "<pad>"), strict=True):
        found, expected = row_of(tmp_path / "out", token), row_of(model, token)
        np.testing.assert_equal(found, expected)


def test_the_bases_tokens_alone(chat: tuple[Path, list[Path]], tmp_path: Path):
    base, models = chat
    notes = fuse(base, models, tmp_path / "out", tokenizer="base")
    assert tokens_of(tmp_path / "out") == set(WORDS)
    assert_merged(tmp_path / "out", base, models)
    assert notes == [
        "one: 2 tokens of its own (<s>, <e>) are left out",
        "two: 2 tokens of its own (<e>, <pad>) are left out",
    ]
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("by_path", [False, True])
def test_the_tokens_of_a_model(chat: tuple[Path, list[Path]], tmp_path: Path, by_path: bool):
    base, models = chat
    name = str(models[1]) if by_path else "two"
    notes = fuse(base, models, tmp_path / "out", tokenizer=name)
    assert tokens_of(tmp_path / "out") == tokens_of(models[1])
    assert_merged(tmp_path / "out", base, models)
    assert notes[-1] == "the vocabulary is that of two: 8 rows"


def test_tokens_in_other_rows_go_by_their_text(tmp_path: Path):
    base = write(tmp_path / "base", 0, WORDS)
    model = write(tmp_path / "one", 1, WORDS[::-1])
    notes = fuse(base, [model], tmp_path / "out")
    assert_merged(tmp_path / "out", base, [model])
    assert notes == ["one: 4 tokens in other rows are matched by their text"]


def test_padded_rows_are_left_out_and_said(tmp_path: Path):
    base = write(tmp_path / "base", 0, WORDS)
    model = write(tmp_path / "one", 1, WORDS, rows=64)
    assert fuse(base, [model], tmp_path / "out") == ["one: 60 rows without a token left out"]
    assert_merged(tmp_path / "out", base, [model])


def test_new_tokens_take_free_rows_of_the_base(tmp_path: Path):
    base = write(tmp_path / "base", 0, WORDS, rows=8)
    model = write(tmp_path / "one", 1, WORDS, ["<s>"], rows=8)
    fuse(base, [model], tmp_path / "out", tokenizer="union")
    assert load_file(tmp_path / "out/model.safetensors")[EMBEDDING].shape == (8, 3)
    assert_merged(tmp_path / "out", base, [model])


def test_a_special_token_moves_with_the_tokenizer(tmp_path: Path):
    base = write(tmp_path / "base", 0, WORDS)
    model = write(tmp_path / "one", 1, ["c", *WORDS[:3]])
    fuse(base, [model], tmp_path / "out", tokenizer="one")
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 0
    assert_merged(tmp_path / "out", base, [model])


def test_embeddings_that_are_not_merged_need_no_choice(
    chat: tuple[Path, list[Path]], tmp_path: Path
):
    base, models = chat
    fuse(base, models, tmp_path / "out", from_base=(r"lm_head.*", r".*embed.*"))
    found, before = (load_file(each / "model.safetensors") for each in (tmp_path / "out", base))
    np.testing.assert_array_equal(found[EMBEDDING], before[EMBEDDING])


def test_a_head_that_is_not_merged_goes_by_token_too(tmp_path: Path):
    base, model = write(tmp_path / "base", 0, WORDS), write(tmp_path / "one", 1, WORDS[::-1])
    fuse(base, [model], tmp_path / "out", tokenizer="one", from_base=("lm_head.*",))
    for token in WORDS:
        found, expected = row_of(tmp_path / "out", token), row_of(base, token)
        assert found is not None
        assert expected is not None
        np.testing.assert_array_equal(found[HEAD], expected[HEAD])


def test_a_head_that_is_not_merged_has_no_rows_for_new_tokens(
    chat: tuple[Path, list[Path]], tmp_path: Path
):
    with pytest.raises(InputError, match=r"base: lm_head.bias has no row for 3 tokens of the outp"):
        fuse(*chat, tmp_path / "out", tokenizer="union", from_base=("lm_head.*",))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("words", {"tokenizer": "union"}, r"'d' of one is a word of its vocabulary and not a"),
        ("bare", {}, r"one: its embeddings have 6 rows, those of \S*base 4, and \S*one has no tok"),
        ("bare", {"tokenizer": "one"}, r"--tokenizer one: one has no tokenizer that lists"),
        ("none", {"tokenizer": "uniom"}, r"unknown tokenizer 'uniom'. Did you mean 'union'"),
        ("damage", {}, r"tokenizer.json: not a tokenizer of the tokenizers library"),
    ],
)
def test_what_cannot_be_matched_is_refused(
    tmp_path: Path, change: str, options: dict[str, Any], message: str
):
    base = write(tmp_path / "base", 0, WORDS)
    added = ["<s>", "<e>"]
    if change == "words":
        model = write(tmp_path / "one", 1, [*WORDS, "d"])
    else:
        model = write(tmp_path / "one", 1, WORDS, added)
    if change == "bare":
        (model / "tokenizer.json").unlink()
    if change == "damage":
        (model / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=message):
        fuse(base, [model], tmp_path / "out", **options)


def test_a_vocabulary_of_lines_is_read(tmp_path: Path):
    """BERT's vocab.txt, and GPT-2's vocab.json."""
    folders = [write(tmp_path / "base", 0, WORDS), write(tmp_path / "one", 1, WORDS[::-1])]
    for folder, words in zip(folders, (WORDS, WORDS[::-1]), strict=True):
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    plain = tmp_path / "plain"
    fuse(folders[0], folders[1:], plain)
    for folder in folders:
        (folder / "tokenizer.json").unlink()
    fuse(folders[0], folders[1:], tmp_path / "lines")
    for folder in folders:
        words = (folder / "vocab.txt").read_text().split()
        (folder / "vocab.txt").unlink()
        (folder / "vocab.json").write_text(json.dumps({w: n for n, w in enumerate(words)}))
    fuse(folders[0], folders[1:], tmp_path / "words")
    first = (plain / "model.safetensors").read_bytes()
    assert first == (tmp_path / "lines/model.safetensors").read_bytes()
    assert first == (tmp_path / "words/model.safetensors").read_bytes()
