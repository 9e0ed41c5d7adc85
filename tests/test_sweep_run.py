"""A grid run on the tiny model: every number of the tables against an independent computation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import assert_trees_equal

from rmtllmf_jax import fusion
from rmtllmf_jax.channel import get_preset, user_mse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.sources.parquet import ParquetFolder
from rmtllmf_jax.data.task_data import Rows, load_task
from rmtllmf_jax.models.backbone import Backbone, load_backbone
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import lda_head, stack_heads
from rmtllmf_jax.resilience import PROTECTIONS
from rmtllmf_jax.sweep.grid import Cell, Grid, choose_combinations
from rmtllmf_jax.sweep.inputs import SweepInputs, shot_pool
from rmtllmf_jax.sweep.journal import Journal
from rmtllmf_jax.sweep.programs import Programs
from rmtllmf_jax.sweep.run import run_grid
from rmtllmf_jax.sweep.runner import Runner
from rmtllmf_jax.sweep.scales import scales_by_size
from rmtllmf_jax.sweep.settings import VALIDATION_SCALES, Settings
from rmtllmf_jax.training.batches import balanced_batches
from rmtllmf_jax.training.realign import realign
from rmtllmf_jax.training.recipes import Recipe
from rmtllmf_jax.uplink import transmit

TASKS = ("dtd", "mnist", "svhn")
PAIR = ("dtd", "mnist")
# As in the fixture `finished`, whose compiled programs are then found in the cache.
RECIPE = Recipe(steps=5, batch_size=8, learning_rate=3e-3, weight_decay=0.0)
SETTINGS = Settings(realign=RECIPE, shots=3, eval_batch_size=16, validation_samples=0, seed=4)
GRID = Grid(
    (PAIR, ("mnist", "svhn"), TASKS), ("clean", "ideal", "sum_rate"), tuple(PROTECTIONS), 2, 2
)
CELL = ["combination", "scenario", "draw", "seed", "protection"]
COLUMNS = [
    *("combination", "size", "scenario", "draw", "seed", "protection", "task", "scale", "kappa"),
    *("mse", "mse_mean", "error_model"),
    *("accuracy", "finetuned_accuracy", "base_accuracy", "normalised_accuracy"),
]
QUIET = np.zeros(3)


@pytest.fixture(scope="module")
def inputs(shallow_model: Path, tiny_data: Path, cache_dir: Path) -> SweepInputs:
    """Three users whose task vectors are noise, which hurts differently on every task."""
    backbone, base = load_backbone(shallow_model)
    source = ParquetFolder(tiny_data)
    data = tuple(load_task(source, task, 16, cache_dir) for task in TASKS)
    random = np.random.default_rng(0)
    vectors = [
        jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.03, leaf.shape), leaf.dtype), base)
        for _ in TASKS
    ]
    heads = [
        lda_head(extract_features(backbone, base, t.train.images), t.train.labels, len(t.classes))
        for t in data
    ]
    return SweepInputs(TASKS, backbone, base, fusion.stack(vectors), stack_heads(heads), data, {})


@pytest.fixture(scope="module")
def runner(inputs: SweepInputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner whose programs refuse to be traced a second time."""
    chex.clear_trace_counter()

    def jit(function: Any) -> Any:
        @wraps(getattr(function, "func", function))  # chex wants the name behind a partial
        def program(*args: Any, **options: Any) -> Any:
            return function(*args, **options)

        return jax.jit(chex.assert_max_traces(program, n=1))

    with Journal(tmp_path_factory.mktemp("sweep") / "journal.jsonl") as journal:
        yield Runner(inputs, SETTINGS, journal, jit)


@pytest.fixture(scope="module")
def tables(runner: Runner) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame(rows) for name, rows in run_grid(runner, GRID).items()}


