"""TensorFlow Datasets as a source: prepared array_record sets, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError, first_line, require_known
from rmtllmf_jax.common.extras import MissingExtra, needed_by
from rmtllmf_jax.data.reading import AS_USUAL, Column, Kind, Reading
from rmtllmf_jax.data.registry import TaskFacts, TfdsSet, plain_name, task_facts
from rmtllmf_jax.data.source import ALL_SPLITS, Example
from rmtllmf_jax.data.sources.contents import examples_hash
from rmtllmf_jax.data.tasks import REGISTERED

_SOURCE = "the source 'tfds'"


@dataclass(frozen=True)
class TfdsSource:
    """The `Source` over sets that were prepared as `array_record` (extra `tfds`).

    A task is one of the registry, or any image-classification set in `data_dir` by the name of its
    builder; for the latter, `reading` gives what is not recognised. `data_dir` replaces TFDS's own
    folder. Images are the files as stored by TFDS; without `encoded`, TFDS decodes them to arrays.
    Labels follow the registry: where TFDS has the same class names in another order (`sun397`),
    they are renumbered by name. `facts` gives the builder and splits of its tasks.

    **Raises:** every method raises `InputError`: for a task without a usable builder (it names the
    data set on the Hugging Face hub), a set that is not prepared (it says how), class names other
    than the registry's, an unreadable file, or if the extra is not installed.
    """

    data_dir: Path | None = None
    encoded: bool = True
    reading: Reading = AS_USUAL
    facts: Callable[[str], TaskFacts] = task_facts
    _opened: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)
    _hashes: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)

    def tasks(self) -> tuple[str, ...]:
        """Return the registry's tasks (using one without a builder is an error), and any other sets
        prepared in the folder, as `builder` or `builder-config`.
        """
        return (*REGISTERED, *self._prepared())

    def _prepared(self) -> dict[str, str]:
        """Return the prepared builders that are not the registry's, by task."""
        folder = self.data_dir or Path("~/tensorflow_datasets").expanduser()
        known = {facts.tfds.builder for facts in map(self.facts, REGISTERED) if facts.tfds}
        found = {}
        for pattern in ("*/*", "*/*/*"):
            for path in sorted(folder.glob(f"{pattern}/dataset_info.json")):
                builder = path.relative_to(folder).parents[1].as_posix()
                task = builder.replace("/", "-")
                if builder not in known and task not in REGISTERED:
                    found[task] = builder
        return found

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names: the registry's, checked against TFDS's own, or the latter."""
        if task in REGISTERED:
            self._labels(task)
            return self.facts(task).dataset_classes
        return tuple(self._names(task))

    def splits(self, task: str) -> tuple[str, ...]:
        """Return the splits that a task has."""
        found = self._splits(task)
        return tuple(split for split in ALL_SPLITS if split in found)

    def size(self, task: str, split: str) -> int:
        """Return the number of examples in a split."""
        return len(self._open(task, split))

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash over all images and labels in their order, computed once per object.

        A prepared set is not written again (TFDS puts a new version in a new folder), so changes
        while the process runs are not checked for.
        """
        key = (task, split)
        if key not in self._hashes:
            total, doing = self.size(task, split), f"hashing {task} {split}"
            self._hashes[key] = examples_hash(self.examples(task, split), total, doing)
        return self._hashes[key]

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the examples in the order of TFDS."""
        opened, labels = self._open(task, split), self._labels(task)
        image_column, label_column = self._columns(task)
        place = f"tfds {self._builder_name(task)}: {self._splits(task)[split]}"
        for row in range(len(opened)):
            origin = f"{place} row {row}"
            try:
                item = opened[row]
                image, label = item[image_column], int(item[label_column])
            except Exception as error:  # array_record raises RuntimeError, the parsers many more
                raise InputError(
                    f"{origin}: cannot be read ({first_line(error)}). Prepare the set again."
                ) from error
            if not 0 <= label < len(labels):
                raise InputError(f"{origin}: label {label} is none of {len(labels)}.")
            if not isinstance(image, np.ndarray):
                image = bytes(image)
            yield Example(image, labels[label], origin)

    def _registered(self, task: str) -> TfdsSet:
        known = self.facts(task)
        if known.tfds is None:
            hint = "" if known.hub.id in known.tfds_note else f" Use --source hub ({known.hub.id})."
            raise InputError(
                f"task {task!r} cannot come from TensorFlow Datasets: {known.tfds_note}{hint}"
            )
        return known.tfds

    def _builder_name(self, task: str) -> str:
        if task in REGISTERED:
            return self._registered(task).builder
        require_known("task", task, self.tasks())
        return self._prepared()[task]

    def _splits(self, task: str) -> dict[str, str]:
        """Return the split strings of train, validation and test, without missing ones."""
        if task in REGISTERED:
            known = self._registered(task)
            found = {split: getattr(known, split) for split in ALL_SPLITS}
            return {split: text for split, text in found.items() if text is not None}
        builder, place = self._builder(task), f"tfds {self._builder_name(task)}"
        return self.reading.splits(tuple(builder.info.splits), place)

    def _columns(self, task: str) -> tuple[str, str]:
        """Return the names of the features of images and labels."""
        features, place = self._builder(task).info.features, f"tfds {self._builder_name(task)}"
        there = {name: Column(_kind(feature), feature) for name, feature in features.items()}
        told = AS_USUAL if task in REGISTERED else self.reading
        image, label = told.columns(there, place)
        if there[label].kind != "classes":
            raise InputError(f"{place}: feature {label!r} has no class names.")
        return image, label

    def _names(self, task: str) -> list[str]:
        _, label = self._columns(task)
        return list(self._builder(task).info.features[label].names)

    def _builder(self, task: str) -> Any:
        name = self._builder_name(task)
        with needed_by(_SOURCE):
            import tensorflow_datasets as tfds
        directory = None if self.data_dir is None else str(self.data_dir)
        try:
            return tfds.builder(name, data_dir=directory)
        except Exception as error:  # DatasetNotFoundError, and whatever a builder's code raises
            raise InputError(
                f"tfds {name}: no such builder or version here ({first_line(error)})."
            ) from error

    def _open(self, task: str, split: str) -> Any:
        require_known("split", split, ALL_SPLITS)
        if (task, split) in self._opened:
            return self._opened[task, split]
        builder, name = self._builder(task), self._builder_name(task)
        place, found = f"tfds {name}", self._splits(task)
        if split not in found:
            listed = ", ".join(found)
            raise InputError(f"{place}: no {split} split, only {listed}. Use --{split}-split.")
        wanted, (image, _) = found[split], self._columns(task)
        import tensorflow_datasets as tfds

        decoders = {image: tfds.decode.SkipDecoding()} if self.encoded else None
        try:
            with needed_by(_SOURCE):
                opened = builder.as_data_source(split=wanted, decoders=decoders)
                len(opened)
        except MissingExtra:
            raise
        except Exception as error:
            if not isinstance(error, NotImplementedError) and builder.is_prepared():
                raise InputError(
                    f"{place}, split {wanted!r}: cannot be opened ({first_line(error)})."
                ) from error
            folder, option, hub = "TFDS's own folder", "", ""
            if task in REGISTERED:
                hub = f" Or use --source hub ({self.facts(task).hub.id})."
            if self.data_dir is not None:
                folder, option = str(self.data_dir), f", data_dir={str(self.data_dir)!r}"
            raise InputError(
                f"{place}: not prepared as array_record in {folder}. Prepare it once "
                'where TensorFlow is installed: python -c "import tensorflow_datasets as tfds; '
                f"tfds.builder({name!r}{option}, file_format='array_record')"
                f'.download_and_prepare()".{hub}'
            ) from error
        self._opened[task, split] = opened
        return opened

    def _labels(self, task: str) -> list[int]:
        """Return the registry's label for each label of TFDS, by comparing names (`plain_name`)."""
        names, place = self._names(task), f"tfds {self._builder_name(task)}"
        if task not in REGISTERED:
            return list(range(len(names)))
        classes = self.facts(task).dataset_classes
        wanted = {plain_name(name): position for position, name in enumerate(classes)}
        found = [plain_name(name) for name in names]
        if len(wanted) < len(classes) or sorted(found) != sorted(wanted):
            strange = [name for name in names if plain_name(name) not in wanted][:5]
            lacking = [name for name in classes if plain_name(name) not in found][:5]
            raise InputError(
                f"{place}: {len(names)} classes that are not the registry's "
                f"{len(classes)}; unknown {strange}, lacking {lacking}. Labels cannot be told "
                "apart safely."
            )
        return [wanted[name] for name in found]


def _kind(feature: Any) -> Kind:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "images"
    return "classes" if isinstance(feature, tfds.features.ClassLabel) else "other"
