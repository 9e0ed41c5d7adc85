"""Receivers and error models of a sweep: what they do to merged and received task vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sweep_fixtures import model

from rmtllmf_jax import channel, fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.programs import Programs
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.uplinks import Uplinks

TASKS = ("dtd", "mnist", "svhn")
PAIR = ("mnist", "svhn")
SIZE = 40_000
MSE = np.array([0.04, 0.09, 0.3])
KAPPA = 1.5
SCALE = 0.5
TRACES: Counter[str] = Counter()
"""How often a program was traced."""


def counted(function: Callable[..., Any]) -> Any:
    named = getattr(function, "func", function)

    @wraps(named)
    def program(*args: Any) -> Any:
        TRACES[named.__name__] += 1
        return function(*args)

    return jax.jit(program)


@pytest.fixture(scope="module")
def inputs(tiny: tuple[Backbone, dict]) -> SweepInputs:
    """Three users who send nothing, so that all that arrives is error; most of it embeddings."""
    base = {"embeddings": {"cls_token": jnp.zeros(SIZE)}, "layernorm": {"bias": jnp.zeros(9)}}
    silent = jax.tree.map(lambda leaf: jnp.zeros((len(TASKS), *leaf.shape)), base)
    heads = Head(jnp.zeros((len(TASKS), 16, 2)), jnp.zeros((len(TASKS), 2)))
    return SweepInputs(TASKS, tiny[0], base, silent, heads, (), {})


@pytest.fixture(scope="module")
def programs(inputs: SweepInputs) -> Programs:
    return Engine(inputs, Settings(), one_device(), counted).programs


@pytest.fixture
def make(inputs: SweepInputs, programs: Programs) -> Callable[..., Engine]:
    """Make an engine with options, and the same programs whatever these are."""

    def made(mse: Any = None, **options: Any) -> Engine:
        engine = Engine(inputs, Settings(kappa=KAPPA, **options), one_device())
        engine.programs = programs
        if mse is not None:  # these MSEs, with the correlations of a draw of the channel
            engine.uplinks.mse = lambda cell: np.asarray(mse, np.float32)
        return engine

    return made


def cosines_of(engine: Engine, grid: Grid, folder: Path) -> pd.DataFrame:
    with CellStore(folder) as parts:
        return pd.DataFrame(cosine_rows(engine, grid, parts))


@cache
def drawn(draw: int) -> np.ndarray:
    """H~ of a draw of the preset `paper`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), draw)
    return np.asarray(channel.draw_channel(channel.get_preset("paper"), key), complex)


def joint_covariance(draw: int) -> np.ndarray:
    """(I + H~^H C^-1 H~)^-1 under the attack on the strongest user, a matrix over the antennas."""
    h = drawn(draw)
    strongest = h[:, np.argmax(np.linalg.norm(h, axis=0))]
    jammer = 10**2.366 * np.outer(strongest, strongest.conj()) / np.linalg.norm(strongest) ** 2
    return np.linalg.inv(np.eye(8) + h.conj().T @ np.linalg.solve(np.eye(16) + jammer, h))


def correlation(model: str, draw: int) -> np.ndarray:
    """Between the errors of the three users, of which no source is shared."""
    if model == "lmmse":
        error = joint_covariance(draw)[:3, :3].real
        return error / np.sqrt(np.outer(np.diag(error), np.diag(error)))
    named = {"independent": 0.0, "noisy_reference": 0.5}
    rho = named[model] if model in named else float(model.split("=")[1])
    return np.where(np.eye(3), 1.0, rho)


OPTIONS: dict[str, dict[str, str]] = {
    "independent": {},
    "equicorrelated=0.4": {},
    "equicorrelated=-0.3": {},
    "noisy_reference": {},
    "lmmse": {"receiver": "lmmse"},
}
models = pytest.mark.parametrize("name", OPTIONS)


def expected_variance(model: str, weights: np.ndarray) -> float:
    """Of the weighted sum of the users' errors, written down model by model."""
    std = KAPPA * np.sqrt(MSE)
    total = np.sum((weights * std) ** 2)
    if model == "noisy_reference":  # the base is sent once, whoever is merged later
        return total + np.sum(weights) ** 2 * np.mean(std**2)
    return (weights * std) @ correlation(model, 0) @ (weights * std)


@models
@pytest.mark.parametrize("combination", [PAIR, TASKS])
def test_a_merge_has_the_variance_of_its_error_model(
    make: Callable[..., Engine], name: str, combination: tuple[str, ...]
) -> None:
    engine = make(MSE, error_model=name, **OPTIONS[name])
    merged = model(engine, Cell(combination, "strongest_user", 0, 0, "none"), SCALE)
    weights = SCALE * np.array([task in combination for task in TASKS], float)
    variance = expected_variance(name, weights)
    error = np.asarray(merged["embeddings"]["cls_token"], float)
    # Five standard errors of a variance; the correlations matter by more than that.
    np.testing.assert_allclose(np.mean(error**2), variance, rtol=5 * np.sqrt(2 / SIZE))
    if name != "independent":
        other = expected_variance("independent", weights)
        assert abs(variance / other - 1) > 10 * np.sqrt(2 / SIZE)


@models
def test_every_merge_rule_receives_the_same_errors(make: Callable[..., Engine], name: str) -> None:
    """A sum over users in another order: `average` is task arithmetic over Q, errors included."""
    engine = make(MSE, error_model=name, **OPTIONS[name])
    cell = Cell(PAIR, "strongest_user", 0, 0, "none")
    mean, total = (
        np.asarray(model(engine, replace(cell, rule=rule), 1.0)["embeddings"]["cls_token"])
        for rule in (fusion.Average(), fusion.TaskArithmetic())
    )
    np.testing.assert_allclose(2 * mean, total, rtol=1e-4, atol=1e-5)
    assert np.std(mean) > 0.1


