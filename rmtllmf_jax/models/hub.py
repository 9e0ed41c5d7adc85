"""Models by their Hugging Face hub id: local files first, then the network, errors explained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import require_no_adapter
from rmtllmf_jax.models.checkpoint import MSGPACK, SAFETENSORS, SHARDS, TORCH, weight_files
from rmtllmf_jax.models.embedded import EMBEDDED_MODELS, embedded_directory

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SMALL = ("*.json", "merges.txt", "vocab.txt")  # configuration, tokenizer, image processor
_SHARD = "model-*-of-*.safetensors"


def local_directory(model: str | Path, revision: str | None = None) -> Path:
    """Return the directory of a model: itself if it exists, otherwise by its name or hub id.

    A name of `EMBEDDED_MODELS` is a model that comes with the project.

    A model that is complete in the local hub cache is used without asking the network; otherwise
    the small files and one format of the weights are downloaded. `HF_HUB_OFFLINE`, `HF_HOME` and
    `HF_TOKEN` work as usual.

    **Raises:** `InputError` that says what is wrong: no such directory, a missing or gated
    repository or revision, or no network.
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
    cached = _cached(name, revision)
    return cached if cached is not None else _download(name, revision)


def in_cache(model: str, revision: str | None = None) -> bool:
    """Return whether a model can be loaded without the network."""
    here = model in EMBEDDED_MODELS or Path(model).expanduser().is_dir()
    return here or _cached(model, revision) is not None


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, HFValidationError, InputError):
        return None
    return folder if (folder / "config.json").is_file() else None


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with explained(name, revision):
        files = HfApi().list_repo_files(name, revision=revision)
        wanted = [*_SMALL, *_weights(name, files)]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def _weights(name: str, files: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns of a repository's first format, in the order of `FORMATS`."""
    there = set(files)
    require_no_adapter(name, sorted(there))
    for first, patterns in (
        (SAFETENSORS, (SAFETENSORS,)),
        (SHARDS, (SHARDS, _SHARD)),
        (MSGPACK, (MSGPACK,)),
        (TORCH, (TORCH,)),
    ):
        if first in there:
            return patterns
    raise InputError(
        f"{name}: the repository holds no weights that can be read; expected {SAFETENSORS}, "
        f"{SHARDS}, {MSGPACK} or {TORCH}, found {', '.join(sorted(there)) or 'no file'}."
    )


@contextmanager
def explained(name: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub's client raises into an `InputError` that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
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
    except RevisionNotFoundError as error:
        raise InputError(f"{name}: the repository has no revision {revision!r}.") from error
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
