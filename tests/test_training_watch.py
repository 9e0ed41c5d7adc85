"""What a training is watched by: its curve, the best step, an early end; also after a kill."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.training.watch import Choice, Watch, rank, read_curve, write_curve

SCORES = {
    2: (0.5, 1.0),
    4: (0.7, 0.9),
    6: (0.7, 0.8),
    8: (0.7, 0.8),
    10: (0.6, 0.1),
    12: (0.6, 0.1),
}
"""Validation accuracy and loss after a step."""


def watch_in(folder: Path, choice: Choice, told: list | None = None, **scores: object) -> Watch:
    def score(params: dict) -> dict[str, float]:
        accuracy, loss = SCORES[int(params["w"][0])]
        return {"validation_accuracy": accuracy, "validation_loss": loss}

    tell = (lambda step, row: told.append((step, dict(row)))) if told is not None else None
    options = {"tell": tell} if tell else {}
    return Watch(folder / "curve.csv", folder / "best.safetensors", score, choice, **options)


def train(watch: Watch, first: int = 0, last: int = 12) -> dict:
    """Train for some steps; what is trained says which step it is of."""
    watch.resume(first)
    for step in range(first + 1, last + 1):
        watch.saw(step, jnp.float32(1 / step))
        params = {"w": jnp.full(3, float(step))}
        if step % 2 == 0:
            watch.look(step, params)
            if watch.stops:
                break
    return params


def test_the_best_is_the_earliest_of_equals_and_the_last_stays_without_it(tmp_path: Path):
    told: list = []
    best = watch_in(tmp_path / "a", Choice(keep_best=True), told)
    last = train(best)
    assert best.chosen(last)["w"][0] == 6
    plain = watch_in(tmp_path / "b", Choice())
    assert plain.chosen(train(plain))["w"][0] == 12
    assert not (tmp_path / "b" / "best.safetensors").exists()
    curve = read_curve(tmp_path / "a" / "curve.csv")
    assert curve[3] == {"loss": pytest.approx(1 / 3)}
    assert curve[6]["validation_accuracy"] == 0.7
    assert [step for step, _ in told] == list(range(1, 13))
    assert dict(told)[6] == curve[6]


def test_training_ends_when_patience_does(tmp_path: Path):
    watch = watch_in(tmp_path, Choice(keep_best=True, patience=2))
    assert train(watch)["w"][0] == 10  # two scores after the best of step 6
    watch = watch_in(tmp_path / "more", Choice(patience=3))
    assert train(watch)["w"][0] == 12
    assert watch.stops


@pytest.mark.parametrize("killed", [4, 6, 8])
@pytest.mark.parametrize("seen", [0, 2, 4])
def test_a_killed_training_ends_with_the_same(tmp_path: Path, killed: int, seen: int):
    """Steps after the checkpoint were seen already, and are seen again."""
    choice = Choice(keep_best=True, patience=2)
    whole = watch_in(tmp_path / "whole", choice)
    expected = whole.chosen(train(whole))
    train(watch_in(tmp_path / "part", choice), last=min(killed + seen, 10))
    again = watch_in(tmp_path / "part", choice)
    np.testing.assert_array_equal(again.chosen(train(again, first=killed))["w"], expected["w"])
    curves = [tmp_path / name / "curve.csv" for name in ("whole", "part")]
    assert curves[0].read_text() == curves[1].read_text()


def test_scores_that_are_not_finite_are_the_worst():
    bad = {"validation_accuracy": 0.9, "validation_loss": float("nan")}
    assert rank(bad) < rank({"validation_accuracy": 0.0, "validation_loss": 1e9})
    assert rank({"validation_loss": 1.0}) > rank({"validation_loss": 2.0})  # of texts


def test_what_cannot_be_watched_is_refused(tmp_path: Path):
    files = tmp_path / "curve.csv", tmp_path / "best.safetensors"
    with pytest.raises(InputError, match=r"there is no validation part"):
        Watch(*files, choice=Choice(patience=3))
    with pytest.raises(InputError, match="patience must be at least 1, got 0"):
        Choice(patience=0)
    files[0].write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"curve\.csv: not a learning curve"):
        read_curve(files[0])
    write_curve(files[0], {3: {"loss": 0.1}, 1: {}})
    assert read_curve(files[0]) == {1: {}, 3: {"loss": 0.1}}
