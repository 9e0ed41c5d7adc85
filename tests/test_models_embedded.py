"""The models that come with the project: found by name, whole, small, and fit for their tasks."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data import EMBEDDED_TEXTS, EmbeddedTexts, load_texts
from rmtllmf_jax.data.registry import prompt_classes
from rmtllmf_jax.data.sources.embedded import EMBEDDED
from rmtllmf_jax.evaluation import NegativeLogLikelihood, evaluate, text_batches
from rmtllmf_jax.models import hub
from rmtllmf_jax.models.hub import (
    EMBEDDED_MODELS,
    embedded_directory,
    in_cache,
    local_directory,
)
from rmtllmf_jax.models.pretrained import load_clip, load_decoder
from rmtllmf_jax.models.tokens import load_tokenizer
from rmtllmf_jax.models.zero_shot import zero_shot_head


def test_it_is_found_by_its_name():
    assert local_directory("clip-mini") == embedded_directory()
    assert in_cache("clip-mini")


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "clip-mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert local_directory("clip-mini") == Path("clip-mini")


@pytest.mark.parametrize(("name", "most"), [("clip-mini", 12e6), ("llama-mini", 1.2e6)])
def test_they_have_a_card_and_are_small(name: str, most: float):
    files = list(embedded_directory(name).iterdir())
    assert sum(file.stat().st_size for file in files) < most
    card = (embedded_directory(name) / "README.md").read_text(encoding="utf-8")
    for part in ("## Data", "## Recipe", "## Accuracy", "## Licence"):
        assert part in card
    assert "Not measured yet" not in card


def test_a_wheel_holds_every_embedded_model():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {
        f"checkpoints/{name}": f"rmtllmf_jax/checkpoints/{name}" for name in EMBEDDED_MODELS
    }


@pytest.mark.parametrize("name", EMBEDDED_TEXTS)
def test_the_language_model_half_knows_the_embedded_texts(name: str, tmp_path: Path):
    """It has read every style of answer, so that no option of a choice is new or certain."""
    decoder, params = load_decoder("llama-mini")
    rows = load_texts(
        EmbeddedTexts(task=EMBEDDED_TEXTS[name], split="validation"), "llama-mini", 128, tmp_path
    )
    few = rows.take(np.arange(8))
    nats = evaluate(NegativeLogLikelihood(), decoder, params, text_batches(few, 8))
    assert 0.4 < nats < 1.6  # log 768 = 6.6 by chance


def test_another_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown embedded model 'clip-min'.*'clip-mini'"):
        embedded_directory("clip-min")


def test_a_package_without_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "package" / "models" / "hub.py"))
    with pytest.raises(InputError, match=r"neither in .*package/checkpoints/clip-mini nor in"):
        embedded_directory()


@pytest.mark.parametrize("name", EMBEDDED)
def test_its_heads_tell_the_classes_of_the_embedded_tasks_apart(name: str):
    """Words that no image taught it have directions of their own, or fine-tuning would fail."""
    folder = embedded_directory()
    clip, params = load_clip(folder)
    classes = prompt_classes(name, EMBEDDED[name].classes)
    head = zero_shot_head(clip, params, load_tokenizer(folder), classes, ["a photo of a {}"])
    kernel = np.asarray(head.kernel)
    directions = kernel / np.linalg.norm(kernel, axis=0)
    cosines = (directions.T @ directions)[~np.eye(len(classes), dtype=bool)]
    assert cosines.mean() < 0.6
    alike = (cosines > 0.99).sum() // 2
    assert alike <= (3 if name == "signs" else 0)  # the three speed limits, as the card says
