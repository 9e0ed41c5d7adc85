"""The figure of the cosines between task vectors, read back from what it draws."""

from __future__ import annotations

import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.vector_figures import similarity_figure

TASKS = ["dtd", "mnist", "svhn"]


def matrix(a: float, b: float, c: float) -> np.ndarray:
    return np.array([[1, a, b], [a, 1, c], [b, c, 1]])


def test_both_panels_show_their_cosines():
    layers = {
        "embeddings": matrix(0.1, 0.2, 0.6),
        "frozen": matrix(np.nan, np.nan, np.nan),
        "layers/0": matrix(0.0, -0.2, 0.2),
        "layers/1": matrix(0.3, np.nan, np.nan),
    }
    figure = similarity_figure(TASKS, matrix(0.05, 0.1, 0.25), layers)
    left, right = figure.axes[:2]
    assert [text.get_text() for text in left.texts][:3] == ["1.00", "0.05", "0.10"]
    assert [label.get_text() for label in left.get_xticklabels()] == TASKS
    drawn = []
    for marks, _, (bar,) in right.containers:
        ((start, end),) = [segment[:, 0] for segment in bar.get_segments()]
        drawn.append([marks.get_ydata()[0], marks.get_xdata()[0], start, end])
    expected = [[0, 0.3, 0.1, 0.6], [2, 0.0, -0.2, 0.2], [3, 0.3, 0.3, 0.3]]
    np.testing.assert_allclose(drawn, expected, atol=1e-12)
    assert [label.get_text() for label in right.get_yticklabels()] == list(layers)
    assert right.yaxis_inverted()


def test_one_task_has_no_cosines():
    with pytest.raises(InputError, match="two task vectors or more"):
        similarity_figure(["dtd"], np.ones((1, 1)), {})
