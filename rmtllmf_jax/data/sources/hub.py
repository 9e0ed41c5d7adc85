"""The Hugging Face hub as a source, through `datasets` (extra `hub`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.registry import HubSet, TaskFacts, task_facts
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.contents import examples_hash, file_hashes
from rmtllmf_jax.data.sources.hub_errors import explained, quiet_unless_terminal
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
        import datasets  # installed, or the set would not have been loaded

        column = loaded.features[known.hub.label]
        if not isinstance(column, datasets.ClassLabel):
            return known.dataset_classes
        if len(column.names) != len(known.dataset_classes):
            raise InputError(
                f"{known.hub.id}: column {known.hub.label!r} has {len(column.names)} classes, "
                f"task {task!r} has {len(known.dataset_classes)}. Is it another set or revision?"
            )
        return tuple(column.names)

    def size(self, task: str, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self._load(task, split))

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the split's rows, as `datasets` keeps them on disk, and their columns.

        It depends on every byte of images and labels, not on commit, path or process. Another
        version of `datasets` may store the same rows differently: they are then decoded again.
        """
        import pyarrow.compute as pc

        loaded, hub = self._load(task, split), self.facts(task).hub
        doing = f"hashing {task} {split}"
        stored = [pc.struct_field(part, "bytes") for part in loaded.data.column(hub.image).chunks]
        files = [Path(file["filename"]) for file in loaded.cache_files]
        columns = {"image": hub.image, "label": hub.label}
        if files and not any(part.null_count for part in stored):
            try:
                return content_hash({**columns, "files": file_hashes(files, doing)})
            except OSError as error:
                raise InputError(f"{error.filename}: cannot be read ({error}).") from error
        rows = examples_hash(self.examples(task, split), len(loaded), doing)
        return content_hash({**columns, "rows": rows})

    def examples(self, task: str, split: str, start: int = 0) -> Iterator[Example]:
        """Yield the rows from `start` on; images are files as stored, not decoded."""
        loaded, hub = self._load(task, split), self.facts(task).hub
        if start >= len(loaded):  # `select` has no empty range at the end
            return
        for row, item in enumerate(loaded.select(range(start, len(loaded))), start):
            image, label = item[hub.image] or {}, item[hub.label]
            name = image.get("path")
            origin = f"{hub.id}: {split} row {row}" + (f" ({name})" if name else "")
            if label is None:
                raise InputError(f"{origin}: column {hub.label!r} is null.")
            yield Example(_image_bytes(image, hub, origin), label, origin)

    def _load(self, task: str, split: str) -> Any:
        """Return the two columns of a split as a `datasets.Dataset` with undecoded images."""
        require_known("task", task, TASK_NAMES)
        require_known("split", split, SPLITS)
        if (task, split) not in self._loaded:
            self._loaded[task, split] = self._read(self.facts(task).hub, split)
        return self._loaded[task, split]

    def _read(self, hub: HubSet, split: str) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                f"{hub.id}: the source 'hub' needs the package datasets ({error}). "
                "Install it: pip install 'rmtllmf-jax[hub]'."
            ) from error
        cache = None if self.cache_dir is None else str(self.cache_dir)
        try:
            with quiet_unless_terminal():
                loaded = datasets.load_dataset(
                    hub.id,
                    hub.config,
                    split=hub.train if split == "train" else hub.test,
                    cache_dir=cache,
                    revision=self.revision,
                )
        except Exception as error:  # its own types, and those of httpx, pyarrow and the hub
            raise explained(error, hub.id, self.revision) from error
        for column in (hub.image, hub.label):
            if column not in loaded.column_names:
                listed = ", ".join(loaded.column_names)
                raise InputError(f"{hub.id}: no column {column!r}; it has {listed}.")
        image, label = loaded.features[hub.image], loaded.features[hub.label]
        if not isinstance(image, datasets.Image) and getattr(image, "dtype", "") != "binary":
            raise InputError(f"{hub.id}: column {hub.image!r} must hold images, got {image}.")
        if not isinstance(label, datasets.ClassLabel) and "int" not in getattr(label, "dtype", ""):
            raise InputError(f"{hub.id}: column {hub.label!r} must hold integers, got {label}.")
        kept = loaded.select_columns([hub.image, hub.label])
        return kept.cast_column(hub.image, datasets.Image(decode=False))


def _image_bytes(image: dict[str, Any], hub: HubSet, origin: str) -> bytes:
    stored, path = image.get("bytes"), image.get("path")
    if stored is not None:
        return bytes(stored)
    if path is None:
        raise InputError(f"{origin}: column {hub.image!r} holds no image.")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{origin}: the image file cannot be read ({error}).") from error
