"""Batches, recipes, fine-tuning that resumes, realignment, and the users' artefacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_equal, write_task

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash
from rmtllmf_jax.data.cache import Images
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.task_data import Rows, TaskData, load_task
from rmtllmf_jax.defences.repairs import frozen_leaves
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import Backbone, load_backbone
from rmtllmf_jax.models.heads import Head, lda_head, stack_heads
from rmtllmf_jax.models.zero_shot import load_head, save_head
from rmtllmf_jax.runs.config import RunConfig, UserRecord, compute_dtype
from rmtllmf_jax.runs.manifest import load_manifest
from rmtllmf_jax.runs.users import load_user, train_users
from rmtllmf_jax.training import finetune as finetune_module
from rmtllmf_jax.training import task_heads, task_models
from rmtllmf_jax.training.batches import balanced_batches, epoch_batch
from rmtllmf_jax.training.finetune import WeightNoise, finetune, run_steps, train_step
from rmtllmf_jax.training.realign import realign
from rmtllmf_jax.training.recipes import Recipe
from rmtllmf_jax.training.task_models import FineTuned

Tiny = tuple[Backbone, dict]
RECIPE = Recipe(steps=5, batch_size=8, learning_rate=1e-3, weight_decay=0.1)


@pytest.fixture(autouse=True, scope="module")
def _count_traces_from_zero() -> None:
    jax.clear_caches()
    chex.clear_trace_counter()


@pytest.fixture(scope="module")
def tiny(shallow_model: Path) -> Tiny:
    """A backbone of one layer, which compiles fast."""
    return load_backbone(shallow_model)


def some_head(classes: int, seed: int = 0) -> Head:
    random = np.random.default_rng(seed)
    kernel, bias = random.normal(size=(16, classes)), random.normal(size=classes)
    return Head(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))


def samples(count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose brightness grows with their label."""
    random = np.random.default_rng(1)
    labels = (np.arange(count) % classes).astype(np.int32)
    noise = random.integers(0, 80, (count, 16, 16, 3))
    return (noise + 80 * labels[:, None, None, None]).astype(np.uint8), labels


# Batches


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (10, 10), (6, 4), (4, 10), (1, 2)])
def test_every_epoch_covers_every_sample_once(count: int, batch_size: int):
    epochs = 3 * batch_size
    batches = [epoch_batch(count, batch_size, step, 0) for step in range(3 * count)]
    assert {batch.shape for batch in batches} == {(batch_size,)}
    for epoch in np.concatenate(batches).reshape(epochs, count):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


def test_a_batch_is_a_function_of_seed_and_step():
    def run(*seed: int) -> np.ndarray:
        return np.concatenate([epoch_batch(50, 7, step, *seed) for step in range(20)])

    np.testing.assert_array_equal(run(3), run(3))
    assert not np.array_equal(run(3), run(4))
    assert not np.array_equal(run(3, 0), run(3, 1))
    first, second = run(3)[:50], run(3)[50:100]
    assert not np.array_equal(first, second)


GROUPS = [np.arange(0, 4), np.arange(100, 130), np.arange(200, 207)]


@pytest.mark.parametrize(("steps", "batch_size"), [(6, 9), (10, 4), (7, 2)])
def test_tasks_take_equal_turns_whatever_their_size(steps: int, batch_size: int):
    batches = balanced_batches(GROUPS, steps, batch_size, 0)
    assert batches.shape == (steps, batch_size)
    for rows in (*batches, batches.ravel()):
        counts = np.bincount(rows // 100, minlength=3)
        assert counts.max() - counts.min() <= 1
    for group in GROUPS:
        used = np.array([np.sum(batches == sample) for sample in group])
        assert used.max() - used.min() <= 1


# Recipes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -2}, "batch size must be at least 1, got -2"),
        ({"learning_rate": float("nan")}, "learning rate must be a finite number >= 0, got nan"),
        ({"learning_rate": -1e-3}, "learning rate must be a finite number >= 0, got -0.001"),
        ({"weight_decay": float("inf")}, "weight decay must be a finite number >= 0, got inf"),
        ({"clip_norm": -1.0}, "clip norm must be a finite number >= 0, got -1.0"),
        ({"warmup": float("nan")}, "warmup must be a finite number >= 0, got nan"),
        ({"warmup": 1.5}, "warmup is a share of the steps, at most 1, got 1.5"),
    ],
)
def test_numbers_that_cannot_train_are_refused(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        replace(RECIPE, **change)


# Fine-tuning


def start(params: dict, recipe: Recipe = RECIPE) -> dict:
    params = jax.tree.map(jnp.copy, params)
    return {"params": params, "optimiser": recipe.optimiser().init(params)}


def test_training_lowers_the_loss_and_reports_it_before_the_step(tiny: Tiny):
    backbone, params = tiny
    images, labels = (jnp.asarray(array) for array in samples(8))
    head = some_head(3)
    logits = head(jax.jit(backbone.features)(params, images))
    expected = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), labels])
    state, losses = start(params), []
    for _ in range(5):
        state, loss = train_step(
            state, batch_of(images, labels), head, model=backbone, recipe=RECIPE
        )
        losses.append(float(loss))
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4)
    assert losses[4] < 0.9 * losses[0]


