"""Which samples a step sees: a pure function of seed and step, so that runs resume exactly."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def epoch_batch(
    count: int, batch_size: int, step: int, *seed: int
) -> Int[np.ndarray, " batch_size"]:
    """Return the indices of one step's batch out of `count` samples.

    Every epoch is a fresh permutation keyed by the seed and the epoch; batches continue across the
    end of an epoch, so that all have the same size.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = positions // count, positions % count
    batch = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([*seed, int(epoch)]).permutation(count)
        batch[epochs == epoch] = order[places[epochs == epoch]]
    return batch


def balanced_batches(
    groups: list[Int[np.ndarray, " ..."]], steps: int, batch_size: int, seed: int
) -> Int[np.ndarray, "steps batch_size"]:
    """Return batches in which the groups (the tasks of a combination) take turns sample by sample.

    A task with 196 classes thus weighs no more than one with ten. Within a group, samples come in
    shuffled epochs.
    """
    turns = np.arange(steps * batch_size) % len(groups)
    batches = np.empty(steps * batch_size, dtype=np.int64)
    for index, group in enumerate(groups):
        mine = np.flatnonzero(turns == index)
        if len(mine):
            batches[mine] = group[epoch_batch(len(group), len(mine), 0, seed, index)]
    return batches.reshape(steps, batch_size)
