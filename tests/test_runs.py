"""Run folders as objects, of this version and of 0.1.0."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TinyRun, assert_trees_equal

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data import evaluation_subset
from rmtllmf_jax.fusion import add_to_base, unstack
from rmtllmf_jax.runs import Run, embedded, embedded_run, open_run

OLD = Path(__file__).parent / "version_0_1_0"
"""What `rmtllmf finetune` of version 0.1.0 made on mnist and svhn of `tiny_data`, and its model."""


@pytest.fixture(scope="module")
def old(tiny_data: Path, cache_dir: Path) -> Run:
    return open_run(OLD / "run", model=str(OLD / "model"), data=tiny_data, cache_dir=cache_dir)


def test_a_run_of_version_0_1_0_opens(old: Run):
    assert old.names == ("mnist", "svhn")
    assert old.provenance is None
    inputs = old.inputs()
    assert [len(task.classes) for task in inputs.data] == [2, 3]
    assert inputs.heads.kernel.shape == (2, 16, 3)
    for user, task in enumerate(old.names):
        rebuilt = add_to_base(old.base, unstack(inputs.vectors)[user], 1.0)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-7), rebuilt, old.finetuned(task))


def test_a_run_has_what_finetune_made(finished: TinyRun, cache_dir: Path):
    run = open_run(str(finished.folder), ("svhn", "dtd"), cache_dir=cache_dir)
    assert run.names == ("dtd", "svhn")  # sorted: user q sends the q-th
    assert run.provenance is not None
    assert run.provenance["users"] == json.loads(json.dumps(run.summary()))
    whole = open_run(finished.folder, cache_dir=cache_dir)
    assert_trees_equal(whole.finetuned("svhn"), run.finetuned("svhn"))
    assert whole.inputs().fingerprint["setting"] == run.inputs().fingerprint["setting"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ("mnst",)}, "unknown task 'mnst'. Did you mean 'mnist'?"),
        ({"model": "/nowhere"}, "If it was moved, give its new place with --model."),
        ({"data": Path("nowhere")}, "give their new place with --data."),
    ],
)
def test_what_cannot_be_opened_is_said(options: dict, said: str, tiny_data: Path, tmp_path: Path):
    where = {"model": str(OLD / "model"), "data": tiny_data, "cache_dir": tmp_path} | options
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        open_run(OLD / "run", where.pop("tasks", ()), **where).inputs()


def test_other_images_and_other_weights_are_refused(tiny_data: Path, tmp_path: Path):
    run = shutil.copytree(OLD / "run", tmp_path / "run")
    manifest = json.loads((run / "finetuned.json").read_text())
    manifest["users"]["svhn"]["classes"] = 4
    (run / "finetuned.json").write_text(json.dumps(manifest))
    opened = open_run(run, model=str(OLD / "model"), data=tiny_data, cache_dir=tmp_path)
    with pytest.raises(InputError, match="'svhn' has 3 classes, and the run was fine-tuned on 4"):
        _ = opened.tasks
    manifest["setting"]["model_hash"] = "0" * 64
    (run / "finetuned.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="not the weights that the run was fine-tuned from"):
        _ = open_run(run, model=str(OLD / "model"), data=tiny_data, cache_dir=tmp_path).base


def test_embedded_users_are_fine_tuned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = replace(embedded.DEMO, finetune=replace(embedded.DEMO.finetune, steps=2, batch_size=8))
    monkeypatch.setattr(embedded, "DEMO", short)
    run = embedded_run(("digits", "counts"))
    assert run.path == tmp_path / "cache" / "rmtllmf" / "embedded" / "seed-0"
    assert run.names == ("counts", "digits")
    assert all(user.recipe["steps"] == 2 for user in run.users.values())

    def refuse(*_: object) -> None:
        raise AssertionError("fine-tuned again")

    monkeypatch.setattr(embedded.FineTuned, "params", refuse)
    again = embedded_run(("digits",))
    assert_trees_equal(again.finetuned("digits"), run.finetuned("digits"))
    with pytest.raises(InputError, match=r"unknown task 'digit'\. Did you mean 'digits'\?"):
        embedded_run(("digit",))

    found = again.accuracies(again.finetuned("digits"), samples=40)
    chosen = evaluation_subset(len(again.tasks[0].test), 40, 0)
    rows = again.tasks[0].test.take(chosen)
    head = jax.tree.map(lambda leaf: leaf[0], again.heads)
    logits = head(again.model.features(again.finetuned("digits"), jax.device_put(rows.images)))
    assert found == {"digits": np.mean(np.argmax(logits, axis=-1) == rows.labels)}
