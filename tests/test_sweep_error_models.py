"""Receivers and error models of a sweep: what they do to merged and received task vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.sweep import cosines
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.inputs import SweepInputs
from rmtllmf_jax.sweep.journal import Journal
from rmtllmf_jax.sweep.programs import Programs, receive_and_merge
from rmtllmf_jax.sweep.runner import Runner
from rmtllmf_jax.sweep.settings import RECEIVERS, Settings
from rmtllmf_jax.uplink import transmit

TASKS = ("dtd", "mnist", "svhn")
PAIR = ("mnist", "svhn")
SIZE = 40_000
MSE = np.array([0.04, 0.09, 0.3])
KAPPA = 1.5
SCALE = 0.5
TRACES: Counter[tuple[str, str]] = Counter()
"""How often a program was traced, by the class of the error model."""


@jax.jit
def merge(*arguments: Any) -> Any:
    TRACES["merge", type(arguments[5]).__name__] += 1
    return receive_and_merge(*arguments)


@jax.jit
def receive(*arguments: Any) -> Any:
    TRACES["receive", type(arguments[4]).__name__] += 1
    return transmit(*arguments)


@pytest.fixture(autouse=True, scope="module")
def _compiled_fast() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosines, "_receive", receive)
        yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture(scope="module")
def inputs(tiny: tuple[Backbone, dict]) -> SweepInputs:
    """Three users who send nothing, so that all that arrives is error; most of it embeddings."""
    base = {"embeddings": {"cls_token": jnp.zeros(SIZE)}, "layernorm": {"bias": jnp.zeros(9)}}
    silent = jax.tree.map(lambda leaf: jnp.zeros((len(TASKS), *leaf.shape)), base)
    heads = Head(jnp.zeros((len(TASKS), 16, 2)), jnp.zeros((len(TASKS), 2)))
    return SweepInputs(TASKS, tiny[0], base, silent, heads, (), {})


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.jsonl") as opened:
        yield opened


def runner(inputs: SweepInputs, journal: Journal, **options: Any) -> Runner:
    made = Runner(inputs, Settings(kappa=KAPPA, **options), journal)
    made.programs = Programs(merge, made.programs.realign, made.programs.count)
    return made


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
    "lmmse": {"order": "lmmse"},
}
models = pytest.mark.parametrize("model", OPTIONS)


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
    inputs: SweepInputs, journal: Journal, model: str, combination: tuple[str, ...]
) -> None:
    made = runner(inputs, journal, error_model=model, **OPTIONS[model])
    merged = made.protected(Cell(combination, "strongest_user", 0, 0, "none"), MSE, SCALE)
    weights = SCALE * np.array([task in combination for task in TASKS], float)
    variance = expected_variance(model, weights)
    error = np.asarray(merged["embeddings"]["cls_token"], float)
    # Five standard errors of a variance; the correlations matter by more than that.
    np.testing.assert_allclose(np.mean(error**2), variance, rtol=5 * np.sqrt(2 / SIZE))
    if model != "independent":
        other = expected_variance("independent", weights)
        assert abs(variance / other - 1) > 10 * np.sqrt(2 / SIZE)


@models
def test_cosines_are_the_error_models(inputs: SweepInputs, journal: Journal, model: str) -> None:
    """Between the errors of users with one MSE; under `lmmse` those of the draw's channel."""
    options = OPTIONS[model] or {"preset": "mse=.1,.1,.1"}
    scenario = "strongest_user" if model == "lmmse" else "ideal"
    made = runner(inputs, journal, error_model=model, **options)
    rows = pd.DataFrame(cosine_rows(made, Grid((PAIR,), (scenario,), ("none",), 2, 1)))
    assert set(rows["error_model"]) == {model}
    for draw in range(2):
        seen = rows[(rows["draw"] == draw) & (rows["protection"] == "none")]
        found = seen.pivot(index="task_a", columns="task_b", values="cosine").to_numpy()
        np.testing.assert_allclose(found, correlation(model, draw), atol=5 / np.sqrt(SIZE))
        assert (np.abs(found - np.eye(3)).max() > 10 / np.sqrt(SIZE)) == (model != "independent")


