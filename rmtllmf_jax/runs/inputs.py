"""The inputs of a sweep or an objective: base model, task vectors, heads and samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Array, Float, PyTree

from rmtllmf_jax import fusion
from rmtllmf_jax.data.samples import Task
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shared import SharedModel


@dataclass(frozen=True)
class SweepInputs:
    """Arrays of a sweep; task q of `tasks` is the user q of every channel draw."""

    tasks: tuple[str, ...]
    model: SharedModel
    base: PyTree
    vectors: PyTree[Float[Array, "users ..."]]
    heads: Head | None
    """Stacked over the users; `None` of texts."""
    data: tuple[Task, ...]
    fingerprint: dict[str, object]
    """Hashes of the contents that the results depend on."""
    statistics: Path | None = None
    """Folder of what `rmtllmf statistics` measured."""

    def finetuned(self, user: int) -> PyTree:
        """Return one user's fine-tuned parameters."""
        return fusion.add_to_base(self.base, fusion.unstack(self.vectors)[user], 1.0)
