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
    """AdamW with linear warm-up, cosine decay to zero and clipping by the global norm."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Images a step."""
    learning_rate: float
    """Peak learning rate, reached after the warm-up."""
    weight_decay: float
    """Decoupled weight decay, on all parameters."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train a model."""
        require_at_least("steps", self.steps, 1)
        require_at_least("batch size", self.batch_size, 1)
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            require_non_negative(field.name.replace("_", " "), value)
        if self.warmup > 1:
            raise InputError(f"warmup is a share of the steps, at most 1, got {self.warmup!r}.")

    def optimiser(self) -> optax.GradientTransformation:
        """Return the optax transformation."""
        import optax

        # optax wants at least one step of decay after the warm-up.
        warmup_steps = min(math.ceil(self.warmup * self.steps), self.steps - 1)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if warmup_steps else self.learning_rate,
            self.learning_rate,
            warmup_steps,
            self.steps,
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(schedule, weight_decay=self.weight_decay),
        )


FINETUNE = Recipe(steps=200, batch_size=64, learning_rate=3e-4, weight_decay=0.1)
"""Fine-tuning of a ViT-Ti/16 at 64 pixels on a CPU."""

REALIGN = Recipe(steps=60, batch_size=32, learning_rate=1e-4, weight_decay=0.0)
"""Realignment of a merged ViT-Ti/16 on ten samples a class.

The learning rate was chosen on validation samples (experiments/realign_choice.py).
"""
