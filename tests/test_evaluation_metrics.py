"""Metrics of logits against NumPy, and discrete choices that refuse to be differentiated."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.evaluation.discrete import discrete
from rmtllmf_jax.evaluation.known import get_metric
from rmtllmf_jax.evaluation.metrics import (
    METRICS,
    Accuracy,
    CrossEntropy,
    Margin,
    PerSample,
    SoftAccuracy,
)
from rmtllmf_jax.models.heads import PADDED_LOGIT

CLASSES = 5


def log_probability(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Return log softmax at the label, the slow and safe way, in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(axis=-1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.sum(np.exp(scaled - top), axis=-1))
    return scaled[np.arange(len(labels)), labels] - log_sum


def numpy_margin(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    rows = [np.delete(row, label) for row, label in zip(np.float64(logits), labels, strict=True)]
    here = np.float64(logits)[np.arange(len(labels)), labels]
    return (here - np.max(rows, axis=-1)) / temperature


REFERENCES: dict[type[PerSample], Callable[..., np.ndarray]] = {
    Accuracy: lambda logits, labels, _: np.float64(np.argmax(logits, axis=-1) == labels),
    SoftAccuracy: lambda *given: np.exp(log_probability(*given)),
    CrossEntropy: lambda *given: -log_probability(*given),
    Margin: numpy_margin,
}


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 4 * rng.normal(size=(64, CLASSES)), rng.integers(0, CLASSES, 64)


def at(kind: type[PerSample], temperature: float) -> PerSample:
    return kind() if kind is Accuracy else kind(temperature)


def test_every_metric_has_a_reference():
    assert set(REFERENCES) == set(METRICS.values())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("temperature", [0.1, 7.0])
@pytest.mark.parametrize("kind", REFERENCES)
def test_metrics_against_numpy_in_float64(kind: type[PerSample], temperature: float, dtype: type):
    logits, labels = drawn()
    metric = at(kind, temperature)
    expected = REFERENCES[kind](logits, labels, temperature)
    weight = np.random.default_rng(1).integers(0, 3, len(labels)) / 4
    spoilt = np.where(weight[:, None] > 0, logits, np.nan)  # padding may be anything
    with jax.enable_x64(dtype == jnp.float64):
        found = metric.per_sample(jnp.asarray(logits, dtype), jnp.asarray(labels))
        batch = Batch({}, jnp.asarray(labels), jnp.asarray(weight, dtype))
        total, whole = metric(lambda _: jnp.asarray(spoilt, dtype), batch)
    assert found.dtype == total.dtype == dtype
    assert found.shape == labels.shape
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_allclose(total, weight @ expected, rtol=20 * tolerance)
    np.testing.assert_allclose(whole, weight.sum(), rtol=tolerance)


@pytest.mark.parametrize("kind", REFERENCES)
def test_padded_classes_change_nothing(kind: type[PerSample]):
    logits, labels = drawn()
    padded = np.pad(logits, ((0, 0), (0, 3)), constant_values=PADDED_LOGIT)
    found, expected = (
        at(kind, 0.5).per_sample(jnp.asarray(each, jnp.float32), jnp.asarray(labels))
        for each in (padded, logits)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in REFERENCES if kind.differentiable])
def test_gradients_against_differences_and_zero_at_padded_classes(kind: type[PerSample]):
    logits, labels = drawn(1)
    padded = np.pad(logits, ((0, 0), (0, 2)), constant_values=PADDED_LOGIT)
    with jax.enable_x64(True):
        batch = Batch({}, jnp.asarray(labels), jnp.ones(len(labels)))
        gradient = jax.grad(lambda x: at(kind, 1.5)(lambda _: x, batch)[0])(jnp.asarray(padded))
    step = 1e-5
    for place in range(CLASSES):
        move = step * np.eye(CLASSES)[place]
        up, down = (REFERENCES[kind](logits + s * move, labels, 1.5) for s in (1, -1))
        numeric = (up - down) / (2 * step)
        assert np.max(np.abs(numeric)) > 0.01
        np.testing.assert_allclose(gradient[:, place], numeric, atol=1e-8)
    np.testing.assert_array_equal(gradient[:, CLASSES:], 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", REFERENCES)
def test_outputs_that_are_not_finite_have_no_sum(kind: type[PerSample], value: float):
    """An infinite logit of another class would make a soft accuracy of zero, a finite number."""
    logits = jnp.array([[1.0, 2.0], [value, value if value < 0 else 0.0]])
    total, weight = kind()(lambda _: logits, Batch({}, jnp.array([0, 1]), jnp.ones(2)))
    assert not np.isfinite(total)
    assert weight == 2


def test_scores_are_normalised_by_the_better_direction():
    assert Accuracy().score(15.0, 20.0) == 0.75
    assert Accuracy().normalised(0.6, 0.8) == 0.6 / 0.8
    assert CrossEntropy().normalised(2.0, 0.5) == 0.25
    assert CrossEntropy().normalised(0.0, 0.5) == np.inf


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=3, max_size=3, unique=True),
    st.integers(0, 2),
    st.floats(0.02, 0.2),
)
def test_soft_accuracy_tends_to_accuracy(row: list[int], label: int, temperature: float):
    """With a gap g under the largest of C logits they differ by at most (C - 1) exp(-g / T)."""
    logits, labels = jnp.array([row], jnp.float32) / 10, jnp.array([label])
    top = sorted(row)[::-1]
    gap = (top[0] - top[1]) / 10
    hard = Accuracy().per_sample(logits, labels)[0]
    assert hard == float(row[label] == top[0])
    apart = [
        abs(float(SoftAccuracy(temperature / 2**n).per_sample(logits, labels)[0] - hard))
        for n in (0, 5)
    ]
    for n, distance in zip((0, 5), apart, strict=True):
        assert distance <= 2 * np.exp(-gap * 2**n / temperature) + 1e-6
    assert apart[1] <= apart[0] + 1e-6
    assert apart[1] < 2e-6  # 2 exp(-0.1 * 2^5 / 0.2) and rounding


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("soft_acuracy", "unknown metric 'soft_acuracy'. Did you mean 'soft_accuracy'?"),
        ("soft_accuracy(temperature=0)", "temperature must be a finite number > 0, got 0.0"),
        (min, "expected a value such as Accuracy"),
    ],
)
def test_what_is_no_metric_is_refused(metric: object, said: str):
    with pytest.raises(InputError) as caught:
        get_metric(metric)
    assert said in str(caught.value)


X = jnp.array([1.0, 3.0, 2.0])
Smooth = Callable[[jax.Array], jax.Array]


def chosen(x: jax.Array) -> jax.Array:
    """Pick by a choice made from `x`: its derivative would leave the choice out."""
    return x[jnp.argmax(discrete("the largest", x, "hold it"))]


def scanned(function: Smooth) -> Smooth:
    return lambda x: jax.lax.scan(lambda total, _: (total + function(x), None), 0.0, length=2)[0]


WRAPPERS: dict[str, Callable[[Smooth], Smooth]] = {
    "plain": lambda function: function,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": scanned,
    "vmap": lambda function: lambda x: jnp.sum(jax.vmap(function)(jnp.stack([x, 2 * x]))),
    "jit of scan of checkpoint": lambda function: jax.jit(scanned(jax.checkpoint(function))),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@wrappers
def test_a_discrete_choice_passes_values(wrap: Callable[[Smooth], Smooth]):
    np.testing.assert_array_equal(discrete("the largest", X, "hold it"), X)
    assert wrap(chosen)(X) == wrap(jnp.max)(X)


DERIVATIVES: dict[str, Callable[[Smooth], object]] = {
    "grad": lambda function: jax.grad(function)(X),
    "jvp": lambda function: jax.jvp(function, (X,), (X,)),
    "jacfwd": lambda function: jax.jacfwd(function)(X),
    "hessian": lambda function: jax.hessian(function)(X),
    "vmap of grad": lambda function: jax.vmap(jax.grad(function))(jnp.stack([X, X])),
    "jit of grad": lambda function: jax.jit(jax.grad(function))(X),
}


@pytest.mark.parametrize("derive", DERIVATIVES.values(), ids=DERIVATIVES)
def test_a_discrete_choice_refuses_every_derivative_by_name(derive: Callable[[Smooth], object]):
    with pytest.raises(InputError, match="the largest is a discrete choice"):
        derive(chosen)


@wrappers
def test_a_discrete_choice_refuses_derivatives_through_every_transformation(
    wrap: Callable[[Smooth], Smooth],
):
    for derive in (jax.grad, jax.jacfwd):
        with pytest.raises(InputError, match="the largest is a discrete choice"):
            derive(wrap(chosen))(X)


@wrappers
def test_a_discrete_choice_from_a_constant_passes(wrap: Callable[[Smooth], Smooth]):
    where = jnp.array([1.0, 5.0, 3.0])

    def function(x: jax.Array) -> jax.Array:
        return x[jnp.argmax(discrete("the largest", where, "hold it"))] ** 2

    expected = jax.grad(wrap(lambda x: x[1] ** 2))(X)
    assert expected[1] > 0
    np.testing.assert_array_equal(jax.grad(wrap(function))(X), expected)
    held = wrap(lambda x: jnp.sum(x * jnp.argmax(discrete("held", jax.lax.stop_gradient(x), ""))))
    assert jax.grad(held)(X).any()


def test_hard_accuracy_refuses_derivatives_by_name():
    logits, labels = (jnp.asarray(each) for each in drawn())
    with pytest.raises(InputError, match=r"hard accuracy.*SoftAccuracy"):
        jax.grad(lambda x: jnp.sum(Accuracy().per_sample(x, labels)))(logits)
