"""The models that come with the project, by name: no download, no hub."""

from __future__ import annotations

from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known

EMBEDDED_MODELS = ("clip-mini",)
"""Names that `--model` takes besides directories and hub ids. See the model card beside each."""


def embedded_directory(name: str = "clip-mini") -> Path:
    """Return the Hugging Face directory of an embedded model.

    It is in the package if that was installed, otherwise in `checkpoints/` of the repository.

    **Raises:** `InputError` for an unknown name, or if neither folder exists.
    """
    require_known("embedded model", name, EMBEDDED_MODELS)
    package = Path(__file__).parents[1]
    places = [root / "checkpoints" / name for root in (package, package.parent)]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise InputError(
        f"the embedded model {name} is neither in {places[0]} nor in {places[1]}: install the "
        "package again, or name a directory."
    )
