"""Accuracy summed over padded batches, against numpy."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.batches import Batch, evaluation_set, even_batch
from rmtllmf_jax.evaluation.metrics import Accuracy
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import Head, stack_heads


def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return images, random.integers(0, 3, count).astype(np.int32)


def head(seed: int, classes: int) -> Head:
    random = np.random.default_rng(seed)
    kernel, bias = random.normal(size=(16, classes)), random.normal(size=classes)
    return Head(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))


@pytest.mark.parametrize(
    ("count", "batch_size", "batches"), [(11, 4, 3), (8, 4, 2), (3, 4, 1), (1, 1, 1)]
)
def test_batches_have_one_size_and_mark_their_padding(count: int, batch_size: int, batches: int):
    images, labels = samples(count)
    cut = evaluation_set(images, labels, batch_size)
    assert cut.count == count
    assert len(cut.batches) == batches
    assert {batch.inputs["images"].shape for batch in cut.batches} == {(batch_size, 16, 16, 3)}
    assert {batch.inputs["images"].dtype for batch in cut.batches} == {jnp.dtype(jnp.uint8)}
    valid = np.concatenate([batch.weight for batch in cut.batches]) > 0
    np.testing.assert_array_equal(valid, np.arange(batches * batch_size) < count)
    joined = np.concatenate([batch.inputs["images"] for batch in cut.batches])[valid]
    np.testing.assert_array_equal(joined, images)
    joined = np.concatenate([batch.target for batch in cut.batches])[valid]
    np.testing.assert_array_equal(joined, labels)


def test_nothing_cannot_be_evaluated():
    images, labels = samples(2)
    with pytest.raises(InputError, match="no samples to evaluate on"):
        evaluation_set(images[:0], labels[:0], 4)


def _sums(params: dict, heads: Head, task: jax.Array, batch: Batch, backbone: Backbone):
    head = jax.tree.map(lambda leaf: leaf[task], heads)
    return jnp.stack(
        Accuracy()(lambda b: head(backbone.features(params, b.inputs["images"])), batch)
    )


# A second trace anywhere in these tests is an error.
sums_once = jax.jit(chex.assert_max_traces(_sums, n=1), static_argnames="backbone")


@pytest.fixture(autouse=True, scope="module")
def _count_traces_from_zero():
    chex.clear_trace_counter()


@pytest.mark.parametrize("seed", [1, 2])
def test_sums_are_numpys_for_every_task(tiny: tuple[Backbone, dict], seed: int):
    backbone, params = tiny
    images, labels = samples(11)
    heads = [head(seed, 3), head(seed + 10, 5)]
    cut = evaluation_set(images, labels, 4)
    features = extract_features(backbone, params, images, batch_size=4)
    for task, own in enumerate(heads):
        guess = np.argmax(features @ np.asarray(own.kernel) + np.asarray(own.bias), axis=1)
        expected = np.sum(guess == labels)
        assert 0 < expected < 11
        total = sum(
            sums_once(params, stack_heads(heads), jnp.array(task), batch, backbone=backbone)
            for batch in cut.batches
        )
        assert total.tolist() == [expected, 11]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_without_finite_outputs_has_no_sum(tiny: tuple[Backbone, dict], value: float):
    backbone, params = tiny
    norm = params["layernorm"]
    broken = params | {"layernorm": norm | {"scale": norm["scale"] * value}}
    images, labels = samples(11)
    cut = evaluation_set(images, labels, 4)
    heads = stack_heads([head(1, 3), head(11, 5)])
    sums = [sums_once(broken, heads, jnp.array(0), b, backbone=backbone) for b in cut.batches]
    assert np.isnan(sums)[:, 0].all()
    assert np.sum(sums, axis=0)[1] == 11


def test_padding_never_counts(tiny: tuple[Backbone, dict]):
    """A head that always answers class 0, the label that padding carries."""
    backbone, params = tiny
    always = Head(jnp.zeros((2, 16, 5)), jnp.tile(jnp.array([1.0, 0, 0, 0, 0]), (2, 1)))
    images, _ = samples(2)
    (batch,) = evaluation_set(images, np.zeros(2, np.int32), 4).batches
    sums = sums_once(params, always, jnp.array(0), batch, backbone=backbone)
    assert sums.tolist() == [2, 2]


@given(
    counts=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    parts=st.integers(1, 16),
    multiple=st.integers(1, 8),
)
def test_an_even_batch_fits_the_devices_and_never_pads_more_than_the_largest(
    counts, parts, multiple
):
    most = parts * multiple
    size = even_batch(counts, most, multiple)

    def rows(batch: int) -> int:
        return sum(-(-count // batch) * batch for count in counts)

    assert 0 < size <= most
    assert size % multiple == 0
    assert rows(size) <= 1.01 * rows(most)


def test_an_even_batch_of_equal_sets_pads_nothing():
    assert even_batch([200] * 8, 128) == 100
    assert even_batch([200, 100], 128) == 100
    assert even_batch([200], 128, 8) == 104