def batch_of(images: Any, labels: Any) -> Batch:
    return Batch({"images": images}, labels, jnp.ones(len(labels)))


def run_finetune(tiny: Tiny, checkpoints: Path, **options: Any) -> dict:
    backbone, params = tiny
    images, labels = samples(21)
    arguments = {"recipe": RECIPE, "seed": 4, "every": 2} | options
    rows = Rows(Images(images, labels, ("a", "b", "c"), ""), np.arange(21))
    return finetune(backbone, params, some_head(3), rows, checkpoints=checkpoints, **arguments)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run_finetune(tiny, tmp_path_factory.mktemp("whole") / "checkpoints")


def counted(
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int | None = None,
    how: type[BaseException] = KeyboardInterrupt,
) -> list[int]:
    """Count the steps taken, and raise instead of taking step `stop_at`."""
    taken: list[int] = []

    def step(*arguments: Any, **options: Any) -> Any:
        if len(taken) == stop_at:
            raise how
        taken.append(len(taken))
        return train_step(*arguments, **options)

    monkeypatch.setattr(finetune_module, "train_step", step)
    return taken


def test_finetuning_leaves_the_base_alone_and_moves_every_leaf(tiny: Tiny, uninterrupted: dict):
    before = leaves_by_path(tiny[1])
    for path, leaf in leaves_by_path(uninterrupted).items():
        assert np.isfinite(before[path]).all()  # not donated either
        assert not np.array_equal(leaf, before[path]), path


@pytest.mark.parametrize(
    ("how", "stop_at", "left"),
    [
        (SystemError, 1, 5),  # a crash loses what came after the last checkpoint
        (SystemError, 3, 3),
        (SystemError, 4, 1),
        (KeyboardInterrupt, 1, 4),  # Ctrl-C loses nothing
        (KeyboardInterrupt, 4, 1),
    ],
)
def test_an_interrupted_run_ends_bitwise_where_the_whole_one_does(
    tiny: Tiny,
    uninterrupted: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: type[BaseException],
    stop_at: int,
    left: int,
):
    counted(monkeypatch, stop_at, how)
    with pytest.raises(how):
        run_finetune(tiny, tmp_path)
    taken = counted(monkeypatch)
    assert_trees_equal(run_finetune(tiny, tmp_path), uninterrupted)
    assert len(taken) == left


