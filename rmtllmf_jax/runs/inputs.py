"""The inputs of a sweep or an objective: base model, task vectors, heads and samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Array, Float, PyTree

from rmtllmf_jax import fusion
from rmtllmf_jax.data.task_data import TaskData
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head


@dataclass(frozen=True)
class SweepInputs:
    """Arrays of a sweep; task q of `tasks` is the user q of every channel draw."""

    tasks: tuple[str, ...]
    backbone: Backbone
    base: PyTree
    vectors: PyTree[Float[Array, "users ..."]]
    heads: Head
    data: tuple[TaskData, ...]
    fingerprint: dict[str, object]
    """Hashes of the contents that the results depend on."""
    statistics: Path | None = None
    """Folder of what `rmtllmf statistics` measured."""

    def finetuned(self, user: int) -> PyTree:
        """Return one user's fine-tuned parameters."""
        return fusion.add_to_base(self.base, fusion.unstack(self.vectors)[user], 1.0)