@models
def test_one_trace_for_all_scenarios_and_draws(
    inputs: SweepInputs, journal: Journal, model: str
) -> None:
    made = runner(inputs, journal, error_model=model, **OPTIONS[model])
    scenarios = ("clean", "ideal", "strongest_user")
    for scenario in scenarios:
        mse = made.mse(scenario, 2)
        for draw in range(2):
            params = made.protected(Cell(PAIR, scenario, draw, 0, "none"), mse[draw], 0.3)
            quiet = all(not np.any(leaf) for leaf in jax.tree.leaves(params))
            assert quiet == (scenario == "clean")
    cosine_rows(made, Grid((PAIR,), scenarios[1:], ("none",), 2, 1))
    name = type(made.error_model("ideal", 0)).__name__
    assert TRACES["merge", name] == TRACES["receive", name] == 1


def test_the_reference_of_a_pair_is_that_of_the_run(inputs: SweepInputs, journal: Journal) -> None:
    """A user outside the combination has no error in it, but its share in the mean of e_0's."""
    made = runner(inputs, journal, error_model="noisy_reference")
    cell = Cell(PAIR, "ideal", 0, 0, "none")

    def variance(mse: np.ndarray) -> float:
        return float(np.var(np.asarray(made.protected(cell, mse, 1.0)["embeddings"]["cls_token"])))

    louder = variance(MSE * [2, 1, 1]) / variance(MSE)
    expected = (0.39 + 4 * (0.39 + 0.08) / 3) / (0.39 + 4 * (0.39 + 0.04) / 3)
    assert louder == pytest.approx(expected, rel=1e-4)  # one draw, rescaled


@pytest.mark.parametrize("order", RECEIVERS)
def test_the_order_replaces_the_presets_receiver(
    inputs: SweepInputs, journal: Journal, order: str
) -> None:
    found = runner(inputs, journal, order=order).mse("strongest_user", 2)
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
        np.testing.assert_allclose(found[draw], expected[:3], rtol=2e-3)


# Settings


def test_options_at_their_defaults_keep_the_key_of_older_journals() -> None:
    assert set(Settings().key()) == {
        *("preset", "scale", "c0_db", "kappa", "eval_samples", "validation_samples", "shots"),
        *("seed", "realign"),
    }
    assert Settings(order=None, error_model="independent").key() == Settings().key()


def test_every_receiver_and_error_model_has_its_own_key() -> None:
    options = [
        *({"error_model": model} | more for model, more in OPTIONS.items()),
        *({"order": order} for order in RECEIVERS),
    ]
    keys = [repr(Settings(**given).key()) for given in options]
    assert len(set(keys)) == len(keys)
    same = (Settings(error_model=f"equicorrelated={rho}").key() for rho in ("0.5", ".50"))
    assert next(same) == next(same)


def test_an_order_leaves_the_rest_of_the_preset() -> None:
    paper = channel.get_preset("paper")
    assert Settings().channel(3) == Settings(order="weakest_first").channel(3) == paper
    joint = Settings(order="lmmse").channel(3)
    assert isinstance(joint, channel.ChannelPreset)
    assert joint.order is None
    assert Settings(order="strongest_first").channel(3).users == paper.users


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error_model": "lmmse"}, r"joint LMMSE receiver.*\(weakest_first\).*uncorrelated"),
        ({"error_model": "lmmse", "order": "strongest_first"}, r"\(strongest_first\)"),
        ({"error_model": "lmmse", "preset": "mse=.1,.1,.1"}, "direct preset of mse or snr_db has"),
        ({"order": "lmmse", "preset": "mse=.1,.1,.1"}, "order 'lmmse' is a receiver's"),
        ({"error_model": "equicorrelated=-0.6"}, "of 3 users' errors must lie between .* = -0.5"),
    ],
)
def test_what_does_not_go_together_is_refused(
    inputs: SweepInputs, journal: Journal, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**options).channel(3)
    with pytest.raises(InputError, match=message):
        runner(inputs, journal, **options)