def test_mixed_precision_computes_in_bfloat16_and_keeps_parameters_in_float32(
    tiny: Tiny, uninterrupted: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As accelerators do unless told otherwise: the same training up to rounding."""
    for backend, expected in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert compute_dtype("auto") == expected
        assert compute_dtype("float32") == "float32"
    monkeypatch.undo()
    backbone, params = tiny
    shape = replace(backbone.module.shape, dtype="bfloat16")
    half = replace(backbone, module=type(backbone.module)(shape))
    found = leaves_by_path(run_finetune((half, params), tmp_path / "checkpoints"))
    whole, before = leaves_by_path(uninterrupted), leaves_by_path(params)
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}
    moved = np.concatenate([np.ravel(whole[path] - before[path]) for path in whole])
    rounded = np.concatenate([np.ravel(found[path] - before[path]) for path in whole])
    assert not np.array_equal(moved, rounded)
    cosine = moved @ rounded / np.linalg.norm(moved) / np.linalg.norm(rounded)
    assert cosine > 0.9


def test_the_seed_orders_the_samples(tiny: Tiny, uninterrupted: dict, tmp_path: Path):
    other = run_finetune(tiny, tmp_path, seed=5)
    assert not np.array_equal(other["layernorm"]["scale"], uninterrupted["layernorm"]["scale"])


# Under noise on the weights


def test_the_gradient_is_taken_at_noisy_weights_and_the_step_from_the_others(tiny: Tiny):
    backbone, params = tiny
    images, labels = (jnp.asarray(array) for array in samples(8))
    noise, head = WeightNoise(0.02, jax.random.key(3)), some_head(3)
    # Clipped below Adam's epsilon, as a step of Adam is the sign of the gradient, zero or not.
    recipe = replace(RECIPE, warmup=0.0, clip_norm=1e-8)
    options = {"model": backbone, "recipe": recipe}
    noisy = noise.added_to(params)
    moved = [noisy_leaf - leaf for noisy_leaf, leaf in zip(*map(jax.tree.leaves, (noisy, params)))]
    std = np.concatenate([np.ravel(leaf) for leaf in moved]).std()
    assert std == pytest.approx(0.02, rel=0.05)

    def loss(at: dict) -> jax.Array:
        logits = head(backbone.features(at, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(noisy)
    updates, _ = recipe.optimiser().update(gradient, start(params, recipe)["optimiser"], params)
    state, found = train_step(
        start(params, recipe), batch_of(images, labels), head, noise, **options
    )
    assert float(found) == pytest.approx(float(value), rel=1e-5)
    expected = leaves_by_path(optax.apply_updates(params, updates))
    for path, leaf in leaves_by_path(state["params"]).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=2e-6, err_msg=path)


def test_noise_is_of_the_seed_the_task_and_the_step(
    tiny: Tiny, uninterrupted: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A killed run ends bitwise where the whole one does; other tasks have other noise."""
    noisy = {"weight_noise": 0.02, "name": "mnist"}
    whole = run_finetune(tiny, tmp_path / "whole", **noisy)
    counted(monkeypatch, 3, SystemError)
    with pytest.raises(SystemError):
        run_finetune(tiny, tmp_path / "killed", **noisy)
    counted(monkeypatch)
    assert_trees_equal(run_finetune(tiny, tmp_path / "killed", **noisy), whole)
    others = [noisy | {"name": "svhn"}, noisy | {"weight_noise": 0.03}]
    models = [run_finetune(tiny, tmp_path / str(n), **other) for n, other in enumerate(others)]
    scales = [tree["layernorm"]["scale"] for tree in (*models, uninterrupted)]
    assert not any(np.array_equal(scale, whole["layernorm"]["scale"]) for scale in scales)
    off = run_finetune(tiny, tmp_path / "off", weight_noise=0.0, name="mnist")
    assert_trees_equal(off, uninterrupted)


def test_noise_is_part_of_the_name_where_there_is_some(tiny: Tiny):
    plain, noisy = FineTuned(*tiny, RECIPE, 0), FineTuned(*tiny, RECIPE, 0, 0.02)
    assert plain.key("mnist") == {"recipe": asdict(RECIPE)}  # as models had it before
    assert noisy.key("mnist") == {"recipe": asdict(RECIPE) | {"weight_noise": 0.02}}
    with pytest.raises(InputError, match="weight noise must be a finite number >= 0, got -1"):
        FineTuned(*tiny, RECIPE, 0, -1.0)


@pytest.mark.parametrize(("every", "step"), [(2, 2), (50, 5)])
def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(
    tiny: Tiny, tmp_path: Path, every: int, step: int
):
    backbone, params = tiny
    broken = params | {
        "layernorm": params["layernorm"] | {"bias": jnp.full(16, jnp.nan, jnp.float32)}
    }
    with pytest.raises(InputError, match=f"digits: the loss is nan at step {step}; lower"):
        run_finetune((backbone, broken), tmp_path, every=every, description="digits")
    assert not any(folder.name.isdigit() for folder in tmp_path.iterdir())


# Realignment

# A second trace anywhere in these tests is an error.
realign_once = jax.jit(chex.assert_max_traces(realign, n=1), static_argnames=("model", "recipe"))
# Gradients clipped far below Adam's epsilon: updates show how much was clipped.
REALIGN_TINY = Recipe(4, 6, 1e-2, 0.1, clip_norm=1e-7)
HEADS = [some_head(2, 1), some_head(4, 2)]


def shot_pool() -> Batch:
    images, labels = samples(12, classes=4)
    task = np.arange(12) // 2 % 2
    inputs = {"images": jnp.asarray(images), "task": jnp.asarray(task)}
    return Batch(inputs, jnp.asarray(labels % (2 + 2 * task)), jnp.ones(12))


def trainable(params: dict) -> dict:
    return jax.tree.map(jnp.logical_not, frozen_leaves(params))


def shot_batches(seed: int = 0, steps: int = REALIGN_TINY.steps) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 12, (steps, 6)))


