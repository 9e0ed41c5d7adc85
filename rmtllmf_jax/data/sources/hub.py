"""The Hugging Face hub as a source, through `datasets` (extra `hub`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError, first_line, require_known
from rmtllmf_jax.common.extras import needed_by
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.reading import Column, Kind, Reading, names_in, names_of, numbered
from rmtllmf_jax.data.registry import HubSet, task_facts
from rmtllmf_jax.data.source import Example
from rmtllmf_jax.data.sources.contents import examples_hash, file_hashes
from rmtllmf_jax.data.sources.stored import StoredSource
from rmtllmf_jax.data.sources.tables import as_image, pixel_type
from rmtllmf_jax.data.tasks import REGISTERED


def registered_sets() -> Mapping[str, HubSet]:
    """Return the registry's data sets by task."""
    return {task: task_facts(task).hub for task in REGISTERED}


@dataclass(frozen=True)
class HubSource(StoredSource):
    """The `Source` over data sets of the hub, downloaded once into the cache of `datasets`.

    `sets` are their ids (or folders with the same layout) by task, by default the registry's;
    `cache_dir` replaces the default cache of `datasets`.

    **Raises:** every method raises `InputError` that names the data set: if its id, configuration,
    revision, split or column does not exist, if it is gated or private, if the hub cannot be
    reached and the cache does not have it, or if the extra is not installed.
    """

    cache_dir: Path | None = None
    sets: Mapping[str, HubSet] = field(default_factory=registered_sets)
    _loaded: dict[str, HubTask] = field(default_factory=dict, repr=False, compare=False)

    def tasks(self) -> tuple[str, ...]:
        """Return the tasks in their order."""
        return tuple(self.sets)

    def stored(self, task: str) -> HubTask:
        """Return a task as stored on the hub, downloaded at first use."""
        hub = self.sets[require_known("task", task, self.sets)]
        if task not in self._loaded:
            loaded = load_rows(hub.id, hub.config, None, hub.revision, self.cache_dir)
            self._loaded[task] = HubTask(task, hub, loaded)
        return self._loaded[task]


@dataclass(frozen=True)
class HubTask:
    """One task of a `HubSource`: `loaded` is the `DatasetDict` of all its splits."""

    task: str
    hub: HubSet
    loaded: Any
    _opened: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def place(self) -> str:
        """The id."""
        return self.hub.id

    @property
    def reading(self) -> Reading:
        """What is given about its columns and splits."""
        return self.hub.reading

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(self.loaded)

    def classes(self) -> tuple[str, ...]:
        """Return the set's own class names; the registry's, or the labels, if it has none.

        **Raises:** `InputError` also if their number is not the registry's.
        """
        train = names_in(self.reading.split("train", self.splits(), self.place))
        _, label = self._columns(train[0])
        known = task_facts(self.task).dataset_classes if self.task in REGISTERED else None
        if not self._numbered(train[0]):
            names = names_of(x for part in train for x in self.loaded[part].unique(label))
        else:
            names = getattr(self.loaded[train[0]].features[label], "names", None) or known or ()
        if known is not None and len(names) != len(known):
            raise InputError(
                f"{self.hub.id}: column {label!r} has {len(names)} classes, task {self.task!r} has "
                f"{len(known)}. Is it another set or revision? If it is meant, give the task "
                f"another name: --data NAME={self.hub.id}."
            )
        return tuple(names)

    def size(self, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self.loaded[split])

    def fingerprint(self, split: str) -> str:
        """Return a hash of the split's rows, as stored on disk by `datasets`, and their columns.

        It depends on every byte of images and labels, not on commit, path or process. Another
        version of `datasets` may store the same rows differently: they are then decoded again.
        """
        import pyarrow.compute as pc

        rows, doing = self._rows(split), f"hashing {self.task} {split}"
        image, label = self._columns(split)
        chunks = rows.data.column(image).chunks
        stored = chunks if self._pixels(split) else [pc.struct_field(x, "bytes") for x in chunks]
        files = [Path(file["filename"]) for file in rows.cache_files]
        columns = {"image": image, "label": label}
        if files and not any(part.null_count for part in stored):
            try:
                return content_hash({**columns, "files": file_hashes(files, doing)})
            except OSError as error:
                raise InputError(f"{error.filename}: cannot be read ({error}).") from error
        hashed = examples_hash(self.examples(split), len(rows), doing)
        return content_hash({**columns, "rows": hashed})

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the rows; images are files as stored, not decoded."""
        image_column, label_column = self._columns(split)
        names = None
        if not self._numbered(split):
            names = {name: label for label, name in enumerate(self.classes())}
        pixels = self._pixels(split)
        for row, item in enumerate(self._rows(split)):
            stored, label = item[image_column], item[label_column]
            path = stored.get("path") if isinstance(stored, dict) else None
            origin = f"{self.hub.id}: {split} row {row}" + (f" ({path})" if path else "")
            if label is None:
                raise InputError(f"{origin}: column {label_column!r} is null.")
            image = _image(stored, pixels, origin, image_column)
            yield Example(image, label if names is None else numbered(label, names, origin), origin)

    def _numbered(self, split: str) -> bool:
        """Return whether labels are indices of classes, not their names."""
        kind = self._there(split)[self._columns(split)[1]].kind
        return kind == "classes" or (kind == "numbers" and self.task in REGISTERED)

    def _columns(self, split: str) -> tuple[str, str]:
        return self.reading.columns(self._there(split), self.hub.id)

    def _there(self, split: str) -> dict[str, Column]:
        features = self.loaded[split].features
        return {name: Column(_kind(feature), feature) for name, feature in features.items()}

    def _pixels(self, split: str) -> Any:
        """Return the type of pixels if images are stored as arrays, `None` for files."""
        image, _ = self._columns(split)
        return pixel_type(self.loaded[split].features.arrow_schema.field(image).type)

    def _rows(self, split: str) -> Any:
        """Return the two columns of a split as a `datasets.Dataset`; files are not decoded."""
        import datasets

        if split not in self._opened:
            image, label = self._columns(split)
            kept = self.loaded[split].select_columns([image, label])
            if not self._pixels(split):
                kept = kept.cast_column(image, datasets.Image(decode=False))
            self._opened[split] = kept
        return self._opened[split]


def _image(stored: Any, pixels: Any, origin: str, column: str) -> bytes | np.ndarray:
    """Return an image file's bytes, or pixels of this type, from the entry in a column of a row."""
    if isinstance(stored, list):
        return as_image(stored, pixels, origin)
    found = stored or {}
    if (data := found.get("bytes")) is not None:
        return data
    if (path := found.get("path")) is None:
        raise InputError(f"{origin}: column {column!r} holds no image.")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{origin}: the image file cannot be read ({error}).") from error


def _kind(feature: Any) -> Kind:
    import datasets

    dtype = str(getattr(feature, "dtype", ""))
    if isinstance(feature, datasets.Image) or dtype in ("binary", "large_binary"):
        return "images"
    if isinstance(feature, (datasets.Array2D, datasets.Array3D)) and dtype in ("uint8", "uint16"):
        return "images"
    if isinstance(feature, datasets.ClassLabel):
        return "classes"
    if "int" in dtype or dtype == "bool":
        return "numbers"
    return "texts" if dtype in ("string", "large_string") else "other"


def load_rows(
    name: str,
    config: str | None,
    split: str | None,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Any:
    """Return a split of a hub data set as a `datasets.Dataset`; without a name, all of them.

    **Raises:** `InputError` that names the data set and says what is wrong, see `HubSource`.
    """
    with needed_by(f"{name}: the source 'hub'"):
        import datasets
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
