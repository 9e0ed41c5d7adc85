"""Heads in closed form, and heads of several tasks side by side."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.heads import Head, lda_head, logits_by_task, stack_heads

WIDTH = 6


def samples(classes: int, seed: int = 0, each: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Return features of classes of different sizes that overlap, in columns of unequal scale."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each + 4 * np.arange(classes))
    labels = random.permutation(labels).astype(np.int32)
    means = random.normal(size=(classes, WIDTH))
    mixing = random.normal(size=(WIDTH, WIDTH))
    features = means[labels] + random.normal(size=(len(labels), WIDTH)) @ mixing
    return (features * 10.0 ** np.linspace(-1, 1, WIDTH)).astype(np.float32), labels


def ledoit_wolf(rows: np.ndarray) -> np.ndarray:
    """Return the shrunk covariance of standardised rows, in the paper's symbols."""
    scale = rows.std(axis=0)
    x = (rows - rows.mean(axis=0)) / scale
    n, p = x.shape
    s = x.T @ x / n
    m = np.trace(s) / p
    d2 = np.sum((s - m * np.eye(p)) ** 2) / p
    b2 = np.mean([np.sum((np.outer(row, row) - s) ** 2) / p for row in x]) / n
    b2 = min(b2, d2)
    shrunk = b2 / d2 * m * np.eye(p) + (1 - b2 / d2) * s
    return scale[:, None] * shrunk * scale[None, :]


def log_posterior(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return what the head should give, in plain numpy."""
    wide = features.astype(np.float64)
    groups = [wide[labels == label] for label in range(classes)]
    priors = np.array([len(group) for group in groups]) / len(labels)
    covariance = sum(p * ledoit_wolf(group) for p, group in zip(priors, groups, strict=True))
    scores = []
    for prior, group in zip(priors, groups, strict=True):
        direction = np.linalg.solve(covariance, group.mean(axis=0))
        constant = np.log(prior) - 0.5 * group.mean(axis=0) @ direction
        scores.append(wide @ direction + constant)
    logits = np.stack(scores, axis=1)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_lda_is_the_closed_form(classes: int):
    features, labels = samples(classes)
    head = lda_head(features, labels, classes)
    assert head.kernel.shape == (WIDTH, classes)
    assert head.bias.shape == (classes,)
    assert head.kernel.dtype == head.bias.dtype == jnp.float32
    result = jax.nn.log_softmax(head(jnp.asarray(features)))
    np.testing.assert_allclose(
        result, log_posterior(features, labels, classes), rtol=1e-3, atol=1e-3
    )


def test_a_class_of_one_sample_is_enough():
    features, labels = samples(3)
    lone = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:1]])
    head = lda_head(features[lone], labels[lone], 3)
    assert np.isfinite(head.kernel).all()
    assert np.argmax(head(jnp.asarray(features[lone[-1:]]))) == 2


@pytest.mark.parametrize(
    ("labels", "value", "says"),
    [
        ([0, 0, 2, 2, 2], 0.0, r"classes without: \[1\]"),
        ([0, 1, 2, 3, 3], 0.0, r"3 classes .* largest label: 3"),
        ([0, 1, 2], 0.0, "3 classes needs more than 3 samples"),
        ([0, 1, 2, 0, 1], np.inf, "features are not finite"),
    ],
)
def test_samples_that_make_no_head_are_refused(labels: list[int], value: float, says: str):
    features = np.random.default_rng(0).normal(size=(len(labels), WIDTH)).astype(np.float32)
    features[1, 2] += value
    with pytest.raises(InputError, match=says):
        lda_head(features, np.array(labels), 3)


def test_a_task_of_one_class_is_decided():
    features, labels = samples(1)
    head = lda_head(features, labels, 1)
    assert head(jnp.asarray(features)).shape == (9, 1)
    assert np.isfinite(head.kernel).all()


# Several heads


def heads() -> list[Head]:
    """Return heads of 2, 4 and 3 classes whose logits are all far below zero."""
    random = np.random.default_rng(2)
    return [
        Head(
            jnp.asarray(random.normal(size=(WIDTH, classes)), jnp.float32),
            jnp.asarray(random.normal(size=classes) - 1000, jnp.float32),
        )
        for classes in (2, 4, 3)
    ]


def some_features(count: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=(count, WIDTH)), jnp.float32)


def test_classes_of_the_padding_are_never_chosen():
    stacked = stack_heads(heads())
    assert stacked.kernel.shape == (3, WIDTH, 4)
    features = 100 * some_features(50)
    for task, head in enumerate(heads()):
        classes = head.bias.shape[0]
        logits = jax.tree.map(lambda leaf, i=task: leaf[i], stacked)(features)
        np.testing.assert_allclose(logits[:, :classes], head(features), rtol=1e-5)
        assert np.argmax(logits, axis=1).max() < classes
        probabilities = np.asarray(jax.nn.softmax(logits))
        assert (probabilities[:, classes:] == 0).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_each_sample_gets_the_logits_of_its_own_task():
    features, task = some_features(9), np.array([2, 0, 1, 1, 0, 2, 2, 0, 1])
    logits = logits_by_task(stack_heads(heads()), features, jnp.asarray(task))
    assert logits.shape == (9, 4)
    for row, which in enumerate(task):
        head = heads()[which]
        expected = head(features[row : row + 1])[0]
        np.testing.assert_allclose(logits[row, : len(expected)], expected, rtol=1e-5)