def run_realign(tiny: Tiny, flags: dict) -> tuple[dict, jax.Array]:
    backbone, params = tiny
    heads, pool = stack_heads(HEADS), shot_pool()
    return realign_once(
        params, flags, heads, pool, shot_batches(), model=backbone, recipe=REALIGN_TINY
    )


def plain_loop(tiny: Tiny, flags: dict) -> tuple[dict[str, jax.Array], list[float]]:
    """Train the flagged leaves alone: nothing else is known to the gradient or the optimiser."""
    backbone, params = tiny
    leaves, pool = leaves_by_path(params), shot_pool()
    moving = {path: leaves[path] for path, flag in leaves_by_path(flags).items() if flag}
    optimiser = REALIGN_TINY.optimiser()

    def loss(moving: dict, batch: jax.Array) -> jax.Array:
        whole = [moving.get(path, leaf) for path, leaf in leaves.items()]
        model = jax.tree.unflatten(jax.tree.structure(params), whole)
        features = backbone.features(model, pool.inputs["images"][batch])
        total = 0.0
        for index, head in enumerate(HEADS):
            label = jnp.minimum(pool.target[batch], len(head.bias) - 1)
            log = jnp.take_along_axis(jax.nn.log_softmax(head(features)), label[:, None], 1)[:, 0]
            total -= jnp.sum(jnp.where(pool.inputs["task"][batch] == index, log, 0.0))
        return total / len(batch)

    @jax.jit
    def step(moving: dict, state: Any, batch: jax.Array) -> tuple[dict, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(moving, batch)
        updates, state = optimiser.update(gradient, state, moving)
        return optax.apply_updates(moving, updates), state, value

    state, losses = optimiser.init(moving), []
    for batch in shot_batches():
        moving, state, value = step(moving, state, batch)
        losses.append(float(value))
    return moving, losses


def test_realignment_is_the_plain_loop_over_the_leaves_that_train(tiny: Tiny):
    flags = trainable(tiny[1])
    realigned, losses = run_realign(tiny, flags)
    expected, expected_losses = plain_loop(tiny, flags)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    before, after = leaves_by_path(tiny[1]), leaves_by_path(realigned)
    assert 0 < len(expected) < len(before)
    for path, leaf in before.items():
        if path not in expected:
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)
            continue
        move, expected_move = after[path] - leaf, expected[path] - leaf
        assert np.abs(expected_move).max() > 1e-5, path
        np.testing.assert_allclose(move, expected_move, rtol=0.02, atol=2e-6, err_msg=path)


@pytest.mark.parametrize(("average", "count"), [(0.5, 2), (1.0, 4), (0.1, 1), (0.7, 3)])
def test_realignment_may_average_the_last_weights(tiny: Tiny, average: float, count: int):
    """The mean of the iterates, which shorter runs of the same recipe end in."""
    backbone, params = tiny
    flags, batches = trainable(params), shot_batches()
    shared = (flags, stack_heads(HEADS), shot_pool())
    recipe = replace(REALIGN_TINY, clip_norm=1.0)
    run = jax.jit(realign, static_argnames=("model", "recipe", "average"))
    options = {"model": backbone, "recipe": recipe}
    # The schedule is the recipe's, whatever the number of batches.
    iterates = [run(params, *shared, batches[:n], **options)[0] for n in range(1, 5)]
    found, losses = run(params, *shared, batches, average=average, **options)
    np.testing.assert_array_equal(losses, run(params, *shared, batches, **options)[1])
    last = [leaves_by_path(tree) for tree in iterates[4 - count :]]
    for path, leaf in leaves_by_path(found).items():
        if not leaves_by_path(flags)[path]:
            np.testing.assert_array_equal(leaf, leaves_by_path(params)[path])
            continue
        each = np.stack([np.asarray(tree[path], np.float64) for tree in last])
        np.testing.assert_allclose(leaf, each.mean(axis=0), rtol=1e-6, atol=1e-7, err_msg=path)
        if count == 1:
            np.testing.assert_array_equal(leaf, last[0][path])


