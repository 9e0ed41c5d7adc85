"""Frozen classification heads: one linear map per task, built once and never trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rmtllmf_jax.common.errors import InputError

PADDED_LOGIT = -1e9
"""Logit of a class that a padded head does not have: its probability is exactly zero."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "bias", "projection"],
    meta_fields=["unit"],
)
@dataclass(frozen=True)
class Head:
    """``logits = features @ kernel + bias``. Stacked heads have a leading axis of tasks.

    With a `projection` (CLIP's, into the space shared with texts) the features are first projected
    and scaled to unit length; with `unit` (SigLIP's) they are only scaled.
    """

    kernel: Float[Array, "*tasks inputs classes"]
    bias: Float[Array, "*tasks classes"]
    projection: Float[Array, "*tasks width inputs"] | None = None
    unit: bool = False

    def __call__(self, features: Float[Array, "batch width"]) -> Float[Array, "batch classes"]:
        """Return the logits of one task's head."""
        if self.projection is not None:
            features = unit_length(features @ self.projection)
        elif self.unit:
            features = unit_length(features)
        return features @ self.kernel + self.bias


def unit_length(vectors: Float[Array, "*batch inputs"]) -> Float[Array, "*batch inputs"]:
    """Return vectors scaled to length one, along the last axis."""
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def lda_head(
    features: Float[np.ndarray, "n width"], labels: Int[np.ndarray, " n"], classes: int
) -> Head:
    """Return the head of shrinkage linear discriminant analysis, in closed form.

    For backbones without a text tower: class covariances shrunk by Ledoit and Wolf's rule, and
    empirical priors. Its logits are log posteriors up to a constant per sample.

    **Raises:** `InputError` if a class has no sample, if every class has only one, or if features
    are not finite.

    Reference: Ledoit and Wolf, "Honey, I Shrunk the Sample Covariance Matrix", 2004.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    _require_samples(features, labels, classes)
    if len(labels) == classes:
        raise InputError(
            f"a head of {classes} classes needs more than {classes} samples: "
            "one per class leaves no covariance."
        )
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    with warnings.catch_warnings():
        # A class of one sample has covariance zero, which shrinkage handles.
        warnings.simplefilter("ignore", category=UserWarning)
        lda.fit(features.astype(np.float64), labels)
    return _linear(lda.coef_.T, lda.intercept_, classes)


def probe_head(
    features: Float[np.ndarray, "n width"],
    labels: Int[np.ndarray, " n"],
    classes: int,
    *,
    strength: float = 1.0,
) -> Head:
    """Return a linear probe: multinomial logistic regression with an L2 penalty, by L-BFGS.

    Features are centred and scaled by one number for all, so that their variance is 1 on average
    and `strength`, the inverse of the penalty, means the same for every model. Deterministic.

    **Raises:** `InputError` if a class has no sample, or if features are not finite.
    """
    from sklearn.linear_model import LogisticRegression

    _require_samples(features, labels, classes)
    width = features.shape[1]
    if classes == 1:
        return _linear(np.zeros((width, 1)), np.zeros(1), 1)
    exact = features.astype(np.float64)
    mean = exact.mean(axis=0)
    spread = float(np.sqrt(np.mean(np.square(exact - mean)))) or 1.0
    probe = LogisticRegression(C=strength, max_iter=2000, tol=1e-6)
    probe.fit((exact - mean) / spread, labels)
    kernel = probe.coef_.T / spread
    return _linear(kernel, probe.intercept_ - mean @ kernel, classes)


def _require_samples(
    features: Float[np.ndarray, "n width"], labels: Int[np.ndarray, " n"], classes: int
) -> None:
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or not counts.all():
        empty = np.flatnonzero(counts == 0).tolist()
        raise InputError(
            f"a head of {classes} classes needs at least one sample of each; "
            f"classes without: {empty}; largest label: {labels.max(initial=-1)}."
        )
    if not np.isfinite(features).all():
        raise InputError("the backbone's features are not finite: are the weights whole?")


def _linear(
    kernel: Float[np.ndarray, "width some"], bias: Float[np.ndarray, " some"], classes: int
) -> Head:
    """Return scikit-learn's linear classifier as a head."""
    if classes == 2:  # scikit-learn keeps only the difference of the two classes
        kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
        bias = np.concatenate([np.zeros_like(bias), bias])
    return Head(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))


def stack_heads(heads: list[Head]) -> Head:
    """Stack heads of different class counts, padded with classes that are never chosen.

    **Returns:** a head with leaves (tasks, width, most classes) and (tasks, most classes).
    """
    most = max(head.bias.shape[0] for head in heads)

    def pad(head: Head) -> Head:
        missing = most - head.bias.shape[0]
        return Head(
            jnp.pad(head.kernel, ((0, 0), (0, missing))),
            jnp.pad(head.bias, (0, missing), constant_values=PADDED_LOGIT),
            head.projection,
            head.unit,
        )

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[pad(head) for head in heads])


def logits_by_task(
    heads: Head, features: Float[Array, "batch width"], task: Int[Array, " batch"]
) -> Float[Array, "batch classes"]:
    """Return the logits of a batch whose samples belong to different tasks of stacked heads.

    Every head is applied to every sample and the right one is selected: gathering one kernel per
    sample would move far more memory.
    """
    if heads.projection is None:
        features = unit_length(features) if heads.unit else features
        logits = jnp.einsum("bw,twc->btc", features, heads.kernel)
    else:
        inputs = unit_length(jnp.einsum("bw,twi->bti", features, heads.projection))
        logits = jnp.einsum("bti,tic->btc", inputs, heads.kernel)
    logits = logits + heads.bias
    return jnp.take_along_axis(logits, task[:, None, None], axis=1)[:, 0]