@pytest.fixture(scope="module")
def results(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return tables["results"]


@pytest.fixture
def another(runner: Runner, tmp_path: Path) -> Iterator[Runner]:
    """A runner with the same programs and an empty journal."""
    with Journal(tmp_path / "journal.jsonl") as journal:
        yield with_programs(Runner(runner.inputs, SETTINGS, journal), runner.programs)


def with_programs(runner: Runner, programs: Programs) -> Runner:
    runner.programs = programs
    return runner


_features = jax.jit(Backbone.features, static_argnums=0)


def accuracy(inputs: SweepInputs, params: Any, task: str, split: str = "test") -> float:
    """Accuracy with numpy from the features on, one batch, under the task's own head."""
    user = inputs.tasks.index(task)
    data = inputs.data[user]
    rows: Rows = getattr(data, split)
    images = np.zeros((40, 16, 16, 3), np.uint8)
    images[: len(rows)] = rows.images
    features = np.asarray(_features(inputs.backbone, params, images))[: len(rows)]
    classes = len(data.classes)
    kernel, bias = np.asarray(inputs.heads.kernel)[user], np.asarray(inputs.heads.bias)[user]
    guess = np.argmax(features @ kernel[:, :classes] + bias[:classes], axis=1)
    return float(np.mean(guess == rows.labels))


def merged(inputs: SweepInputs, combination: tuple[str, ...], scale: float) -> Any:
    """The clean merge, with numpy."""
    users = [inputs.tasks.index(task) for task in combination]
    return jax.tree.map(
        lambda base, stacked: (
            np.asarray(base) + np.float32(scale) * np.asarray(stacked)[users].sum(axis=0)
        ),
        inputs.base,
        inputs.vectors,
    )


def embeddings(tree: Any) -> dict[str, np.ndarray]:
    leaves = fusion.leaves_by_path(tree)
    return {path: np.asarray(leaf) for path, leaf in leaves.items() if "embeddings" in path}


def others(tree: Any) -> dict[str, np.ndarray]:
    leaves = fusion.leaves_by_path(tree)
    return {path: np.asarray(leaf) for path, leaf in leaves.items() if "embeddings" not in path}


# The results table


def test_one_row_a_cell_and_task(results: pd.DataFrame) -> None:
    expected = [
        ("+".join(cell.combination), cell.scenario, cell.draw, cell.seed, cell.protection, task)
        for cell in GRID.cells()
        for task in cell.combination
    ]
    seen = list(results[[*CELL, "task"]].itertuples(index=False, name=None))
    assert len(seen) == len(set(seen))
    assert set(seen) == set(expected)
    assert list(results.columns) == COLUMNS
    assert set(results["error_model"]) == {"independent"}
    assert (results["size"] == results["combination"].str.count(r"\+") + 1).all()


def test_references_are_the_base_and_the_own_model(
    results: pd.DataFrame, inputs: SweepInputs
) -> None:
    for user, task in enumerate(TASKS):
        rows = results[results["task"] == task]
        assert (rows["base_accuracy"] == accuracy(inputs, inputs.base, task)).all()
        own = jax.tree.map(lambda base, tau, q=user: base + tau[q], inputs.base, inputs.vectors)
        assert (rows["finetuned_accuracy"] == accuracy(inputs, own, task)).all()
    quotient = results["accuracy"] / results["finetuned_accuracy"]
    assert (results["normalised_accuracy"] == quotient).all()
    assert results["accuracy"].nunique() > 10  # else nothing above means anything


def test_clean_merge_is_base_plus_scaled_sum(results: pd.DataFrame, inputs: SweepInputs) -> None:
    rows = results[(results["scenario"] == "clean") & (results["protection"] == "none")]
    assert len(rows) == 7
    for row in rows.itertuples():
        tasks = tuple(row.combination.split("+"))
        assert row.scale == pytest.approx(1.13 * len(tasks) ** -0.655)
        model = merged(inputs, tasks, row.scale)
        assert row.accuracy == accuracy(inputs, model, row.task)
        assert row.mse == row.mse_mean == 0


def test_mse_is_that_of_the_draw_and_user(results: pd.DataFrame) -> None:
    root = jax.random.fold_in(jax.random.key(SETTINGS.seed), 0)
    for scenario in ("ideal", "sum_rate"):
        for draw in range(2):
            key = jax.random.fold_in(root, draw)
            expected = np.asarray(user_mse(scenario, get_preset("paper"), key))
            cell = results[(results["scenario"] == scenario) & (results["draw"] == draw)]
            for user, task in enumerate(TASKS):
                rows = cell[cell["task"] == task]
                np.testing.assert_allclose(rows["mse"], expected[user], rtol=1e-5)
    means = results.groupby(CELL)["mse"].transform("mean")
    np.testing.assert_allclose(results["mse_mean"], means, rtol=1e-6)
    assert results["mse"].nunique() == 1 + 2 * 2 * 3


def test_kappa_is_that_of_the_user(results: pd.DataFrame, inputs: SweepInputs) -> None:
    for user, task in enumerate(TASKS):
        flat = [np.ravel(leaf[user]) for leaf in jax.tree.leaves(inputs.vectors)]
        rms = np.sqrt(np.mean(np.square(np.concatenate(flat))))
        kappa = results.loc[results["task"] == task, "kappa"]
        np.testing.assert_allclose(kappa, rms * 10 ** (31 / 20), rtol=1e-5)


def test_control_is_the_base_realigned(results: pd.DataFrame, inputs: SweepInputs) -> None:
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: "embeddings" in fusion.leaf_path(path), inputs.base
    )
    trainable = jax.tree.map(lambda flag: jnp.asarray(not flag), frozen)
    train = jax.jit(partial(realign, backbone=inputs.backbone, recipe=RECIPE))
    for combination in GRID.combinations:
        for seed in range(2):
            pool, places = shot_pool(inputs.data, SETTINGS.shots, SETTINGS.seed + seed, 16)
            chosen = [places[TASKS.index(task)] for task in combination]
            batches = balanced_batches(chosen, 5, 8, SETTINGS.seed + seed)
            model, _ = train(inputs.base, trainable, inputs.heads, pool, jnp.asarray(batches))
            rows = results[
                (results["combination"] == "+".join(combination))
                & (results["seed"] == seed)
                & (results["protection"] == "control")
            ]
            assert list(rows["scale"]) == [0.0] * len(combination)
            for row in rows.itertuples():
                assert row.accuracy == accuracy(inputs, model, row.task)