def test_one_trace_serves_all_combinations_and_frozen_leaves(tiny: Tiny):
    backbone, params = tiny
    everything = jax.tree.map(jnp.ones_like, trainable(params))
    for seed, flags in enumerate((trainable(params), everything)):
        heads = stack_heads([some_head(2, seed), some_head(4, seed + 7)])
        batches = shot_batches(seed)
        realigned, _ = realign_once(
            params, flags, heads, shot_pool(), batches, model=backbone, recipe=REALIGN_TINY
        )
    token, before = (tree["embeddings"]["cls_token"] for tree in (realigned, params))
    assert not np.array_equal(token, before)


# Users

SETTING = RunConfig(
    model="a", model_hash="b", data="c", image_size=16, validation_fraction=0.2, seed=0
)


@dataclass(frozen=True)
class Users:
    """What `train_users` needs, and a folder in which mnist and svhn are finished."""

    tiny: Tiny
    tasks: dict[str, TaskData]
    run: Path

    def train(
        self,
        *names: str,
        run: Path,
        setting: RunConfig = SETTING,
        recipe: Recipe = RECIPE,
        report: Callable[[str, UserRecord], None] = lambda task, record: None,
    ) -> dict[str, UserRecord]:
        tasks = [self.tasks[name] for name in names]
        models = FineTuned(*self.tiny, recipe, setting.seed)
        return train_users(*self.tiny, tasks, setting, models, run, report)


def load(folder: Path, name: str, cache: Path) -> TaskData:
    return load_task(DataFolder(folder), name, 16, cache, validation_fraction=0.2)


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Users:
    cache = tmp_path_factory.mktemp("cache")
    tasks = {name: load(tiny_data, name, cache) for name in ("mnist", "svhn", "dtd")}
    result = Users(tiny, tasks, tmp_path_factory.mktemp("runs") / "run")
    result.train("mnist", "svhn", run=result.run)
    return result


