"""The hypothesis test (9)-(12): does noise in the parameters show in the logits?

For one sample, z_k is the logit k of the merged model without noise, and z'_k with it:
``theta' = theta + dtheta``, where dtheta has independent Gaussian entries of standard deviation
`noise_std`, a scalar or one per leaf of the parameters (of an uplink: `ErrorModel.std_of_sum` with
the scale as every weight). The statistic is ``R = z_k / z'_k`` (9), and to first order
``R - 1 = -(J_k dtheta) / z_k``, a Gaussian with

    Var[R - 1] = sum_l noise_std_l^2 ||J_k,l||^2 / z_k^2                           (11)

with J_k the gradient of z_k (`logit_jacobian_norms`) and l the leaf. H0, that this logit was moved
only by such noise, is rejected at confidence beta if ``|R - 1| > T`` with
``T = z_beta sqrt(Var[R - 1])`` (12), where z_beta is the *two-sided* Gaussian quantile. T for the
actual noise is exceeded in a fraction 1 - beta of cases, if the theory holds; T for a reference,
such as an uplink without attack, gives the test's power to detect stronger noise.

As z' has a density at zero, no moment of R exists. So spreads are also given by quantiles
(`robust_std`), and for the change ``z'/z - 1``, which has the same first-order variance and no
pole. docs/hypothesis.md says where the paper differs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.evaluation.logit_jacobian import Sensitivity, noise_by_leaf, top_two
from rmtllmf_jax.fusion import leaf_path, leaves_by_path
from rmtllmf_jax.fusion.trees import as_type_of, widened
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head

_GROUPS = 8
_ONE_SIGMA = (NormalDist().cdf(-1), NormalDist().cdf(1))


def ratio_std(sensitivity: Sensitivity, noise_std: PyTree) -> Float[Array, "*shape"]:
    """Return the standard deviation of R - 1 to first order, the root of (11).

    Infinite for a logit of exactly zero, whose ratio is meaningless.
    """
    return sensitivity.std(noise_std) / jnp.abs(sensitivity.values)


def threshold(std: Float[Array, "*shape"], confidence: float) -> Float[Array, "*shape"]:
    """Return T of (12): ``z_beta std`` with ``P(|Z| <= z_beta) = beta``, the `confidence`.

    **Raises:** `InputError` if the confidence is not between 0 and 1.
    """
    return two_sided_quantile(confidence) * std


def two_sided_quantile(confidence: float) -> float:
    """Return z_beta with ``P(|Z| <= z_beta) = beta`` for a standard Gaussian Z.

    **Raises:** `InputError` if the confidence is not between 0 and 1.

    >>> round(two_sided_quantile(0.95), 3)
    1.96
    """
    if not 0 < confidence < 1:
        raise InputError(f"the confidence must be above 0 and below 1, got {confidence!r}.")
    return -NormalDist().inv_cdf((1 - confidence) / 2)


def rejection_rate(
    limit: Float[Array, "*#shape"] | float, std: Float[Array, "*#shape"]
) -> Float[Array, "*#shape"]:
    """Return ``P(|R - 1| > limit) = 2 Q(limit / std)``, with R - 1 Gaussian as in (11).

    The `limit` is a threshold T or a tolerance. Without noise nothing is rejected.
    """
    return jnp.where(std > 0, 2 * norm.sf(limit / _not_zero(std)), 0.0)


def ratio_rejection_rate(
    limit: Float[Array, "*#shape"] | float, std: Float[Array, "*#shape"]
) -> Float[Array, "*#shape"]:
    """Return ``P(|R - 1| > limit)`` of a logit that is *linear* in the parameters, exactly.

    Then ``R = 1 / (1 + x)`` with x Gaussian of the same `std`; with the limit T, ``a = T / ((1 + T)
    std)`` and ``b = T / (|1 - T| std)``, the rate is ``Q(a) + sign(1 - T) Q(b)``. Compared with
    `rejection_rate` it separates the effect of the ratio from that of the model's curvature.
    """
    limit, spread = jnp.asarray(limit), _not_zero(std)
    below = norm.sf(limit / ((1 + limit) * spread))
    gap = jnp.abs(1 - limit)
    above = norm.sf(jnp.where(gap > 0, limit / _not_zero(gap), jnp.inf) / spread)
    return jnp.where(std > 0, below + jnp.sign(1 - limit) * above, 0.0)


def flip_probability(
    margin: Float[Array, "*shape"], std: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return ``Q(m / sd)``, the chance that the second class overtakes the first.

    `margin` m and its first-order standard deviation are those of `margin_jacobian_norms`. The
    decision changes at least as often: other classes may overtake as well.
    """
    return jnp.where(std > 0, norm.sf(margin / _not_zero(std)), 0.0)


