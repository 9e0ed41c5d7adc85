"""`rmtllmf generate`: text from a directory, and what cannot be continued."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_decoder import write_decoder

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.models import generate, load_decoder, read_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("model"))


def test_prompts_and_what_follows_are_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompts = ["the end", "one and the"]
    words = ["--tokens", "7", "--cache-dir", str(tmp_path)]
    main(["generate", str(folder), *prompts, *words])
    greedy = capsys.readouterr().out
    decoder, params = load_decoder(folder)
    tokenizer = read_tokenizer(folder, decoder.shape)
    ids = tokenizer(prompts)["input_ids"]
    added = generate(decoder, params, ids, 7, end=1)
    texts = [tokenizer.decode(a + b, skip_special_tokens=True).strip() for a, b in zip(ids, added)]
    assert greedy == "".join(f"{text}\n" for text in texts)
    drawn = []
    for seed in ("1", "1", "2"):
        main(["generate", str(folder), "the", *words, "--temperature", "2", "--seed", seed])
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["the", "--top-k", "3"], "give --temperature above 0"),
        (["the", "--temperature", "1", "--top-p", "0"], "top_p must be"),
        (["the", "--temperature", "-1"], "--temperature must be"),
        (["the" * 60, "--tokens", "9"], "the model takes at most 64"),
        (["the", "--tokens", "0"], "count must be at least 1"),
        ([], "generate needs a prompt"),
    ],
)
def test_what_cannot_be_continued(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(folder), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_directory_without_tokenizer_or_with_a_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_decoder(tmp_path / "model", vocab_size=200)
    with pytest.raises(SystemExit):
        main(["generate", str(folder), "the"])
    assert "tokenizer has 263 tokens, and vocab_size of the model is 200" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SystemExit):
        main(["generate", str(folder), "the"])
    assert f"{folder}: no tokenizer that can be read" in capsys.readouterr().err
