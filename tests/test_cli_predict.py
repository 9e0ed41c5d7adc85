"""`rmtllmf predict`: a classifier on image files, and what cannot be classified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CONFIG, png, write_model

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.evaluation import classify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"id2label": {"0": "cat", "1": "dog", "2": "owl"}}
    return write_model(tmp_path_factory.mktemp("model") / "vit", TINY_CONFIG | names)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, shape in (("b", (20, 31, 3)), ("a", (16, 16)), ("c", (64, 40, 3))):
        (folder / f"{name}.png").write_bytes(png(random.integers(0, 256, shape, np.uint8)))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_classes_and_probabilities_are_printed(model: Path, images: Path, tmp_path: Path, capsys):
    words = ["--cache-dir", str(tmp_path)]
    main(["predict", str(model), str(images), "--json", *words])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [str(images / f"{name}.png") for name in "abc"]
    for classes in found.values():
        shares = list(classes.values())
        assert set(classes) == {"cat", "dog", "owl"}
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-6)
    by_one = classify(model, sorted(images.glob("*.png")), batch_size=1)  # one compiled batch size
    both = classify(model, sorted(images.glob("*.png")), batch_size=2)
    np.testing.assert_allclose(by_one.probabilities, both.probabilities, atol=1e-6)
    main(["predict", str(model), str(images / "b.png"), "--top", "1", *words])
    printed = capsys.readouterr().out
    best, share = next(iter(found[str(images / "b.png")].items()))
    assert f"{best}" in printed
    assert f"{100 * share:.1f} %" in printed
    assert "a.png" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "predict needs an image"),
        (["nowhere.png"], "nowhere.png: cannot be read (No such file or directory)"),
        (["a.png", "--top", "0"], "--top must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_classified(
    model: Path, words: list[str], said: str, tmp_path: Path, capsys
):
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(model), *words, "--cache-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