@partial(jax.jit, static_argnames="backbone")
def disturbed_logits(
    params: PyTree,
    heads: Head,
    task: Int[Array, ""],
    batch: Batch,
    noise_std: PyTree,
    keys: Key[Array, " draws"],
    *,
    backbone: Backbone,
) -> Float[Array, "draws levels batch classes"]:
    """Return the logits of disturbed models: Monte Carlo on the model itself.

    **Arguments:**

    - `noise_std`: an array of levels for all leaves, or one such array per leaf (`noise_by_leaf`).
    - `keys`: one per draw. All levels scale the same Gaussians (common random numbers), those of
      `uplink.noise_of_sum` for the same key.
    """
    head = jax.tree.map(lambda leaf: leaf[task], heads)
    levels = noise_by_leaf(noise_std, leaves_by_path(params))

    def draw(key: Array) -> Array:
        def gaussian(path: tuple, leaf: Array) -> Array:
            own = jax.random.fold_in(key, zlib.crc32(leaf_path(path).encode()))
            return jax.random.normal(own, leaf.shape, widened(leaf).dtype)

        noise = jax.tree_util.tree_map_with_path(gaussian, params)

        def at(std: dict[str, Array]) -> Array:
            def move(path: tuple, leaf: Array, z: Array) -> Array:
                return as_type_of(leaf, widened(leaf) + std[leaf_path(path)].astype(z.dtype) * z)

            moved = jax.tree_util.tree_map_with_path(move, params, noise)
            return head(backbone.features(moved, batch.inputs["images"]))

        return jax.lax.map(at, levels)

    return jax.lax.map(draw, keys)


@dataclass(frozen=True)
class Spread:
    """Monte Carlo over theory, 1 where the first order holds; draws and logits are pooled."""

    std: float
    """Root mean square of the deviation over the predicted standard deviation."""
    robust: float
    """The same by quantiles, see `robust_std`: insensitive to heavy tails."""
    error: float
    """Standard error of `robust` over draws, from groups of them; NaN below 16 draws."""


@dataclass(frozen=True)
class Rate:
    """The frequency of an event, predicted and counted."""

    predicted: float
    """To first order; mean over the counted cases."""
    measured: float
    error: float
    """Standard error of `measured` over draws, which all samples share; NaN for one draw."""


def robust_std(values: Float[np.ndarray, "..."], axis: int | None = None) -> np.ndarray:
    """Return half the width of the central 68.27 %: for a Gaussian the standard deviation."""
    # Nearest: one cannot interpolate towards the infinite ratio of a zero logit.
    low, high = np.quantile(values, _ONE_SIGMA, axis=axis, method="nearest")
    return np.asarray((high - low) / 2)


def ratios(
    sensitivity: Sensitivity, disturbed: Float[Array, "draws batch classes"]
) -> Float[np.ndarray, "draws logits"]:
    """Return R = z / z' (9) of the counted logits, one column per sample and class."""
    values, moved = _counted(sensitivity, disturbed)
    with np.errstate(divide="ignore", invalid="ignore"):
        return values / moved


def ratio_spread(
    sensitivity: Sensitivity, noise_std: PyTree, disturbed: Float[Array, "draws batch classes"]
) -> tuple[Spread, Spread]:
    """Compare R - 1, and the change z'/z - 1, with the standard deviation of (11)."""
    values, moved = _counted(sensitivity, disturbed)
    std = _at_counted(sensitivity, sensitivity.std(noise_std))
    # The relative change over its std: z, which may be zero, cancels.
    deviation = (ratios(sensitivity, disturbed) - 1) * np.abs(values)
    return _spread(deviation, std), _spread(moved - values, std)