def test_control_holds_no_task_vector(runner: Runner) -> None:
    cell = Cell(PAIR, "clean", 0, 1, "control")
    alone = runner.realign(runner.inputs.base, PAIR, 1, freeze=True)
    assert_trees_equal(runner.protected(cell, QUIET + 1, 0.7), alone)


# Protections


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_what_a_protection_keeps_of_the_base(runner: Runner, protection: str) -> None:
    scenario = "clean" if protection == "control" else "sum_rate"
    cell = Cell(PAIR, scenario, 1, 1, protection)
    params = runner.protected(cell, runner.mse(scenario, 2)[1], 0.3)
    base = runner.inputs.base
    kept = protection in ("freeze", "r-mtllmf", "control")
    for path, leaf in embeddings(params).items():
        assert np.array_equal(leaf, embeddings(base)[path]) == kept, path
    assert len(embeddings(params)) == 4
    for path, leaf in others(params).items():
        assert not np.array_equal(leaf, others(base)[path]), path


def test_protections_start_from_the_same_noisy_merge(runner: Runner) -> None:
    mse = runner.mse("sum_rate", 1)[0]
    none, freeze, realigned, both = (
        others(runner.protected(Cell(TASKS, "sum_rate", 0, 0, name), mse, 0.3))
        for name in ("none", "freeze", "realign", "r-mtllmf")
    )
    for path, leaf in none.items():
        np.testing.assert_array_equal(freeze[path], leaf)
        # AdamW moves a parameter by the learning rate a step at most, far less than the noise.
        for moved in (realigned[path], both[path]):
            assert 0 < np.abs(moved - leaf).max() < 5 * 3e-3 * 1.5, path


# Randomness


