"""How models are trained: frozen dataclasses, and the optimiser that they describe."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from rmtllmf_jax.common.errors import InputError, require_at_least, require_non_negative

if TYPE_CHECKING:  # the command line reads these defaults without loading jax
    import optax


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up, cosine decay to zero and clipping by the global norm.

    With `weight_decay` 0 it is Adam. Steps are those of `torch.optim.AdamW` to rounding (checked
    in tests/parity/test_optimiser.py): betas .9 and .999, eps 1e-8 outside the root, and a decay
    that is multiplied by the learning rate of the step. Two things differ from common torch code:
    `torch.nn.utils.clip_grad_norm_` adds 1e-6 to the norm that it divides by, and open_clip's
    warm-up is one step ahead (its first step has 1 / warm-up of the peak, ours has 0).
    """

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Images per step."""
    learning_rate: float
    """Peak learning rate, reached after the warm-up."""
    weight_decay: float
    """Decoupled weight decay, on all parameters."""
    warmup: float = 0.1
    """Fraction of the steps spent warming up; 0 starts at the peak."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; `None` does not clip."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least("steps", self.steps, 1)
        require_at_least("batch size", self.batch_size, 1, 2**20)
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value is not None or field.name != "clip_norm":
                require_non_negative(field.name.replace("_", " "), value)
        if self.warmup > 1:
            raise InputError(f"warmup is a share of the steps, at most 1, got {self.warmup!r}.")

    @property
    def warmup_steps(self) -> int:
        """Number of warm-up steps: optax needs at least one step of decay after them."""
        return min(math.ceil(self.warmup * self.steps), self.steps - 1)

    def schedule(self) -> optax.Schedule:
        """Return the learning rate as a function of the step, which counts from 0."""
        import optax

        return optax.warmup_cosine_decay_schedule(
            0.0 if self.warmup_steps else self.learning_rate,
            self.learning_rate,
            self.warmup_steps,
            self.steps,
        )

    def optimiser(self) -> optax.GradientTransformation:
        """Return the optax transformation."""
        import optax

        adamw = optax.adamw(self.schedule(), weight_decay=self.weight_decay)
        if self.clip_norm is None:
            return adamw
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)


FINETUNE = Recipe(steps=200, batch_size=64, learning_rate=3e-4, weight_decay=0.1)
"""Fine-tuning of a ViT-Ti/16 at 64 pixels on a CPU."""

REALIGN = Recipe(steps=60, batch_size=32, learning_rate=1e-4, weight_decay=0.0)
"""Realignment of a merged ViT-Ti/16 on ten shots per class.

The learning rate was chosen on validation samples (experiments/realign_choice.py).
"""
