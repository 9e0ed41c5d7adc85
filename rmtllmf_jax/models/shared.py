"""What tasks share: a model without its parameters, for images or for texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree, Shaped

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.heads import Head

if TYPE_CHECKING:
    from rmtllmf_jax.models.backbone import Backbone


@runtime_checkable
class SharedModel(Protocol):
    """A model without its parameters: static, hashable, and pure in what it computes.

    `Backbone` is for images, with one head per task, and `Decoder` for texts, without heads.
    """

    def __hash__(self) -> int:
        """Return the same value for models that compute the same."""
        ...

    @property
    def width(self) -> int:
        """Length of a feature."""
        ...

    def prepared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a batch, arrays of any kind, in the form that `outputs` takes.

        Not for compiled programs.
        """
        ...

    def outputs(
        self,
        params: PyTree,
        head: Head | None,
        inputs: Mapping[str, Shaped[Array, "batch ..."]],
    ) -> Float[Array, "batch *tokens classes"]:
        """Return the logits of a batch.

        **Arguments:**

        - `head`: that of the task; if `inputs["task"]` gives the task of each sample, those of all
          tasks, stacked. `None` for texts.
        """
        ...


def images_only(model: Any, what: str) -> Backbone:
    """Return an image model.

    **Raises:** `InputError` that says what works only for images.
    """
    from rmtllmf_jax.models.decoder import Decoder  # which needs flax

    if isinstance(model, Decoder):
        raise InputError(f"{what}: for models of images; this run's is a language model.")
    found: Backbone = model
    return found