def test_the_mse_scales_the_noise_and_changes_nothing_else(runner: Runner) -> None:
    def noise(scenario: str, mse: np.ndarray, draw: int = 0, seed: int = 0) -> np.ndarray:
        cell = Cell(PAIR, scenario, draw, seed, "none")
        noisy, clean = (runner.protected(cell, values, 0.5) for values in (mse, QUIET))
        leaves = zip(jax.tree.leaves(noisy), jax.tree.leaves(clean))
        return np.concatenate([np.ravel(a - b) for a, b in leaves])

    mse = np.array([0.01, 0.02, 5.0])
    once = noise("ideal", mse)
    close = {"rtol": 1e-3, "atol": 1e-6 * np.abs(once).max() * 1e2}
    np.testing.assert_allclose(noise("sum_rate", 4 * mse), 2 * once, **close)
    np.testing.assert_array_equal(noise("ideal", mse * [1, 1, 9]), once)  # svhn is not merged
    for draw, seed in ((1, 0), (0, 1)):
        other = noise("ideal", mse, draw, seed)
        assert abs(np.corrcoef(once, other)[0, 1]) < 0.1


def test_noise_has_the_standard_deviation_of_mse_and_kappa(runner: Runner) -> None:
    mse = np.array([0.04, 0.09, 1.0])
    key = runner.noise_key(0, 0, "a test")
    errors = runner.error_model("ideal", 0)
    noisy, clean = (runner.merge(PAIR, m, errors, 0.5, key, reload=False) for m in (mse, QUIET))
    error = jax.tree.map(lambda a, b: np.ravel(a - b), noisy, clean)
    kappa = np.asarray(runner.kappa)
    expected = 0.5 * np.hypot(kappa[0] * 0.2, kappa[1] * 0.3)
    assert np.std(np.concatenate(jax.tree.leaves(error))) == pytest.approx(expected, rel=0.05)


def test_a_part_of_the_grid_gives_the_same_rows(
    tables: dict[str, pd.DataFrame], another: Runner
) -> None:
    part = Grid((TASKS, ("mnist", "svhn")), ("sum_rate",), ("r-mtllmf", "none"), 1, 1)
    for name, rows in run_grid(another, part).items():
        part_rows, whole = pd.DataFrame(rows), tables[name]
        keys = [*CELL, "task"] if name == "results" else list(part_rows.columns[:-1])
        both = part_rows.merge(whole, on=keys, suffixes=("", "_whole"), validate="1:1")
        assert len(both) == len(part_rows) > 0
        for column in set(whole.columns) - set(keys):
            pd.testing.assert_series_equal(
                both[column], both[f"{column}_whole"], check_exact=True, check_names=False
            )


def test_mse_of_a_draw_does_not_depend_on_how_many_there_are(runner: Runner) -> None:
    many = runner.mse("sum_rate", 5)
    for draws in (1, 2):
        np.testing.assert_array_equal(runner.mse("sum_rate", draws), many[:draws])


# Once, and not twice


def test_one_compile_for_all_cells(runner: Runner, results: pd.DataFrame) -> None:
    """The programs refuse a second trace: the fixtures' grid went through, and so does another."""
    for combination in choose_combinations(TASKS, None, 0):
        for scenario, protection in (("strongest_user", "r-mtllmf"), ("white", "freeze")):
            cell = Cell(combination, scenario, 0, 5, protection)
            params = runner.protected(cell, runner.mse(scenario, 1)[0], 0.123)
            runner.accuracy(params, combination[0], "validation")
    with pytest.raises(AssertionError, match="traced"):
        runner.programs.count(
            runner.inputs.base, runner.inputs.heads, jnp.asarray([0]), runner.test[0].batches[0]
        )