def rejections(
    sensitivity: Sensitivity,
    noise_std: PyTree,
    disturbed: Float[Array, "draws batch classes"],
    limit: Float[Array, "batch classes"] | float,
) -> tuple[Rate, float]:
    """Compare the rate of ``|R - 1| > limit`` with `rejection_rate`.

    **Returns:** the rate, and the prediction of `ratio_rejection_rate` in place of the first order.
    """
    std = ratio_std(sensitivity, noise_std)
    limits = _at_counted(sensitivity, jnp.broadcast_to(jnp.asarray(limit), std.shape))
    rejected = ~(np.abs(ratios(sensitivity, disturbed) - 1) <= limits)
    exact = _at_counted(sensitivity, ratio_rejection_rate(limit, std)).mean()
    predicted = _at_counted(sensitivity, rejection_rate(limit, std)).mean()
    return _rate(float(predicted), rejected), float(exact)


def margin_spread(
    margin: Sensitivity,
    noise_std: PyTree,
    logits: Float[Array, "batch classes"],
    disturbed: Float[Array, "draws batch classes"],
) -> Spread:
    """Compare the change of the margin with its first-order standard deviation.

    `logits` are the undisturbed model's; `margin` is between their two largest.
    """
    change = _margins(logits, disturbed) - np.asarray(margin.values, np.float64)
    std = np.asarray(margin.std(noise_std), np.float64)
    keep = np.asarray(margin.counted)
    return _spread(change[:, keep], std[keep])


def flips(
    margin: Sensitivity,
    noise_std: PyTree,
    logits: Float[Array, "batch classes"],
    disturbed: Float[Array, "draws batch classes"],
) -> tuple[Rate, Rate]:
    """Compare counted flips with `flip_probability`.

    **Returns:** how often the second class overtakes the first, which the theory predicts; and how
    often the decision changes to any class.
    """
    chance = flip_probability(margin.values, margin.std(noise_std))
    predicted = float(_at_counted(margin, chance).mean())
    keep = np.asarray(margin.counted)
    overtaken = _margins(logits, disturbed)[:, keep] < 0
    changed = np.argmax(np.asarray(disturbed), -1) != np.argmax(np.asarray(logits), -1)
    return _rate(predicted, overtaken), _rate(predicted, changed[:, keep])


def _margins(
    logits: Float[Array, "batch classes"], disturbed: Float[Array, "draws batch classes"]
) -> Float[np.ndarray, "draws batch"]:
    moved = np.asarray(disturbed, np.float64)
    best, rival = (
        np.take_along_axis(moved, np.asarray(place)[None, :, None], axis=-1)[..., 0]
        for place in top_two(jnp.asarray(logits))
    )
    return best - rival


def _counted(sensitivity: Sensitivity, disturbed: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the counted values and disturbed values, in double precision."""
    moved = np.asarray(disturbed, np.float64)[..., np.asarray(sensitivity.counted)]
    return _at_counted(sensitivity, sensitivity.values), moved


def _at_counted(sensitivity: Sensitivity, values: Array) -> np.ndarray:
    keep = np.asarray(sensitivity.counted)
    if not keep.any():
        raise InputError("nothing counts: the batch is padding, or no logit or margin can move.")
    return np.asarray(values, np.float64)[keep]


def _spread(deviation: Float[np.ndarray, "draws n"], std: Float[np.ndarray, " n"]) -> Spread:
    if not (std > 0).all():
        raise InputError("a number that no noise moves has no spread to compare: noise_std is 0?")
    scaled = deviation / std
    error = np.nan
    if len(scaled) >= 2 * _GROUPS:
        # All logits of a draw share its noise: only draws are independent.
        parts = [robust_std(part) for part in np.array_split(scaled, _GROUPS)]
        error = np.std(parts, ddof=1) / np.sqrt(_GROUPS)
    rms = np.sqrt(np.mean(np.square(scaled)))
    return Spread(float(rms), float(robust_std(scaled)), float(error))


def _rate(predicted: float, happened: np.ndarray) -> Rate:
    by_draw = happened.mean(axis=1)
    error = by_draw.std(ddof=1) / np.sqrt(len(by_draw)) if len(by_draw) > 1 else np.nan
    return Rate(predicted, float(by_draw.mean()), float(error))


def _not_zero(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.where(x > 0, x, 1.0)
