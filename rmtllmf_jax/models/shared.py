"""What tasks share: a model without its parameters, of images or of texts."""

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

    `Backbone` is one of images, whose tasks have a head each, and `Decoder` one of texts, whose
    tasks have none.
    """

    def __hash__(self) -> int:
        """Return the same for models that compute the same."""
        ...

    @property
    def width(self) -> int:
        """Length of a feature."""
        ...

    def prepared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a batch, arrays of any kind, as `outputs` takes them.

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

        - `head`: the task's; where `inputs["task"]` says whose each sample is, those of all tasks,
          stacked. `None` of texts.
        """
        ...


def images_only(model: Any, what: str) -> Backbone:
    """Return a model of images.

    **Raises:** `InputError` that says what is for images alone.
    """
    from rmtllmf_jax.models.decoder import Decoder  # which needs flax

    if isinstance(model, Decoder):
        raise InputError(f"{what}: for models of images; this run's is a language model.")
    found: Backbone = model
    return found
