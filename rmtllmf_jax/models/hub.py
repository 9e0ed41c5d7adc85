"""Models by their Hugging Face hub id: local files first, then the network, errors explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.fusion.files.adapters import is_adapter
from rmtllmf_jax.fusion.files.carried import WANTED
from rmtllmf_jax.fusion.files.checkpoint import INDEX, SUFFIX, require_no_adapter, shards_of
from rmtllmf_jax.fusion.files.lora import LORA_CONFIG
from rmtllmf_jax.models.checkpoint import (
    FORMATS,
    SAFETENSORS,
    SHARDS,
    TORCH_SHARDS,
    weight_files,
)
from rmtllmf_jax.models.configs import config_file

EMBEDDED_MODELS = ("clip-mini", "llama-mini")
"""Names that `--model` takes besides directories and hub ids. See the model card beside each."""

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WITH_REVISION = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_SMALL = ("*.json", "*.model", "merges.txt", "vocab.txt")  # configuration, tokenizer, processor
_SHARDED = {
    SHARDS: ("model-*-of-*.safetensors",),
    TORCH_SHARDS: ("pytorch_model-*-of-*.bin",),
}


def local_directory(model: str | Path) -> Path:
    """Return the directory of a model: itself if it exists, otherwise by its name or hub id.

    A name of `EMBEDDED_MODELS` is a model that comes with the project.

    A model that is complete in the local hub cache is used without asking the network; otherwise
    the small files and one format of the weights are downloaded. `HF_HUB_OFFLINE`, `HF_HOME` and
    `HF_TOKEN` work as usual.

    **Raises:** `InputError` that says what is wrong: no such directory, a missing or gated
    repository, or no network.
    """
    path = Path(model).expanduser()
    name = str(model)
    if name and path.is_dir():
        return path
    if name in EMBEDDED_MODELS:
        return embedded_directory(name)
    if isinstance(model, Path) or not _ID.fullmatch(name):
        raise InputError(
            f"{name}: no such directory, and not a Hugging Face hub id (owner/name); expected one "
            f"of the two, or an embedded model ({', '.join(EMBEDDED_MODELS)})."
        )
    return _cached(name) or _download(name)


def safetensors_place(model: Path) -> Path:
    """Return where a safetensors checkpoint is stored: itself if it exists, or by its hub id.

    An id may name a branch, tag or commit (``owner/name@revision``). Any layout of safetensors
    works, including shards; what is complete in the local hub cache is used without the network.

    **Raises:** `InputError` as `local_directory`, but anything that is not like an id is returned
    unchanged.
    """
    if model.expanduser().exists():
        return model
    if str(model) in EMBEDDED_MODELS:
        return embedded_directory(str(model))
    found = _WITH_REVISION.fullmatch(str(model))
    if found is None or model.name.endswith((SUFFIX, INDEX)):
        return model
    name, revision = found[1], found[2]
    return _cached_safetensors(name, revision) or _download_safetensors(name, revision)


def adapter_place(model: str) -> Path | None:
    """Return the directory of a LoRA adapter, by its path or hub id; None if it is not an adapter.

    **Raises:** `InputError` as `local_directory`, for an id that needs a request to the hub.
    """
    path = Path(model).expanduser()
    if path.exists() or in_cache(model) or not _ID.fullmatch(model):
        return path if is_adapter(path) else None
    found = _cached_safetensors(model, None)
    if found is None:
        from huggingface_hub import HfApi

        with _explained(model):
            listed = LORA_CONFIG in HfApi().list_repo_files(model)
        found = _download_safetensors(model, None) if listed else None
    return found if found is not None and is_adapter(found) else None


def _cached_safetensors(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        for index in folder.glob(f"*{INDEX}"):
            shards_of(index)  # refuses one whose shards are not all there
    except (LocalEntryNotFoundError, HFValidationError, InputError):
        return None
    return folder if any(folder.glob(f"*{SUFFIX}")) else None


def _download_safetensors(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with _explained(name):
        there = sorted(HfApi().list_repo_files(name, revision=revision))
        beside = [file for file in there if "/" not in file and file.endswith((SUFFIX, INDEX))]
        if not beside:
            raise InputError(
                f"{name}: the repository holds no safetensors; found "
                f"{', '.join(there) or 'no file'}."
            )
        one = SAFETENSORS in beside
        weights = [SAFETENSORS] if one else beside
        wanted = [*WANTED, "README.md", *weights]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def embedded_directory(name: str = "clip-mini") -> Path:
    """Return the Hugging Face directory of an embedded model.

    It is in the package if that is installed, otherwise in `checkpoints/` of the repository.

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


def in_cache(model: str) -> bool:
    """Return whether a model can be loaded without the network."""
    here = model in EMBEDDED_MODELS or Path(model).expanduser().is_dir()
    return here or _cached(model) is not None


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, HFValidationError, InputError):
        return None
    return folder if config_file(folder).is_file() else None


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with _explained(name):
        there = sorted(HfApi().list_repo_files(name))
        require_no_adapter(name, there)
        weights = next((each for each in FORMATS if each in there), None)
        if weights is None:
            raise InputError(
                f"{name}: the repository holds no weights that can be read; expected one of "
                f"{', '.join(FORMATS)}, found {', '.join(there) or 'no file'}."
            )
        wanted = [*_SMALL, weights, *_SHARDED.get(weights, ())]
        return Path(snapshot_download(name, allow_patterns=wanted))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn errors of the hub's client into an `InputError` that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # The base of HfHubHTTPError is the HTTP client's own error, whichever client it is.
    client_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"{name}: the repository is gated; accept its terms on the hub's page, then log in "
            "(`hf auth login`, or the environment variable HF_TOKEN)."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: no such directory here, and no such repository on the Hugging Face hub (or a "
            "private one: then log in with `hf auth login`)."
        ) from error
    except HFValidationError as error:
        raise InputError(f"{name}: not a hub id ({error}).") from error
    except OfflineModeIsEnabled as error:
        raise InputError(
            f"{name}: not in the local hub cache, and HF_HUB_OFFLINE is set; download it where "
            "there is a network, or name a directory."
        ) from error
    except HfHubHTTPError as error:
        raise InputError(f"{name}: the Hugging Face hub refused ({error}).") from error
    except (LocalEntryNotFoundError, ConnectionError, client_error) as error:
        raise InputError(
            f"{name}: not in the local hub cache, and the Hugging Face hub cannot be reached "
            f"({str(error) or type(error).__name__}); check the network, or name a directory."
        ) from error
