"""The merging coefficient by the number of tasks."""

from __future__ import annotations


def power_law(tasks: int) -> float:
    """Return ``1.13 N^-0.655``, the public best merging coefficient by the number N of tasks.

    Fitted to the best coefficients of a full public sweep over combinations on CLIP ViT-B/16
    (.69 .56 .47 .40 .35 .30 for N = 2..7). Task vectors that are larger than CLIP's, fine-tuned
    at a higher learning rate, want a smaller one: choose it on validation data.
    """
    return 1.13 * tasks**-0.655