@models
def test_cosines_are_the_error_models(
    make: Callable[..., Engine], tmp_path: Path, name: str
) -> None:
    """Between the errors of users with one MSE; under `lmmse` those of the draw's channel."""
    options = OPTIONS[name] or {"preset": "mse=.1,.1,.1"}
    scenario = "strongest_user" if name == "lmmse" else "ideal"
    engine = make(error_model=name, **options)
    rows = cosines_of(engine, Grid((PAIR,), (scenario,), ("none",), 2, 1), tmp_path)
    assert set(rows["error_model"]) == {name}
    for draw in range(2):
        seen = rows[(rows["draw"] == draw) & (rows["protection"] == "none")]
        found = seen.pivot(index="task_a", columns="task_b", values="cosine").to_numpy()
        np.testing.assert_allclose(found, correlation(name, draw), atol=5 / np.sqrt(SIZE))
        assert (np.abs(found - np.eye(3)).max() > 10 / np.sqrt(SIZE)) == (name != "independent")


def test_one_trace_for_all_error_models_scenarios_and_draws(inputs: SweepInputs) -> None:
    """How errors hang together is data, but for the number of sources."""
    # A jit of its own: engines with the same one share what is traced already.
    programs = Engine(inputs, Settings(), one_device(), lambda f: counted(f)).programs
    before = TRACES["merge"]
    for name, traced in zip(sorted(OPTIONS, key="noisy_reference".__eq__), (1, 1, 1, 1, 2)):
        settings = Settings(kappa=KAPPA, error_model=name, **OPTIONS[name])
        engine = Engine(inputs, settings, one_device())
        engine.programs = programs
        for scenario in ("clean", "ideal", "strongest_user"):
            for draw in range(2):
                params = model(engine, Cell(PAIR, scenario, draw, 0, "none"), 0.3)
                quiet = all(not np.any(leaf) for leaf in jax.tree.leaves(params))
                assert quiet == (scenario == "clean")
        assert TRACES["merge"] - before == traced


def test_the_reference_of_a_pair_is_that_of_the_run(make: Callable[..., Engine]) -> None:
    """A user outside the combination has no error in it, but its share in the mean of e_0's."""
    cell = Cell(PAIR, "ideal", 0, 0, "none")

    def variance(mse: np.ndarray) -> float:
        made = model(make(mse, error_model="noisy_reference"), cell, 1.0)
        return float(np.var(np.asarray(made["embeddings"]["cls_token"])))

    # Two draws, each rescaled: the user's own and the shared one; their covariance is no zero.
    louder = variance(MSE * [2, 1, 1]) / variance(MSE)
    expected = (0.39 + 4 * (0.39 + 0.08) / 3) / (0.39 + 4 * (0.39 + 0.04) / 3)
    assert louder == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("order", ["weakest_first", "strongest_first", "lmmse"])
def test_the_receiver_is_the_settings(inputs: SweepInputs, order: str) -> None:
    uplinks = Uplinks(inputs, Settings(receiver=order))
    for draw in range(2):
        expected = np.diag(joint_covariance(draw)).real.copy()
        if order != "lmmse":
            # The MSE of each user once those decoded before it are gone, user by user.
            power = np.linalg.norm(drawn(draw), axis=0)
            sequence = np.argsort(power if order == "weakest_first" else -power)
            information = np.linalg.inv(joint_covariance(draw))
            for turn, user in enumerate(sequence):
                left = sequence[turn:]
                expected[user] = np.linalg.inv(information[np.ix_(left, left)])[0, 0].real
        found = uplinks.mse(Cell(PAIR, "strongest_user", draw, 0, "none"))
        np.testing.assert_allclose(found, expected[:3], rtol=2e-3)


# Settings


def test_the_key_is_all_that_the_numbers_depend_on() -> None:
    """Every setting but the knob of speed."""
    assert set(Settings().key()) == {
        *("preset", "receiver", "error_model", "scale", "c0_db", "kappa", "eval_samples"),
        *("validation_samples", "statistics_samples", "shots", "frozen", "seed", "realign"),
        *("metric", "numerics"),
    }
    assert Settings(receiver="weakest_first", error_model="independent").key() == Settings().key()
    assert Settings(frozen=("embeddings/.*",)).key() != Settings().key()
    assert Settings(control_learning_rate=0.1).key() != Settings().key()


def test_every_receiver_and_error_model_has_its_own_key() -> None:
    options = [
        *({"error_model": model} | more for model, more in OPTIONS.items()),
        *({"receiver": each} for each in ("strongest_first", "lmmse", "unaware", "estimated")),
    ]
    keys = [repr(Settings(**given).key()) for given in options]
    assert len(set(keys)) == len(keys)
    same = (Settings(error_model=f"equicorrelated={rho}").key() for rho in ("0.5", ".50"))
    assert next(same) == next(same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error_model": "lmmse"}, r"joint LMMSE receiver.*\(weakest_first\).*uncorrelated"),
        ({"error_model": "lmmse", "receiver": "strongest_first"}, r"\(strongest_first\)"),
        ({"error_model": "lmmse", "preset": "mse=.1,.1,.1"}, "direct preset of mse or snr_db has"),
        ({"receiver": "lmmse", "preset": "mse=.1,.1,.1"}, "the receiver lmmse needs a channel"),
        ({"error_model": "equicorrelated=-0.6"}, "of 3 users' errors must lie between .* = -0.5"),
    ],
)
def test_what_does_not_go_together_is_refused(
    inputs: SweepInputs, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**options).channel(3)
    with pytest.raises(InputError, match=message):
        Uplinks(inputs, Settings(**options))
