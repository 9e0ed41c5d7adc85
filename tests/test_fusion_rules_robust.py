"""Median, trimmed mean and clipped norms against plain numpy, and on files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.rules import ClippedNorm, Median, TrimmedMean

few = settings(max_examples=25, deadline=None)
MIDDLES = [Median(), TrimmedMean(), TrimmedMean(2), TrimmedMean(0.0), TrimmedMean(0.25)]


def rows_of(seed: int, users: int, coarse: bool = False) -> np.ndarray:
    """Return task vectors of one leaf; coarse ones have many ties."""
    rows = np.random.default_rng(seed).normal(size=(users, 4, 5))
    return (np.round(rows) if coarse else rows).astype(np.float32)


def middle_in_numpy(rows: np.ndarray, weights: np.ndarray, method: Any) -> np.ndarray:
    """Return the mean of what is left by its definition, a user as so many small equal parts."""
    parts = 8
    shares = np.maximum(weights, 0) / max(weights.max(), 1e-9)
    total = shares.sum()
    most = max(total - 1, 0) / 2
    cut = most
    if isinstance(method, TrimmedMean):
        cut = min(method.trim if method.trim >= 1 else method.trim * total, most)
    copies = np.repeat(rows.astype(np.float64), np.round(parts * shares).astype(int), axis=0)
    gone = round(parts * cut)
    assert abs(gone - parts * cut) < 1e-9
    ordered = np.sort(copies, axis=0)
    return ordered[gone : len(ordered) - gone].mean(axis=0)


@few
@given(
    st.sampled_from(MIDDLES),
    st.lists(st.sampled_from([0.0, 1.0, 1.0, 1.0]), min_size=1, max_size=8).filter(any),
    st.booleans(),
    st.integers(0, 99),
)
def test_members_against_numpy(method: Any, members: list[float], coarse: bool, seed: int):
    rows, weights = rows_of(seed, len(members), coarse), np.array(members)
    found = method({"w": jnp.asarray(rows)}, weights=weights)["w"]
    np.testing.assert_allclose(found, middle_in_numpy(rows, weights, method), rtol=1e-5, atol=1e-6)
    if method == Median():
        exact = np.median(rows[weights > 0], axis=0)
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-7)  # a sum of the halves


@few
@given(
    st.sampled_from([Median(), TrimmedMean(), TrimmedMean(0.25)]),
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=6).filter(lambda w: 1.0 in w),
    st.sampled_from([1.0, 0.25, 3.0]),
    st.integers(0, 99),
)
def test_a_fraction_of_a_user(method: Any, weights: list[float], unit: float, seed: int):
    """Half a user is as wide as half; the unit of the weights does not matter."""
    rows, w = rows_of(seed, len(weights)), np.array(weights)
    found = method({"w": jnp.asarray(rows)}, weights=unit * w)["w"]
    np.testing.assert_allclose(found, middle_in_numpy(rows, w, method), rtol=1e-5, atol=1e-6)


def test_so_many_trimmed_that_the_median_is_left():
    stacked = {"w": jnp.asarray(rows_of(0, 5))}
    assert_trees_equal(TrimmedMean(9)(stacked), Median()(stacked))
    one = {"w": stacked["w"][:1]}
    for method in MIDDLES:
        np.testing.assert_array_equal(method(one)["w"], one["w"][0])
        nobody = method(stacked, weights=jnp.zeros(5))["w"]
        np.testing.assert_array_equal(nobody, np.zeros((4, 5)))


@pytest.mark.parametrize("wrong", [1e30, -np.inf, np.inf])
@pytest.mark.parametrize("method", [Median(), TrimmedMean()])
def test_one_user_may_send_anything(method: Any, wrong: float):
    rows = rows_of(3, 5)
    rows[2] = wrong
    found = np.asarray(method({"w": jnp.asarray(rows)})["w"])
    others = np.delete(rows, 2, axis=0)
    assert (found <= others.max(axis=0)).all()
    assert (found >= others.min(axis=0)).all()
    out = method({"w": jnp.asarray(rows)}, weights=jnp.array([1.0, 1, 0, 1, 1]))["w"]
    np.testing.assert_array_equal(out, method({"w": jnp.asarray(others)})["w"])
    rows[2] = np.nan
    assert np.isnan(method({"w": jnp.asarray(rows)})["w"]).all()
    out = method({"w": jnp.asarray(rows)}, weights=jnp.array([1.0, 1, 0, 1, 1]))["w"]
    np.testing.assert_array_equal(out, method({"w": jnp.asarray(others)})["w"])


@few
@given(
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=6).filter(any),
    st.integers(0, 99),
)
def test_clipped_norms_against_numpy(limit: float, weights: list[float], seed: int):
    users, w = len(weights), np.array(weights)
    size = np.arange(1, users + 1)[:, None, None]
    tree = {"a": rows_of(seed, users) * size, "b": rows_of(seed + 1, users)[:, 0]}
    flat = np.concatenate([leaf.reshape(users, -1) for leaf in tree.values()], axis=1)
    norms = np.linalg.norm(flat.astype(np.float64), axis=1)
    factors = np.minimum(1, limit * np.median(norms[w != 0]) / norms)
    found = ClippedNorm(limit)(jax.tree.map(jnp.asarray, tree), weights=w)
    for name, leaf in tree.items():
        expected = np.tensordot(w * factors, leaf, 1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


def test_compiled_with_weights_as_data_and_mapped():
    stacked = {"w": jnp.asarray(rows_of(5, 4))}
    weights = jnp.array([[1.0, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0]])
    for method in (*MIDDLES, ClippedNorm()):
        mapped = jax.jit(jax.vmap(lambda w, by=method: by(stacked, weights=w)["w"]))(weights)
        for row, w in zip(mapped, weights, strict=True):
            there = np.asarray(w) > 0
            alone = method({"w": stacked["w"][there]})["w"]
            np.testing.assert_allclose(row, alone, rtol=1e-6, atol=1e-6)


def test_derivatives_go_to_those_who_are_left():
    leaf = jnp.array([[1.0], [9.0], [2.0], [4.0]])

    def slope(method: Any, at: jax.Array = leaf) -> list[float]:
        return jax.grad(lambda x: method({"w": x})["w"].sum())(at)[:, 0].tolist()

    assert slope(Median()) == [0, 0, 0.5, 0.5]
    assert slope(TrimmedMean()) == [0, 0, 0.5, 0.5]
    assert slope(TrimmedMean(0.125)) == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3])
    assert slope(Median(), jnp.array([[2.0], [2.0], [2.0]])) == pytest.approx([1 / 3] * 3)
    rows = jnp.asarray(rows_of(6, 3)).reshape(3, -1) * jnp.array([[1.0], [2.0], [5.0]])
    jax.test_util.check_grads(
        lambda x: ClippedNorm()({"w": jnp.asarray(x)})["w"], (rows,), 1, rtol=2e-2
    )
    zero = jax.grad(lambda x: ClippedNorm()({"w": x})["w"].sum())(rows.at[0].set(0.0))
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("trim", [-1, 0.5, 1.5, float("nan"), float("inf")])
def test_a_trim_out_of_range_is_refused(trim: float):
    with pytest.raises(InputError, match=r"trim must be a whole number .* share of them below 0.5"):
        TrimmedMean(trim)


def test_other_numbers_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match=r"a weight, the share .* must be a finite number >= 0"):
        Median(weights=(1.0, -1.0))
    with pytest.raises(InputError, match="limit must be a finite number >= 0, got -1"):
        ClippedNorm(-1.0)


@pytest.mark.parametrize("method", ["median", "trimmed_mean(trim=1)"])
def test_files_are_merged_as_trees(method: str, tmp_path: Path):
    base = {"layers.0.weight": rows_of(7, 1)[0], "layers.1.weight": rows_of(8, 1)[0, 0]}
    moved = {"layers.0.weight": rows_of(9, 4), "layers.1.weight": rows_of(10, 4)[:, 0]}
    moved["layers.0.weight"][3] = 1e6  # poison
    names = ["base.safetensors", *(f"{user}.safetensors" for user in range(4))]
    save_file(base, tmp_path / names[0])
    for user in range(4):
        tensors = {key: leaf + moved[key][user] for key, leaf in base.items()}
        save_file(tensors, tmp_path / names[user + 1])
    base_path, *models = (str(tmp_path / name) for name in names)
    out = tmp_path / "out"
    command = ["fuse", "--base", base_path, "--models", *models, "--method", method]
    main([*command, "--out", str(out)])
    found = load_file(out / "model.safetensors")
    assert found.keys() == base.keys()
    for key, leaf in base.items():
        expected = leaf + np.sort(moved[key], axis=0)[1:3].mean(axis=0)  # scale 1: a mean
        np.testing.assert_allclose(found[key], expected, rtol=1e-4, atol=1e-5)
    assert "Yin et al." in (out / "README.md").read_text()


def test_files_cannot_be_merged_by_norms(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["fuse", "--base", "a", "--models", "b", "--method", "clipped_norm"]
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "out")])
    assert "clipped_norm does not say `per_leaf = True`" in capsys.readouterr().err