@pytest.fixture
def run(trained: Users, tmp_path: Path) -> Path:
    """A copy of the finished folder, to be changed freely."""
    return shutil.copytree(trained.run, tmp_path / "run")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and heads cost an exception."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("this was finished before")

    monkeypatch.setattr(task_models, "finetune", refuse)
    monkeypatch.setattr(task_heads, "lda_head", refuse)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training costs nothing, and is noted."""
    done: list[str] = []

    def copy(
        backbone: Backbone, base: dict, *arguments: Any, description: str, **options: Any
    ) -> dict:
        done.append(description)
        return base

    monkeypatch.setattr(task_models, "finetune", copy)
    return done


def artefacts(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def test_the_manifest_names_what_is_finished(trained: Users):
    setting, records = load_manifest(trained.run)
    assert setting == SETTING
    assert list(records) == ["mnist", "svhn"]
    assert [record.classes for record in records.values()] == [2, 3]
    for record in records.values():
        assert record.recipe == asdict(RECIPE)
        assert 0 <= record.base_validation_accuracy <= 1
        assert 0 <= record.finetuned_validation_accuracy <= 1
    named = {path for record in records.values() for path in (record.head, record.finetuned)}
    summaries = {path.replace(".safetensors", ".json") for path in named if "finetuned" in path}
    assert artefacts(trained.run) == {"finetuned.json"} | named | summaries


@pytest.mark.usefixtures("cheap")
def test_the_manifest_gathers_tasks_over_runs(trained: Users, run: Path):
    _, before = load_manifest(run)
    new = trained.train("dtd", run=run)
    assert load_manifest(run) == (SETTING, before | new)


def test_artefacts_are_a_head_and_the_model_trained_under_it(trained: Users):
    backbone, base = trained.tiny
    _, records = load_manifest(trained.run)
    task, record = trained.tasks["svhn"], records["svhn"]
    params, head = load_user(trained.run, record, base, backbone.width)
    assert head.kernel.shape == (16, 3)
    features = jax.jit(backbone.features)
    for model, accuracy in (
        (base, record.base_validation_accuracy),
        (params, record.finetuned_validation_accuracy),
    ):
        rows = task.validation
        guess = np.argmax(head(features(model, jnp.asarray(rows.images))), axis=1)
        assert np.mean(guess == rows.labels) == pytest.approx(accuracy)
    own = np.argmax(head(features(base, jnp.asarray(task.train.images))), axis=1)
    assert np.mean(own == task.train.labels) > 0.6
    assert not np.array_equal(params["layernorm"]["scale"], base["layernorm"]["scale"])


@pytest.mark.usefixtures("no_training")
def test_what_is_finished_is_not_done_again(trained: Users, run: Path):
    seen: list[str] = []
    before = artefacts(run)
    records = trained.train("mnist", "svhn", run=run, report=lambda task, record: seen.append(task))
    assert records == load_manifest(trained.run)[1]
    assert seen == ["mnist", "svhn"]
    assert artefacts(run) == before
    moved = replace(SETTING, model="elsewhere", data="elsewhere")  # places may change
    trained.train("mnist", run=run, setting=moved)
    there = replace(records["mnist"], images=moved.images())  # of each user
    assert load_manifest(run) == (moved, {**records, "mnist": there})


@pytest.mark.parametrize(
    ("setting", "recipe"),
    [
        ({}, {"learning_rate": 2e-3}),  # new models under the old heads
        ({"seed": 1}, {}),  # new heads and a new manifest
        ({"model_hash": "x"}, {}),
        ({"image_size": 32}, {}),
        ({"validation_fraction": 0.1}, {}),
        ({"head": "lda(shots=3)"}, {}),
    ],
)
def test_a_changed_option_makes_new_artefacts(
    trained: Users, run: Path, cheap: list[str], setting: dict, recipe: dict
):
    before, (_, old) = artefacts(run), load_manifest(run)
    changed = replace(SETTING, **setting)
    new = trained.train("mnist", run=run, setting=changed, recipe=replace(RECIPE, **recipe))
    assert cheap == ["fine-tuning mnist"]
    assert (new["mnist"].head == old["mnist"].head) == (not setting)
    assert new["mnist"].finetuned != old["mnist"].finetuned
    assert artefacts(run) > before
    assert load_manifest(run) == (changed, new if setting else old | new)


@pytest.mark.usefixtures("cheap")
def test_a_head_of_few_shots(trained: Users, run: Path):
    """It is LDA of these images alone, the same at every call."""
    backbone, base = trained.tiny
    task = trained.tasks["mnist"]
    setting = replace(SETTING, head="lda(shots=3)")
    record = trained.train("mnist", run=run, setting=setting)["mnist"]
    rows = task.train.take(task.shots(3, setting.seed))
    assert np.bincount(rows.labels).tolist() == [3] * len(task.classes)
    features = np.asarray(backbone.features(base, jnp.asarray(rows.images)))
    expected = lda_head(features, rows.labels, len(task.classes))
    head = load_user(run, record, base, backbone.width)[1]
    np.testing.assert_allclose(head.kernel, expected.kernel, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"shots of task 'mnist': class 0 .* 99 are asked for"):
        trained.train("mnist", run=run, setting=replace(SETTING, head="lda(shots=99)"))


def test_shots_in_an_older_manifest_are_those_of_its_head(trained: Users, run: Path):
    """Under the names that heads and models had: nothing is made again."""
    path = run / "finetuned.json"
    manifest = json.loads(path.read_text())
    manifest["setting"]["head_shots"] = 3
    path.write_text(json.dumps(manifest))
    setting, _ = load_manifest(run)
    assert setting == replace(SETTING, head="lda(shots=3)")
    assert setting.key() == SETTING.key() | {"head_shots": 3}


def test_changed_data_make_new_heads(trained: Users, run: Path, cheap: list[str], tmp_path: Path):
    write_task(tmp_path / "data" / "mnist", classes=2, train=20, test=4, seed=9)
    other = replace(trained, tasks={"mnist": load(tmp_path / "data", "mnist", tmp_path / "cache")})
    _, old = load_manifest(run)
    new = other.train("mnist", run=run)["mnist"]
    assert cheap == ["fine-tuning mnist"]
    assert new.head != old["mnist"].head


def test_a_result_that_was_lost_is_made_again_bitwise(trained: Users, run: Path):
    record = load_manifest(run)[1]["svhn"]
    before = file_hash(run / record.finetuned)
    (run / record.finetuned).with_suffix(".json").unlink()  # killed just before it was written
    trained.train("svhn", run=run)
    assert file_hash(run / record.finetuned) == before
    assert load_manifest(run) == load_manifest(trained.run)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def alter(path: Path) -> None:
    """Flip a bit of the last value, which stays finite."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def poison(path: Path) -> None:
    """Make the last value NaN."""
    path.write_bytes(path.read_bytes()[:-4] + np.float32(np.nan).tobytes())


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("artefact", ["head", "finetuned"])
@pytest.mark.parametrize("damage", [cut, alter, poison])
def test_damaged_artefacts_are_named(
    trained: Users, run: Path, artefact: str, damage: Callable[[Path], None]
):
    record = load_manifest(run)[1]["svhn"]
    path = run / getattr(record, artefact)
    damage(path)
    what = "not a readable|damaged, its checksum|a damaged head|NaN or infinite values in"
    named = f"{path.name}: ({what})"
    with pytest.raises(InputError, match=named):
        load_user(run, record, trained.tiny[1], 16)
    with pytest.raises(InputError, match=named):
        trained.train("mnist", "svhn", run=run)


