"""What is learned on accuracy (experiments/learned_attack.py and two more): no package either."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import TinyRun

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.runs import open_run

TASKS = ("dtd", "mnist", "svhn")
FIGURE = {"png", "svg"}

Script = Callable[[str], ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Imports an experiment as it runs: from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module


# Options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("learned_attack", {"attacks": ("none", "sum_rat")}, "Did you mean 'sum_rate'"),
        ("learned_attack", {"starts": ("whit",)}, "Did you mean 'white'"),
        ("learned_attack", {"channels": 1}, "--channels must be at least 2"),
        ("power_control", {"scenario": "idael"}, "Did you mean 'ideal'"),
        ("power_control", {"cells": 0}, "--cells must be at least 1"),
        ("sensitivity", {"scenario": "idael"}, "Did you mean 'ideal'"),
        ("sensitivity", {"draws": 1}, "--draws must be at least 2"),
        ("sensitivity", {"eval_draws": 1}, "--eval-draws must be at least 2"),
    ],
)
def test_options_are_refused_before_the_run_is_read(
    script: Script, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    experiment = script(name)
    with pytest.raises(InputError, match=message):
        experiment.main(experiment.Options(tmp_path / "none", cache_dir=tmp_path, **options))


# The store that learned_attack and power_control share


@pytest.fixture
def counted(script: Script, tmp_path: Path) -> Callable[..., Any]:
    """Runs `study.all_rows` on pieces of two rows; what it returns, and the pieces computed."""
    study, experiment = script("study"), script("power_control")
    inputs = SimpleNamespace(fingerprint={"tasks": ["a"]})

    def run(**options: Any) -> tuple[pd.DataFrame, bool, list[int]]:
        computed: list[int] = []

        def rows_of(number: int) -> Iterator[dict[str, Any]]:
            computed.append(number)
            return ({"cell": number, "value": number + each / 3} for each in range(2))

        chosen = replace(experiment.Options(tmp_path / "run"), **options)
        return *study.all_rows(chosen, inputs, "power_control", "cells", rows_of), computed

    return run


def test_finished_pieces_are_not_computed_again(
    counted: Callable[..., Any], tmp_path: Path
) -> None:
    rows, resumed, computed = counted(cells=2)
    assert (resumed, computed) == (False, [0, 1])
    assert rows["value"].tolist() == [0, 1 / 3, 1, 4 / 3]
    before = sorted((tmp_path / "run" / "power_control").rglob("*.parquet"))
    again, resumed, computed = counted(cells=2, quick=True, full=True, out=tmp_path, model="m")
    assert (resumed, computed) == (True, [])
    assert sorted((tmp_path / "run" / "power_control").rglob("*.parquet")) == before
    pd.testing.assert_frame_equal(again, rows)
    more, resumed, computed = counted(cells=3)
    assert (resumed, computed, len(more)) == (True, [2], 6)


@pytest.mark.parametrize("change", [{"seed": 1}, {"scale": "0.3"}, {"tasks": ("a",)}, {"steps": 9}])
def test_other_options_have_a_store_of_their_own(
    counted: Callable[..., Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    counted(cells=1)
    assert counted(cells=1, **change)[2] == [0]
    assert len(list((tmp_path / "run" / "power_control").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "parts", "key"),
    [
        ("learned_attack", "channels", "33b113ae6b911a45"),
        ("power_control", "cells", "4c2ca1e61ee0274d"),
    ],
)
def test_the_stores_name_stays_what_it_is(
    script: Script, tmp_path: Path, name: str, parts: str, key: str
) -> None:
    """Another name, as by an option added without need, and the work of hours is done again."""
    options = script(name).Options(tmp_path / "run")
    inputs = SimpleNamespace(fingerprint={"tasks": ["a"]})
    script("study").all_rows(options, inputs, name, parts, lambda number: [])
    assert [path.name for path in (tmp_path / "run" / name).iterdir()] == [key]


# Runs


def table_of(page: Path) -> dict[str, list[str]]:
    """Return the cells of a page's table after the first, by the first."""
    lines = [
        line.strip("|").split("|") for line in page.read_text().splitlines() if line[:1] == "|"
    ]
    return {first.strip(): [cell.strip() for cell in cells] for first, *cells in lines[2:]}


def numbers(text: str) -> list[float]:
    """Return the numbers of a cell such as `+2.1 [1.7, 2.5]`."""
    return [float(each.replace(",", "")) for each in re.findall(r"[+-]?[\d.,]+", text)]


def in_percent(values: pd.Series) -> list[float]:
    """Return the mean and the interval of two values: the range between them."""
    assert len(values) == 2
    return [100 * np.mean(values), 100 * np.min(values), 100 * np.max(values)]


