"""Where heads come from: linear probes, a checkpoint's own classifier, and their names."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG, hugging_face_tensors, write_model
from safetensors.numpy import save_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.classifier import Classifier, read_classifier
from rmtllmf_jax.models.heads import Head, probe_head
from rmtllmf_jax.models.pretrained import read_pretrained
from rmtllmf_jax.training.task_heads import (
    Lda,
    Own,
    Probe,
    ZeroShot,
    head_text,
    own_head,
    parse_head,
)

WIDTH = 5


@pytest.mark.parametrize(
    ("text", "expected", "again"),
    [
        ("lda", Lda(), "lda"),
        ("lda=3", Lda(3), "lda(shots=3)"),
        ("lda(shots=3)", Lda(3), "lda(shots=3)"),
        ("probe=5", Probe(5), "probe(shots=5)"),
        ("probe(5, strength=0.1)", Probe(5, 0.1), "probe(shots=5, strength=0.1)"),
        ("own", Own(), "own"),
        ("zero-shot", ZeroShot(), "zero-shot"),
    ],
)
def test_heads_are_read_and_written(text: str, expected: object, again: str):
    assert parse_head(text) == expected
    assert head_text(expected) == again
    assert parse_head(again) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("zeroshot", "unknown --head 'zeroshot'. Did you mean 'zero-shot'"),
        ("zero-shot=3", "--head 'zero-shot.3.' cannot be read"),
        ("probe=0", "shots of a probe must be at least 1, got 0"),
        ("probe=many", "probe: shots must be a whole number, or none, got many"),
        ("probe(strength=0)", "strength of a probe must be above 0"),
        ("own=3", "own has no options"),
    ],
)
def test_what_is_no_head_is_refused(text: str, says: str):
    with pytest.raises(InputError, match=says):
        parse_head(text)


# A linear probe


def samples(classes: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(classes)
    labels = np.repeat(np.arange(classes), 7).astype(np.int32)
    means = random.normal(size=(classes, WIDTH))
    return (3 + 20 * (means[labels] + random.normal(size=(len(labels), WIDTH)))), labels


@pytest.mark.parametrize(("classes", "strength"), [(2, 1.0), (3, 1.0), (4, 0.05)])
def test_a_probe_is_at_the_minimum_of_its_penalised_loss(classes: int, strength: float):
    """The gradient of strength * sum of cross-entropies + |w|^2 / 2 is zero, in plain numpy."""
    features, labels = samples(classes)
    head = probe_head(features, labels, classes, strength=strength)
    logits = features @ np.asarray(head.kernel, np.float64) + np.asarray(head.bias, np.float64)
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    error = shares - np.eye(classes)[labels]
    centred = features - features.mean(axis=0)
    spread = np.sqrt(np.mean(centred**2))
    data = strength * (centred / spread).T @ error
    gradient = data + spread * np.asarray(head.kernel, np.float64)
    if classes == 2:  # scikit-learn penalises the one direction between two classes
        gradient = gradient[:, 1:]
    assert np.abs(gradient).max() < 1e-3 * np.abs(data).max()
    assert np.abs(strength * error.sum(axis=0)).max() < 1e-3


def test_a_probe_needs_every_class():
    features, labels = samples(3)
    with pytest.raises(InputError, match=r"classes without: \[3\]"):
        probe_head(features, labels, 4)
    one = probe_head(features, np.zeros(len(labels), np.int32), 1)
    assert np.asarray(one(jnp.asarray(features))).tolist() == [[0.0]] * len(labels)


# The checkpoint's own classifier


def a_classifier(*labels: str, outputs: int | None = None) -> Classifier:
    kernel = np.random.default_rng(0).normal(size=(WIDTH, outputs or len(labels)))
    leaf = jnp.asarray(kernel, jnp.float32)
    return Classifier(Head(leaf, leaf[0]), labels)


def test_outputs_are_picked_by_the_names_of_classes():
    classifier = a_classifier("tench, Tinca tinca", "Permanent Crop", "crane", "sea_lake")
    head = own_head(classifier, "birds", ["Crane", "tench"])
    np.testing.assert_array_equal(head.kernel, classifier.head.kernel[:, np.array([2, 0])])
    np.testing.assert_array_equal(head.bias, classifier.head.bias[np.array([2, 0])])
    head = own_head(classifier, "eurosat", ["SeaLake", "permanent crop land"])  # the registry's
    np.testing.assert_array_equal(head.bias, classifier.head.bias[np.array([3, 1])])


def test_classes_without_one_output_are_refused():
    classifier = a_classifier("crane, bird", "crane, machine", "heron")
    with pytest.raises(InputError, match=r"'birds': .*'crane' \(2 outputs\), 'owl' \(0 outputs\)"):
        own_head(classifier, "birds", ["heron", "crane", "owl"])


def test_outputs_without_names_are_taken_in_order(capsys: pytest.CaptureFixture[str]):
    classifier = a_classifier(outputs=3)
    assert own_head(classifier, "any", ["a", "b", "c"]) is classifier.head
    assert "any: the outputs of the model's own classifier have no names" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"has 2 classes, .* 3 outputs without names"):
        own_head(classifier, "any", ["a", "b"])


def test_a_classifier_is_read_with_its_names(tmp_path: Path):
    names = {"1": "b", "0": "a", "2": "c"}
    config = TINY_CONFIG | {"id2label": names}
    found = read_classifier(read_pretrained(write_model(tmp_path / "named", config)))
    assert found.labels == ("a", "b", "c")
    tensors = hugging_face_tensors(config)
    np.testing.assert_array_equal(found.head.kernel, tensors["classifier.weight"].T)
    assert read_classifier(read_pretrained(write_model(tmp_path / "bare"))).labels == ()
    two = write_model(tmp_path / "two", TINY_CONFIG | {"id2label": {"0": "a", "1": "b"}})
    with pytest.raises(InputError, match=r"id2label has 2 names, and .* 3 outputs"):
        read_classifier(read_pretrained(two))
    none = write_model(tmp_path / "none")
    kept = {k: v for k, v in tensors.items() if not k.startswith("classifier")}
    save_file(kept, none / "model.safetensors")
    with pytest.raises(InputError, match=r"no classifier \(classifier\.weight\)"):
        read_classifier(read_pretrained(none))