def test_finished_cells_are_read_not_computed(
    runner: Runner, tables: dict[str, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed twice")

    before = runner.journal.path.read_bytes()
    with Journal(runner.journal.path) as journal:
        again = with_programs(
            Runner(runner.inputs, SETTINGS, journal), Programs(refuse, refuse, refuse)
        )
        monkeypatch.setattr("rmtllmf_jax.sweep.cosines._receive", refuse)
        for name, rows in run_grid(again, GRID).items():
            pd.testing.assert_frame_equal(pd.DataFrame(rows), tables[name], check_exact=True)
    assert runner.journal.path.read_bytes() == before


# Cosines


def test_cosines_of_every_draw_and_pair(tables: dict[str, pd.DataFrame]) -> None:
    cosines = tables["cosines"]
    # clean has one draw and seed; none and freeze; all pairs.
    assert len(cosines) == (1 + 2 * 2 * 2) * 2 * 9
    keys = ["scenario", "draw", "seed", "protection", "task_a", "task_b"]
    assert list(cosines.columns) == [*keys, "error_model", "cosine"]
    assert set(cosines["error_model"]) == {"independent"}
    assert not cosines.duplicated(keys).any()
    itself = cosines[cosines["task_a"] == cosines["task_b"]]
    np.testing.assert_allclose(itself["cosine"], 1, rtol=1e-5)


def test_cosines_are_those_of_the_received_vectors(
    tables: dict[str, pd.DataFrame], runner: Runner
) -> None:
    cosines, receive = tables["cosines"], jax.jit(transmit)
    for scenario, draw in (("clean", 0), ("ideal", 1), ("sum_rate", 1)):
        mse = jnp.asarray(runner.mse(scenario, 2)[draw])
        key = runner.noise_key(0, draw, "cosines")
        received = fusion.leaves_by_path(receive(runner.inputs.vectors, mse, runner.kappa, key))
        for protection in ("none", "freeze"):
            sent = [
                np.asarray(leaf, np.float64).reshape(3, -1)
                for path, leaf in received.items()
                if protection == "none" or "embeddings" not in path
            ]
            rows = np.concatenate(sent, axis=1)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            seen = cosines[
                (cosines["scenario"] == scenario)
                & (cosines["draw"] == draw)
                & (cosines["seed"] == 0)
                & (cosines["protection"] == protection)
            ].pivot(index="task_a", columns="task_b", values="cosine")
            np.testing.assert_allclose(seen.to_numpy(), rows @ rows.T, atol=1e-5)


# Scales


def scaled(runner: Runner, scale: str, journal: Journal, **changes: Any) -> Runner:
    settings = replace(SETTINGS, scale=scale, **changes)
    return with_programs(Runner(runner.inputs, settings, journal), runner.programs)


def test_scale_by_rule_and_by_number(runner: Runner, tmp_path: Path) -> None:
    every = choose_combinations(TASKS, None, 0)
    with Journal(tmp_path / "journal") as journal:
        power, curve = scales_by_size(scaled(runner, "power-law", journal), every)
        assert power == pytest.approx({2: 0.7176, 3: 0.5503}, abs=1e-4)
        number, _ = scales_by_size(scaled(runner, "0.25", journal), every)
        assert number == {2: 0.25, 3: 0.25}
        assert not curve
    assert journal.path.read_bytes() == b""


@pytest.fixture(scope="module")
def validated(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    grid = Grid(choose_combinations(TASKS, None, 0), ("clean",), ("none", "control"), 1, 1)
    with Journal(tmp_path_factory.mktemp("validated") / "journal") as journal:
        rows = run_grid(scaled(runner, "validation", journal), grid)
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def test_validation_takes_the_best_of_its_curve(validated: dict[str, pd.DataFrame]) -> None:
    curve, results = validated["scales"], validated["results"]
    assert len(curve) == 4 * len(VALIDATION_SCALES)
    assert set(curve["scale"]) == set(VALIDATION_SCALES)
    best = curve.groupby(["size", "scale"])["normalised_accuracy"].mean()
    for size in (2, 3):
        chosen = results.loc[(results["size"] == size) & (results["scale"] > 0), "scale"]
        assert chosen.nunique() == 1
        # Ties are common on so few images, and equal up to the order of a sum.
        assert best[size][chosen.iloc[0]] == pytest.approx(best[size].max(), rel=1e-12)
    assert best.nunique() > 3


def test_validation_curve_is_measured_on_validation_images(
    validated: dict[str, pd.DataFrame], inputs: SweepInputs
) -> None:
    curve = validated["scales"].set_index(["combination", "scale"])["normalised_accuracy"]
    for scale in (0.1, 0.7):
        model = merged(inputs, PAIR, scale)
        ratios = [
            accuracy(inputs, model, task, "validation")
            / accuracy(inputs, inputs.finetuned(TASKS.index(task)), task, "validation")
            for task in PAIR
        ]
        assert curve["dtd+mnist", scale] == np.mean(ratios)


def test_validation_does_not_look_at_the_test_split(runner: Runner, tmp_path: Path) -> None:
    class Blind(Runner):
        @property
        def test(self) -> Any:
            raise AssertionError("the test split was read")

    with Journal(tmp_path / "journal") as journal:
        blind = Blind(runner.inputs, replace(SETTINGS, scale="validation"), journal)
        scales_by_size(with_programs(blind, runner.programs), (PAIR,))


def test_a_grid_that_grows_may_choose_another_scale(runner: Runner, tmp_path: Path) -> None:
    """Cells of the smaller grid are then computed again, under the scale that the table says."""

    def curve(journal: Journal, combination: str, best: float) -> None:
        for scale in VALIDATION_SCALES:
            journal.add(f"scale/{combination}/{scale}", 2.0 if scale == best else 1.0)

    small = Grid((PAIR,), ("clean",), ("none", "control"), 1, 1)
    large = replace(small, combinations=(PAIR, ("dtd", "svhn"), ("mnist", "svhn")))
    with Journal(tmp_path / "journal") as journal:
        curve(journal, "dtd+mnist", 0.1)
        curve(journal, "dtd+svhn", 0.7)
        curve(journal, "mnist+svhn", 0.7)
        validating = scaled(runner, "validation", journal)
        before = pd.DataFrame(run_grid(validating, small)["results"])
        after = pd.DataFrame(run_grid(validating, large)["results"])
    for table, scale in ((before, 0.1), (after, 0.7)):
        model = merged(runner.inputs, PAIR, scale)
        rows = table[(table["combination"] == "dtd+mnist") & (table["protection"] == "none")]
        assert list(rows["scale"]) == [scale] * 2
        for row in rows.itertuples():
            assert row.accuracy == accuracy(runner.inputs, model, row.task)


def test_validation_without_validation_images_is_refused(runner: Runner, tmp_path: Path) -> None:
    data = [replace(d, validation=d.validation.take(np.arange(0))) for d in runner.inputs.data]
    inputs = replace(runner.inputs, data=tuple(data))
    with Journal(tmp_path / "journal") as journal:
        bare = Runner(inputs, replace(SETTINGS, scale="validation"), journal)
        with pytest.raises(InputError, match="no validation image of dtd, mnist, svhn"):
            run_grid(with_programs(bare, runner.programs), GRID)


# Settings


def test_more_tasks_than_users_are_refused(inputs: SweepInputs, tmp_path: Path) -> None:
    many = replace(inputs, tasks=tuple("abcdefghi"))
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(InputError, match=r"9 tasks need as many users; .* has 8"),
    ):
        Runner(many, SETTINGS, journal)


def test_evaluation_in_other_batches_counts_the_same(runner: Runner, tmp_path: Path) -> None:
    assert replace(SETTINGS, eval_batch_size=7).key() == SETTINGS.key()
    assert replace(SETTINGS, shots=4).key() != SETTINGS.key()
    with Journal(tmp_path / "journal") as journal:
        few = Runner(runner.inputs, replace(SETTINGS, eval_samples=5), journal)
        sets = few.test
    assert [len(s.batches) for s in sets] == [1, 1, 1]
    assert [s.count for s in sets] == [5, 5, 5]
    assert [s.count for s in runner.test] == [len(d.test) for d in runner.inputs.data]


def test_a_useless_fine_tuned_model_is_named(another: Runner) -> None:
    another.journal.add("reference/mnist/finetuned/test", 0.0)
    with pytest.raises(InputError, match="fine-tuned model of mnist has accuracy 0 on the test"):
        run_grid(another, GRID)


def test_too_many_shots_name_task_and_class(runner: Runner, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        greedy = scaled(runner, "0.3", journal, shots=19)
        with pytest.raises(InputError, match=r"'dtd'.*class 0 .* has 18 images, 19 are asked"):
            greedy.realign(greedy.inputs.base, PAIR, 0, freeze=True)


def test_a_kappa_of_zero_is_a_perfect_uplink(runner: Runner, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        perfect = scaled(runner, "0.3", journal, kappa=0.0)
        cell = Cell(PAIR, "sum_rate", 0, 0, "none")
        noiseless = perfect.protected(cell, perfect.mse("sum_rate", 1)[0], 0.3)
        assert_trees_equal(noiseless, runner.protected(cell, QUIET, 0.3))