def assert_files(folder: Path, name: str, tables: set[str]) -> None:
    figure = {f"{name}.{kind}" for kind in FIGURE}
    assert {path.name for path in folder.iterdir()} == {"README.md", *figure, *tables}
    assert all(path.stat().st_size for path in folder.iterdir())


def goes_on(experiment: ModuleType, work: str, options: Any, table: str) -> None:
    """Run again, elsewhere: nothing is computed, and the table has the same bytes."""
    before = sorted((options.run / experiment.__name__).rglob("*.parquet"))

    def refuse(*_: Any) -> None:
        raise AssertionError("finished work is done again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, work, refuse)
        experiment.main(replace(options, out=options.out / "again"))
    assert sorted((options.run / experiment.__name__).rglob("*.parquet")) == before
    again = options.out / "again"
    assert (again / table).read_bytes() == (options.out / table).read_bytes()
    assert "(resumed)" in (again / "README.md").read_text()
    assert "(resumed)" not in (options.out / "README.md").read_text()


@pytest.mark.slow
def test_the_learned_attack(
    script: Script, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    experiment = script("learned_attack")
    options = experiment.Options(
        finished.copy(tmp_path / "run", sweep=False),
        tasks=TASKS,
        attacks=("none", "white_in_range", "strongest_user", "sum_rate"),
        quick=True,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    experiment.main(options)
    assert_files(options.out, "learned_attack", {"attacks.csv"})
    rows = pd.read_csv(options.out / "attacks.csv")
    attackers = [*options.attacks, "learned"]
    assert rows["channel"].tolist() == [0] * 5 + [1] * 5
    assert rows["attack"].tolist() == 2 * attackers
    wide = rows.pivot_table(index="channel", columns="attack")
    # It is tuned on the soft accuracy, from the sum-rate attack on.
    assert (wide["soft_accuracy"]["learned"] <= wide["soft_accuracy"]["sum_rate"] + 1e-4).all()
    assert (wide["mse"]["none"] < wide["mse"]["strongest_user"]).all()

    preset = replace(channel.PRESETS["paper"], users=3)
    root = jax.random.fold_in(jax.random.key(0), 0)
    for attack in options.attacks:
        for number in range(2):
            key = jax.random.fold_in(root, number)
            mse = channel.Link(preset, channel.ATTACKS[attack]()).mse(key)
            found = wide.loc[number]
            np.testing.assert_allclose(found["mse"][attack], np.mean(mse), rtol=1e-5)
            np.testing.assert_allclose(found["worst_mse"][attack], np.max(mse), rtol=1e-5)

    table, accuracy = table_of(options.out / "README.md"), wide["accuracy"]
    assert list(table) == attackers
    for attack, (mean, above, mse) in table.items():
        np.testing.assert_allclose(numbers(mean), in_percent(accuracy[attack]), atol=0.06)
        if attack == "learned":
            assert above == "-"
        else:
            expected = in_percent(accuracy[attack] - accuracy["learned"])
            np.testing.assert_allclose(numbers(above), expected, atol=0.06)
        np.testing.assert_allclose(numbers(mse), wide["mse"][attack].mean(), rtol=6e-3)
    run = open_run(options.run, cache_dir=cache_dir)
    base = run.accuracies(run.base, options.chosen().eval_samples)
    said = f"needs no uplink, has {100 * np.mean([base[task] for task in TASKS]):.1f} %."
    assert said in (options.out / "README.md").read_text()
    goes_on(experiment, "channel_rows", options, "attacks.csv")


@pytest.mark.slow
def test_the_learned_defence(
    script: Script, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    experiment = script("learned_defence")
    options = experiment.Options(
        finished.copy(tmp_path / "run", sweep=False),
        tasks=TASKS,
        quick=True,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    experiment.main(options)
    assert {path.name for path in options.out.iterdir()} == {"README.md", "defences.csv"}
    rows = pd.read_csv(options.out / "defences.csv")
    defences, attacks = ["none", "coded", "learned"], ["no attack", "sum_rate", "sum_mse"]
    attacks.append("made for it")
    assert rows["defence"].tolist() == 2 * [name for name in defences for _ in attacks]
    assert rows["attack"].tolist() == 6 * attacks
    soft = rows.pivot_table(index=["channel", "defence"], columns="attack", values="soft_accuracy")
    # Both are tuned on the soft accuracy, from `sum_mse` on.
    assert (soft["made for it"] <= soft["sum_mse"] + 1e-4).all()
    # What the defender learned is worth something under the attack that it answers.
    alone = soft["made for it"].unstack()
    assert (alone["learned"] >= alone["none"] - 1e-3).all()
    ends = rows.groupby("channel")[["lower", "upper"]].first()
    page = (options.out / "README.md").read_text()
    assert ("Negative: the first answers" in page) == ((ends["upper"] - ends["lower"]).mean() < 0)

    table = table_of(options.out / "README.md")
    wide = rows.pivot_table(index="channel", columns=["defence", "attack"], values="accuracy")
    assert list(table) == defences
    for defence, cells in table.items():
        for attack, cell in zip(attacks, cells, strict=True):
            expected = in_percent(wide[defence][attack])
            np.testing.assert_allclose(numbers(cell), expected, atol=0.06)
    goes_on(experiment, "channel_rows", options, "defences.csv")


@pytest.mark.slow
def test_learned_power_control(
    script: Script, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    experiment = script("power_control")
    options = experiment.Options(
        finished.copy(tmp_path / "run", sweep=False),
        tasks=TASKS,
        scenario="white",
        total=2.0,
        quick=True,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    experiment.main(options)
    assert_files(options.out, "power_control", {"powers.csv"})
    rows = pd.read_csv(options.out / "powers.csv")
    controls = [
        "full power",
        "fractional inversion (0.8)",
        "full inversion",
        "max-min MSE",
        "learned",
    ]
    assert set(rows["cell"]) == {0}
    assert rows["channel"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert rows["control"].tolist() == 3 * controls
    assert (rows["worst_mse"] >= rows["mse"]).all()
    wide = rows.pivot_table(index="channel", columns="control")
    assert (np.ptp(wide["power"], axis=0) == 0).all()  # set once, for all fading
    assert (wide["power"] <= 2 + 1e-4).all(axis=None)
    np.testing.assert_allclose(wide["power"]["full power"], 2, rtol=1e-4)
    assert (np.ptp(wide["mse"], axis=0) > 0).all()

    table, accuracy = table_of(options.out / "README.md"), wide["accuracy"]
    assert list(table) == controls
    for control, (mean, gain, *others) in table.items():
        # One cell has no interval.
        np.testing.assert_allclose(numbers(mean), [100 * accuracy[control].mean()], atol=0.06)
        if control == "learned":
            assert gain == "-"
        else:
            expected = 100 * (accuracy["learned"] - accuracy[control]).mean()
            np.testing.assert_allclose(numbers(gain), [expected], atol=0.06)
        means = [wide[column][control].mean() for column in ("mse", "worst_mse", "power")]
        np.testing.assert_allclose([float(each) for each in others], means, rtol=6e-3)
    goes_on(experiment, "cell_rows", options, "powers.csv")


@pytest.mark.slow
def test_the_sensitivity_map(
    script: Script, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    experiment = script("sensitivity")
    options = experiment.Options(
        finished.copy(tmp_path / "run", sweep=False),
        tasks=TASKS,
        scenario="white",
        quick=True,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    experiment.main(options)
    assert_files(options.out, "sensitivity", {"layers.csv", "leaves.csv", "protected.csv"})
    layers = pd.read_csv(options.out / "layers.csv", index_col="layer")
    leaves = pd.read_csv(options.out / "leaves.csv", index_col="leaf")
    assert tuple(layers.columns) == TASKS
    assert set(layers.index) == {"embeddings", "encoder/layer/0", "layernorm"}
    for layer in layers.index:
        inside = leaves[leaves.index.str.startswith(f"{layer}/")]
        np.testing.assert_allclose(layers.loc[layer], inside[list(TASKS)].sum(), atol=1e-6)
    assert (leaves[list(TASKS)].abs().sum() > 0).all()

    rows = pd.read_csv(options.out / "protected.csv")
    choices = ["nothing", "embeddings", "most sensitive", "random 0", "everything"]
    assert rows["protected"].tolist() == [name for name in choices for _ in range(2)]
    assert rows["draw"].tolist() == 5 * [0, 1]
    wide = rows.pivot_table(index="draw", columns="protected", values="accuracy")
    assert np.ptp(wide["everything"]) == 0  # no noise is left

    table = table_of(options.out / "README.md")
    assert list(table) == choices
    counts = {name: [numbers(cell)[0] for cell in cells[:2]] for name, cells in table.items()}
    embeddings = leaves.index.str.startswith("embeddings/").sum()
    assert counts["nothing"] == [0, 0]
    assert counts["embeddings"][0] == embeddings == 4
    assert counts["everything"][0] == len(leaves)
    for name in ("most sensitive", "random 0"):
        assert 0 < counts[name][1] <= counts["embeddings"][1]
    for name, (_, _, mean, gain) in table.items():
        np.testing.assert_allclose(numbers(mean), in_percent(wide[name]), atol=0.06)
        if name == "nothing":
            assert gain == "-"
        else:
            expected = in_percent(wide[name] - wide["nothing"])
            np.testing.assert_allclose(numbers(gain), expected, atol=0.06)
