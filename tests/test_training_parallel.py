"""Batches over devices and in parts: the same numbers, up to the order in which they are added."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.training.parallel import Placement, Split, value_and_gradient

WORKER = Path(__file__).with_name("training_worker.py")


def trained_on(devices: int, folder: Path) -> dict[str, np.ndarray]:
    out = folder / f"{devices}.npz"
    words = [sys.executable, str(WORKER), "--out", str(out), "--devices", str(devices)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        return dict(arrays)


def test_eight_devices_are_one_device(tmp_path: Path):
    """With augmentation, weight noise, and the best of the scores kept."""
    one, eight = trained_on(1, tmp_path), trained_on(8, tmp_path)
    assert one.keys() == eight.keys()
    assert len(one["1/losses"]) == 4
    moved = 0.0
    for path, leaf in one.items():
        if path.endswith("key/bias"):
            continue  # its gradient is zero but for rounding, which Adam makes steps of
        np.testing.assert_allclose(eight[path], leaf, rtol=4e-7, atol=4e-7, err_msg=path)
        whole = one[f"1/{path.partition('/')[2]}"]
        np.testing.assert_allclose(leaf, whole, rtol=4e-7, atol=4e-7, err_msg=path)  # parts
        moved = max(moved, np.ptp(leaf))
    assert moved > 0.1


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_add_up_to_the_whole(parts: int):
    """Of samples of different weight, where a mean of means would be another number."""
    random = np.random.default_rng(0)
    x, w = jnp.asarray(random.normal(size=(6, 4))), jnp.asarray([1.0, 0.0, 2.0, 5.0, 0.5, 1.0])
    params = {"a": jnp.asarray(random.normal(size=4))}

    def loss(params: dict, part: tuple) -> jax.Array:
        rows, weights = part
        return jnp.sum(weights * jnp.tanh(rows @ params["a"]) ** 2) / jnp.sum(w)

    expected = jax.value_and_grad(loss)(params, (x, w))
    found = value_and_gradient(loss, params, (x, w), parts)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1]["a"], expected[1]["a"], rtol=1e-5)


def test_one_device_is_left_alone():
    place, tree = Placement(Split().devices(7)), {"a": jnp.ones(3)}
    assert place.cut(tree) is place.everywhere(tree) is place.together(tree) is tree


def test_what_does_not_divide_is_refused():
    with pytest.raises(
        InputError, match=r"--batch-size 10 is not a multiple of 1 devices .* 4 parts"
    ):
        Split(1, 4).devices(10)
    with pytest.raises(InputError, match=r"--train-devices 99: a process sees \d+ \(cpu\)"):
        Split(99).devices(99)
    for wrong in ({"count": 0}, {"parts": 0}):
        with pytest.raises(InputError, match="must be at least 1, got 0"):
            Split(**wrong)
