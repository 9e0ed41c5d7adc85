"""The Hugging Face hub as a source, through `datasets` (extra `hub`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, first_line, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.registry import HubSet, TaskFacts, task_facts
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.contents import examples_hash, file_hashes
from rmtllmf_jax.data.tasks import TASK_NAMES


@dataclass(frozen=True)
class HubSource:
    """The `Source` over the registry's data sets, downloaded once into the cache of `datasets`.

    `cache_dir` replaces the default cache of `datasets`, `revision` is a commit, tag or branch of
    every set, `facts` says where a task is (an id of the hub, or a folder with its layout).

    **Raises:** every method raises `InputError` that names the data set: if its id, configuration,
    split or column does not exist, if it is gated or private, if the hub cannot be reached and the
    cache does not have it, or if the extra is not installed.
    """

    cache_dir: Path | None = None
    revision: str | None = None
    facts: Callable[[str], TaskFacts] = task_facts
    _loaded: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)

    def tasks(self) -> tuple[str, ...]:
        """Return the eight tasks of the registry."""
        return TASK_NAMES

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the set's own class names, or the registry's if the set only has numbers.

        **Raises:** `InputError` also if their number is not the registry's.
        """
        loaded, known = self._load(task, "train"), self.facts(task)
        names = getattr(loaded.features["label"], "names", None)  # of a `ClassLabel`
        if names is None:
            return known.dataset_classes
        if len(names) != len(known.dataset_classes):
            raise InputError(
                f"{known.hub.id}: column 'label' has {len(names)} classes, task {task!r} has "
                f"{len(known.dataset_classes)}. Is it another set or revision?"
            )
        return tuple(names)

    def size(self, task: str, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self._load(task, split))

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the split's rows, as `datasets` keeps them on disk, and their columns.

        It depends on every byte of images and labels, not on commit, path or process. Another
        version of `datasets` may store the same rows differently: they are then decoded again.
        """
        import pyarrow.compute as pc

        loaded, doing = self._load(task, split), f"hashing {task} {split}"
        stored = [pc.struct_field(part, "bytes") for part in loaded.data.column("image").chunks]
        files = [Path(file["filename"]) for file in loaded.cache_files]
        columns = {"image": "image", "label": "label"}
        if files and not any(part.null_count for part in stored):
            try:
                return content_hash({**columns, "files": file_hashes(files, doing)})
            except OSError as error:
                raise InputError(f"{error.filename}: cannot be read ({error}).") from error
        rows = examples_hash(self.examples(task, split), len(loaded), doing)
        return content_hash({**columns, "rows": rows})

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the rows; images are files as stored, not decoded."""
        name = self.facts(task).hub.id
        for row, item in enumerate(self._load(task, split)):
            image, label = item["image"] or {}, item["label"]
            data, path = image.get("bytes"), image.get("path")
            origin = f"{name}: {split} row {row}" + (f" ({path})" if path else "")
            if label is None:
                raise InputError(f"{origin}: column 'label' is null.")
            if data is None:
                if path is None:
                    raise InputError(f"{origin}: column 'image' holds no image.")
                try:
                    data = Path(path).read_bytes()
                except OSError as error:
                    text = f"{origin}: the image file cannot be read ({error})."
                    raise InputError(text) from error
            yield Example(data, label, origin)

    def _load(self, task: str, split: str) -> Any:
        """Return the two columns of a split as a `datasets.Dataset` with undecoded images."""
        require_known("task", task, TASK_NAMES)
        require_known("split", split, SPLITS)
        if (task, split) not in self._loaded:
            self._loaded[task, split] = self._read(self.facts(task).hub, split)
        return self._loaded[task, split]

    def _read(self, hub: HubSet, split: str) -> Any:
        loaded = load_rows(hub.id, hub.config, split, self.revision, self.cache_dir)
        import datasets

        for column in ("image", "label"):
            if column not in loaded.column_names:
                listed = ", ".join(loaded.column_names)
                raise InputError(f"{hub.id}: no column {column!r}; it has {listed}.")
        image, label = loaded.features["image"], loaded.features["label"]
        if not isinstance(image, datasets.Image) and getattr(image, "dtype", "") != "binary":
            raise InputError(f"{hub.id}: column 'image' must hold images, got {image}.")
        if not isinstance(label, datasets.ClassLabel) and "int" not in getattr(label, "dtype", ""):
            raise InputError(f"{hub.id}: column 'label' must hold integers, got {label}.")
        kept = loaded.select_columns(["image", "label"])
        return kept.cast_column("image", datasets.Image(decode=False))


