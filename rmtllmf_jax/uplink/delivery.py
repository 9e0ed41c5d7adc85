"""From task vectors sent to task vectors at the base station: transport, then estimators."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.fusion.merge import PerUser
from rmtllmf_jax.uplink.error_models import INDEPENDENT, ErrorModel
from rmtllmf_jax.uplink.gaussian import GAUSSIAN
from rmtllmf_jax.uplink.noise import transmit
from rmtllmf_jax.uplink.transports import is_surrogate, require_estimators


def deliver(
    stacked: PyTree[Float[Array, "users ..."]],
    mse: PerUser | PyTree[Array],
    kappa: PerUser,
    key: Key[Array, ""],
    transport: Any = GAUSSIAN,
    estimators: tuple[Any, ...] = (),
    planned: Float[Array, " users"] | None = None,
    error_model: ErrorModel = INDEPENDENT,
) -> PyTree[Float[Array, "users ..."]]:
    """Return the task vectors as the base station has them; pure.

    **Arguments:**

    - `mse`: of every user, or a tree with one array of them per leaf.
    - `kappa`: noise scale of every user, for transports with Gaussian errors.
    - `transport`: one that needs the users' MSE and no channel (`Gaussian`, `Sparse`, `Coded`,
      `Adapter`).
    - `estimators`: applied in turn to what was received.
    - `planned`: the MSE that rates were chosen for; by default the actual one.
    - `error_model`: how the users' Gaussian errors are correlated; for the transport `Gaussian`.

    **Raises:** `InputError` as `transmit`, as the transport does, and as `require_estimators`.
    """
    require_estimators(transport, estimators)
    if is_surrogate(transport):
        received = transmit(stacked, mse, kappa, key, error_model)
    else:
        received = transport.deliver(stacked, mse, kappa, key, planned=planned)
    if not estimators:
        return received
    variance = transport.variance(stacked, mse, kappa)
    energy = transport.energy(stacked)
    of_users = mse if jax.tree_util.all_leaves([mse]) else _mean_over_leaves(mse, stacked)
    for estimator in estimators:
        received = estimator(received, variance, energy, of_users)
    return received


def _mean_over_leaves(mse: PyTree[Array], stacked: PyTree[Array]) -> Float[Array, " users"]:
    sizes = [leaf.size for leaf in jax.tree.leaves(stacked)]
    total = sum(size * each for size, each in zip(sizes, jax.tree.leaves(mse), strict=True))
    return total / sum(sizes)