def test_a_folder_from_before_checksums_opens(trained: Users, run: Path):
    path = run / "finetuned.json"
    manifest = json.loads(path.read_text())
    for record in manifest["users"].values():
        del record["head_sha256"], record["finetuned_sha256"], record["labels"]
    for option in ("resample", "tower"):
        del manifest["setting"][option]
    path.write_text(json.dumps(manifest))
    manifest["setting"]["head_shots"] = None  # a setting of its own before
    path.write_text(json.dumps(manifest))
    setting, records = load_manifest(run)
    assert setting == SETTING
    expected = load_user(run, load_manifest(trained.run)[1]["svhn"], trained.tiny[1], 16)
    assert_trees_equal(load_user(run, records["svhn"], trained.tiny[1], 16), expected)
    assert records["svhn"].hashes(run) == load_manifest(trained.run)[1]["svhn"].hashes(run)


def test_a_model_under_another_head_is_made_again(
    trained: Users, run: Path, cheap: list[str], capsys: pytest.CaptureFixture[str]
):
    record = load_manifest(run)[1]["svhn"]
    path = run / record.head
    names = trained.tasks["svhn"].classes
    head = load_head(path, names)
    save_head(path, replace(head, bias=head.bias + 1), names)
    again = trained.train("svhn", run=run)["svhn"]
    assert cheap == ["fine-tuning svhn"]
    assert f"not those of {record.finetuned}" in capsys.readouterr().out
    assert again.head_sha256 == file_hash(path) != record.head_sha256


def test_a_model_that_is_not_finite_is_not_kept(
    trained: Users, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, trained.tiny[1])
    monkeypatch.setattr(task_models, "finetune", lambda *_, **__: broken)
    with pytest.raises(InputError, match="mnist: the fine-tuned model: NaN or infinite values in"):
        trained.train("mnist", run=tmp_path)
    assert not list(tmp_path.glob("finetuned*"))


@pytest.mark.parametrize("content", ["", "[]", '{"setting": {}, "users": {"a": 1}}'])
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, content: str):
    with pytest.raises(InputError, match=r"finetuned\.json: no such file; run `rmtllmf finetune"):
        load_manifest(tmp_path)
    (tmp_path / "finetuned.json").write_text(content)
    with pytest.raises(InputError, match=r"finetuned\.json: not a"):
        load_manifest(tmp_path)


# Steps that are damaged, and a disk that is full


def count_up(folder: Path, steps: int) -> float:
    """Take steps whose state says how many there were; the sum is that of every step's number."""
    state = {"w": jnp.zeros(8)}
    last = run_steps(
        state,
        lambda state, step: ({"w": state["w"] + step}, jnp.zeros(())),
        steps,
        folder,
        every=2,
        description="counting",
    )
    return float(last["w"][0])


def spoil(step: Path) -> None:
    """Alter one byte of the largest file."""
    path = max((path for path in step.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        spoil,
        lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
        lambda step: (step / "checksums.json").unlink(),  # as kill -9 leaves it
        lambda step: (step / "more").touch(),
    ],
)
def test_a_damaged_step_is_not_gone_on_from(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert count_up(tmp_path, 6) == 15
    damage(tmp_path / "6")
    assert count_up(tmp_path, 7) == 21
    assert f"{tmp_path / '6'}: " in caplog.text
    assert "resuming from the step before" in caplog.text
    for step in (4, 6):
        spoil(tmp_path / str(step))
    assert count_up(tmp_path, 7) == 21  # from the first step on


def test_a_full_disk_ends_training_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 31  # the state has 32 bytes

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match="No space left on device") as caught:
        count_up(tmp_path / "steps", 2)
    assert caught.value.filename == str(tmp_path / "steps")