def load_rows(
    name: str,
    config: str | None,
    split: str,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Any:
    """Return a split of a data set of the hub as a `datasets.Dataset`.

    **Raises:** `InputError` that names the data set and says what is wrong, see `HubSource`.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{name}: the source 'hub' needs the package datasets ({error}). "
            "Install it: pip install 'rmtllmf-jax[hub]'."
        ) from error
    try:
        with _quiet_unless_terminal():
            return datasets.load_dataset(
                name,
                config,
                split=split,
                cache_dir=None if cache_dir is None else str(cache_dir),
                revision=revision,
            )
    except Exception as error:  # its own types, and those of httpx, pyarrow and the hub
        raise InputError(f"{name}: {_explained(error, revision)}") from error


def in_cache(hub: HubSet, cache_dir: Path | None = None) -> bool:
    """Return whether the cache of `datasets` holds a prepared set, so that no network is needed.

    `cache_dir` replaces the default cache of `datasets`, which is found without importing it.
    """
    if cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
        home = Path(os.environ.get("HF_HOME", home), "datasets")
        cache_dir = Path(os.environ.get("HF_DATASETS_CACHE", home)).expanduser()
    folder = cache_dir / hub.id.replace("/", "___")
    return any(folder.glob(f"{hub.config or '*'}/*/*/dataset_info.json"))


def _explained(error: Exception, revision: str | None) -> str:
    """Return what happened and what to do about an error of `datasets.load_dataset`."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub import errors

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)

    def among(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    said = first_line(error)
    if among(errors.GatedRepoError) or "gated dataset" in str(error):
        return (
            "gated; its owner gives access to registered users only. Accept the terms on the "
            "set's page on the Hugging Face hub, then log in with `hf auth login` or HF_TOKEN."
        )
    # The hub's HTTP library has had two names (httpx, httpx2): match its errors by class name.
    transport = "TransportError" in {kind.__name__ for kind in type(error).__mro__}
    unreachable = (ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)
    if transport or isinstance(error, unreachable):
        settings = [x for x in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(x)]
        why = f"{settings[0]} is set" if settings else "no connection"
        return (
            f"neither in the cache of `datasets` nor to be reached on the Hugging Face hub ({why})."
            " Download it where there is a connection and copy that cache, or copy the set's "
            "parquet files and use --source folder."
        )
    if among(errors.RevisionNotFoundError):
        return f"has no revision {revision!r} on the Hugging Face hub."
    missing = (DatasetNotFoundError, FileNotFoundError)
    if among(errors.RepositoryNotFoundError) or isinstance(error, missing):
        return (
            "no such data set on the Hugging Face hub, or a private one. Check the id; for a "
            f"private one log in with `hf auth login` ({said})."
        )
    if isinstance(error, DatasetGenerationError):
        return (
            f"its files cannot be read ({first_line(causes[-1])}). Delete them from the cache and "
            "download them again."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hugging Face hub refused ({said})."
    return f"cannot be loaded ({said})."


@contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """Hide the progress bars of `datasets` and the hub unless standard error is a terminal."""
    import datasets.utils
    import huggingface_hub.utils

    with ExitStack() as shown_again:
        for library in (datasets.utils, huggingface_hub.utils):
            if not sys.stderr.isatty() and not library.are_progress_bars_disabled():
                library.disable_progress_bars()
                shown_again.callback(library.enable_progress_bars)
        yield
