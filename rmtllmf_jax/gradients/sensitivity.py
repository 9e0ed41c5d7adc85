"""Where the noise hurts: the derivative of the score by user and leaf, and where to protect."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rmtllmf_jax import fusion
from rmtllmf_jax.gradients.estimators import Estimate, pathwise
from rmtllmf_jax.gradients.objective import Objective
from rmtllmf_jax.gradients.parameters import Parameters


@dataclass(frozen=True)
class Sensitivity:
    """``d score / d log mu`` of every task's user and leaf: negative where less noise helps.

    The sum over users and leaves is the change of the score when all MSEs grow by one per cent,
    times a hundred. Divide a user's entries by mu_q for ``d score / d mu_q``.
    """

    mean: Float[np.ndarray, "tasks leaves"]
    error: Float[np.ndarray, "tasks leaves"]
    """Standard error over draws."""
    leaves: tuple[str, ...]
    sizes: tuple[int, ...]
    """Parameters of each leaf."""

    def by_layer(
        self, granularity: fusion.Granularity = "block"
    ) -> dict[str, Float[np.ndarray, " tasks"]]:
        """Return the sums over the leaves of each layer, see `fusion.layer_of`."""
        groups = fusion.group_by_layer(self.leaves, granularity)
        places = {leaf: place for place, leaf in enumerate(self.leaves)}
        return {
            layer: self.mean[:, [places[leaf] for leaf in leaves]].sum(axis=1)
            for layer, leaves in groups.items()
        }

    def ranked(self) -> list[tuple[str, float]]:
        """Return the leaves by the gain from perfect transmission of one parameter, best first.

        First order: minus the sum over users, over the leaf's number of parameters.
        """
        gains = -self.mean.sum(axis=0) / np.array(self.sizes)
        order = np.argsort(-gains, kind="stable")
        return [(self.leaves[place], float(gains[place])) for place in order]


def sensitivity(
    objective: Objective, keys: Key[Array, " draws"], parameters: Parameters | None = None
) -> Sensitivity:
    """Return the sensitivity map, averaged over keys (each a draw of channel and noise).

    **Arguments:**

    - `parameters`: where to evaluate it; by default at the preset's own numbers.
    """
    leaves = fusion.leaves_by_path(objective.vectors)
    tasks = fusion.stack_size(objective.vectors)
    here = parameters or Parameters()
    ones = jnp.ones((tasks, len(leaves)), objective.kappa.dtype)
    found = _compiled(objective, here, ones, keys)
    mean, error = (np.asarray(part.mse_factor, float) for part in found)
    sizes = tuple(int(leaf[0].size) for leaf in leaves.values())
    return Sensitivity(mean, error, tuple(leaves), sizes)


@jax.jit
def _compiled(
    objective: Objective,
    parameters: Parameters,
    ones: Float[Array, "tasks leaves"],
    keys: Key[Array, " draws"],
) -> Estimate:
    return pathwise(objective, replace(parameters, mse_factor=ones), keys)
