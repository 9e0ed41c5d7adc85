"""LoRA: what is trained, what is stored, and that its update is a task vector."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TinyRun, assert_trees_equal, command
from test_training import (  # noqa: F401
    RECIPE,
    Tiny,
    batch_of,
    counted,
    run_finetune,
    samples,
    some_head,
    start,
    tiny,
)

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.fusion.files.checkpoint import open_checkpoint
from rmtllmf_jax.fusion.files.vectors import open_vector
from rmtllmf_jax.models.weights import read_safetensors
from rmtllmf_jax.runs import open_run
from rmtllmf_jax.training.finetune import first_state, train_step
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.task_models import FineTuned

LORA = Lora(rank=2, alpha=3.0)
KERNELS = [f"encoder/layer/0/attention/attention/{name}/kernel" for name in ("query", "value")]


def drawn(base: dict, lora: Lora = LORA) -> dict:
    """Return factors of which none is zero."""
    shapes, tree = jax.tree.flatten(lora.first(base, jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), len(shapes))
    values = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, shapes)]
    return jax.tree.unflatten(tree, values)


def test_the_base_is_where_it_begins_and_products_are_added(tiny: Tiny):  # noqa: F811
    _, base = tiny
    first = LORA.first(base, jax.random.key(0))
    assert sorted(first) == KERNELS
    assert_trees_equal(LORA.applied(base, first), base)
    factors = drawn(base)
    before, after = (leaves_by_path(tree) for tree in (base, LORA.applied(base, factors)))
    for path, leaf in before.items():
        expected = np.asarray(leaf, np.float64)
        if path in KERNELS:
            a, b = (np.asarray(factors[path][name], np.float64) for name in "ab")
            expected = expected + 1.5 * a @ b
        np.testing.assert_allclose(after[path], expected, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(("init", "std"), [("gaussian", 0.25), ("kaiming", 1 / np.sqrt(3 * 400))])
def test_first_factors_are_those_of_peft(init: str, std: float):
    base = {"q_proj": {"kernel": jnp.zeros((400, 50))}}
    lora = Lora(4, targets=("q_proj",), init=init)
    a = lora.first(base, jax.random.key(0))["q_proj/kernel"]["a"]
    assert float(a.std()) == pytest.approx(std, rel=0.05)
    bound = np.abs(np.asarray(a)).max()
    assert bound <= 0.05 if init == "kaiming" else bound > 3 * std


def test_gradients_are_those_of_all_parameters_by_the_chain_rule(tiny: Tiny):  # noqa: F811
    backbone, base = tiny
    images, labels = (jnp.asarray(array) for array in samples(8))
    head, factors = some_head(3), drawn(base)
    # Clipped below Adam's epsilon, as a step of Adam is the sign of the gradient, zero or not.
    recipe = replace(RECIPE, warmup=0.0, clip_norm=1e-8, weight_decay=0.0)

    def loss(params: dict) -> jax.Array:
        logits = head(backbone.features(params, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(LORA.applied(base, factors))
    whole = leaves_by_path(gradient)
    chained = {
        path: {"a": 1.5 * whole[path] @ pair["b"].T, "b": 1.5 * pair["a"].T @ whole[path]}
        for path, pair in factors.items()
    }
    updates, _ = recipe.optimiser().update(chained, start(factors, recipe)["optimiser"], factors)
    expected = leaves_by_path(optax.apply_updates(factors, updates))
    options = {"model": backbone, "recipe": recipe, "lora": LORA}
    batch = batch_of(images, labels)
    state, found = train_step(start(factors, recipe), batch, head, None, base, **options)
    assert float(found) == pytest.approx(float(value), rel=1e-5)
    for path, leaf in leaves_by_path(state["params"]).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=2e-6, err_msg=path)


def test_the_optimiser_has_a_state_of_the_factors_alone(tiny: Tiny):  # noqa: F811
    _, base = tiny

    def size(tree: object) -> int:
        return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))

    factors = LORA.first(base, jax.random.key(0))
    assert size(factors) == 4 * 2 * 2 * (16 + 16)
    state = size(first_state(factors, RECIPE)["optimiser"])
    assert 2 * size(factors) <= state <= 2 * size(factors) + 64  # two moments, and counts
    assert size(first_state(base, RECIPE)["optimiser"]) > 10 * state


def test_a_killed_run_ends_bitwise_where_the_whole_one_does(
    tiny: Tiny,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    options = {"lora": LORA, "name": "mnist"}
    whole = run_finetune(tiny, tmp_path / "whole", **options)
    assert all(np.any(np.asarray(pair["b"])) for pair in whole.values())
    counted(monkeypatch, 3, SystemError)
    with pytest.raises(SystemError):
        run_finetune(tiny, tmp_path / "killed", **options)
    counted(monkeypatch)
    assert_trees_equal(run_finetune(tiny, tmp_path / "killed", **options), whole)
    other = run_finetune(tiny, tmp_path / "other", lora=LORA, name="svhn")
    assert not np.array_equal(other[KERNELS[0]]["a"], whole[KERNELS[0]]["a"])


def test_a_lora_is_part_of_the_name(tiny: Tiny):  # noqa: F811
    assert FineTuned(*tiny, RECIPE, 0, lora=LORA).key("mnist") == {
        "recipe": asdict(RECIPE) | {"lora": asdict(LORA)}
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "the rank of a LoRA must be at least 1, got 0"),
        ({"rank": 1, "alpha": 0.0}, "alpha of a LoRA must be .* > 0, got 0"),
        ({"rank": 1, "init": "gausian"}, "Did you mean 'gaussian'"),
        ({"rank": 1, "targets": ()}, "needs at least one target"),
        ({"rank": 17}, "query/kernel has the shape \\(16, 16\\).* take a smaller rank"),
        (
            {"rank": 1, "targets": ("qery",)},
            "target 'qery' matches no module .* has dense, .*query",
        ),
        ({"rank": 1, "targets": ("q(",)}, "target 'q\\(' is not a regular expression"),
    ],
)
def test_bad_options_are_refused_by_name(tiny: Tiny, options: dict, said: str):  # noqa: F811
    with pytest.raises(InputError, match=said):
        FineTuned(*tiny, RECIPE, 0, lora=Lora(**options))


def test_a_run_keeps_the_factors_and_opens_as_any_other(finished: TinyRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run", sweep=False)
    words = ("finetune", "--out", run, *finished.users, "--tasks", "mnist", "--steps", "3")
    lora = ("--lora-rank", "2", "--lora-alpha", "8", "--learning-rate", "0.01")
    done = subprocess.run(command(*words, *lora), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    user = json.loads((run / "finetuned.json").read_text())["users"]["mnist"]
    assert user["recipe"]["lora"] == json.loads(json.dumps(asdict(Lora(2, 8.0))))
    stored = read_safetensors(run / user["finetuned"])
    opened = open_run(run, ("mnist",), cache_dir=tmp_path)
    for path, leaf in leaves_by_path(opened.vectors).items():
        factors = [stored.get(f"{path}/{name}") for name in "ab"]
        if factors[0] is None:
            assert not np.any(leaf), path
        else:
            expected = 4.0 * np.asarray(factors[0], np.float64) @ factors[1]
            np.testing.assert_allclose(leaf[0], expected, atol=1e-6, err_msg=path)
    assert {path.rpartition("/")[0] for path in stored} == set(KERNELS)
    # `fuse` takes the file as it takes the model that `export` makes of it, onto its base alone.
    file, whole = run / user["finetuned"], tmp_path / "whole"
    bare = ["--classifier", "none"]
    main(["export", str(run), "--tasks", "mnist", "--to", str(whole), *bare])
    merged = []
    for model in (file, whole):
        out = tmp_path / f"merged-{model.stem}"
        words = ("fuse", "--base", opened.config.model, "--models", model, "--scale", 0.5)
        main([*map(str, words), "--method", "task_arithmetic", "--out", str(out)])
        merged.append(read_safetensors(out / "model.safetensors"))
    assert merged[0].keys() == merged[1].keys()
    for key, tensor in merged[0].items():
        np.testing.assert_allclose(tensor, merged[1][key], atol=1e-6, err_msg=key)
    assert refused(file, whole) == f"{file}: a task vector of another base model"


def refused(model: Path, base: Path) -> str:
    """Return what a merge of a model onto another base is refused with, up to the bracket."""
    with pytest.raises(InputError) as error:
        open_vector(model).seen(open_checkpoint(base))
    return str(error.value).partition(" (")[0]
