"""TensorFlow Datasets as a source: prepared array_record sets, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError, first_line, require_known
from rmtllmf_jax.data.registry import TaskFacts, TfdsSet, plain_name, task_facts
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.contents import examples_hash
from rmtllmf_jax.data.tasks import TASK_NAMES


@dataclass(frozen=True)
class TfdsSource:
    """The `Source` over sets that were prepared as `array_record` (extra `tfds`).

    `data_dir` replaces TFDS's own folder. Images are the files as stored by TFDS; without
    `encoded`, TFDS decodes them to arrays. Labels follow the registry: where TFDS has the same
    class names in another order (`sun397`), they are renumbered by name. `facts` gives the builder
    and splits of a task.

    **Raises:** every method raises `InputError`: for a task without a usable builder (it names the
    data set on the Hugging Face hub), a set that is not prepared (it says how), class names other
    than the registry's, an unreadable file, or if the extra is not installed.
    """

    data_dir: Path | None = None
    encoded: bool = True
    facts: Callable[[str], TaskFacts] = task_facts
    _opened: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)
    _hashes: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)

    def tasks(self) -> tuple[str, ...]:
        """Return the eight tasks; using one without a builder is an error."""
        return TASK_NAMES

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the registry's names of the set's classes, checked against TFDS's own."""
        self._labels(task)
        return self.facts(task).dataset_classes

    def size(self, task: str, split: str) -> int:
        """Return the number of examples in a split."""
        return len(self._open(task, split))

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash over all images and labels in their order, computed once per object.

        A prepared set is not written again (TFDS puts a new version in a new folder), so changes
        while the process runs are not looked for.
        """
        key = (task, split)
        if key not in self._hashes:
            total, doing = self.size(task, split), f"hashing {task} {split}"
            self._hashes[key] = examples_hash(self.examples(task, split), total, doing)
        return self._hashes[key]

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the examples in the order of TFDS."""
        opened, labels = self._open(task, split), self._labels(task)
        known = self._builder_facts(task)
        for row in range(len(opened)):
            origin = f"tfds {known.builder}: {getattr(known, split)} row {row}"
            try:
                item = opened[row]
                image, label = item["image"], int(item["label"])
            except Exception as error:  # array_record raises RuntimeError, the parsers many more
                raise InputError(
                    f"{origin}: cannot be read ({first_line(error)}). Prepare the set again."
                ) from error
            if not 0 <= label < len(labels):
                raise InputError(f"{origin}: label {label} is none of {len(labels)}.")
            if not isinstance(image, np.ndarray):
                image = bytes(image)
            yield Example(image, labels[label], origin)

    def _builder_facts(self, task: str) -> TfdsSet:
        known = self.facts(require_known("task", task, TASK_NAMES))
        if known.tfds is None:
            hint = "" if known.hub.id in known.tfds_note else f" Use --source hub ({known.hub.id})."
            raise InputError(
                f"task {task!r} cannot come from TensorFlow Datasets: {known.tfds_note}{hint}"
            )
        return known.tfds

    def _builder(self, task: str) -> Any:
        known = self._builder_facts(task)
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise _missing_extra(error) from error
        directory = None if self.data_dir is None else str(self.data_dir)
        try:
            return tfds.builder(known.builder, data_dir=directory)
        except Exception as error:  # DatasetNotFoundError, and whatever a builder's code raises
            raise InputError(
                f"tfds {known.builder}: no such builder or version here ({first_line(error)})."
            ) from error

    def _open(self, task: str, split: str) -> Any:
        require_known("split", split, SPLITS)
        known = self._builder_facts(task)
        if (task, split) in self._opened:
            return self._opened[task, split]
        builder, wanted = self._builder(task), getattr(known, split)
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()} if self.encoded else None
        try:
            opened = builder.as_data_source(split=wanted, decoders=decoders)
            len(opened)
        except ImportError as error:
            raise _missing_extra(error) from error
        except Exception as error:
            if not isinstance(error, NotImplementedError) and builder.is_prepared():
                raise InputError(
                    f"tfds {known.builder}, split {wanted!r}: cannot be opened "
                    f"({first_line(error)})."
                ) from error
            folder, option = "TFDS's own folder", ""
            if self.data_dir is not None:
                folder, option = str(self.data_dir), f", data_dir={str(self.data_dir)!r}"
            raise InputError(
                f"tfds {known.builder}: not prepared as array_record in {folder}. Prepare it once "
                'where TensorFlow is installed: python -c "import tensorflow_datasets as tfds; '
                f"tfds.builder({known.builder!r}{option}, file_format='array_record')"
                f'.download_and_prepare()". Or use --source hub ({self.facts(task).hub.id}).'
            ) from error
        self._opened[task, split] = opened
        return opened

    def _labels(self, task: str) -> list[int]:
        """Return the registry's label for each of TFDS's, by comparing names (`plain_name`)."""
        known, classes = self._builder_facts(task), self.facts(task).dataset_classes
        features = self._builder(task).info.features
        has_both = "image" in features and "label" in features
        names = getattr(features["label"], "names", None) if has_both else None
        if not names:
            listed = ", ".join(features)
            raise InputError(
                f"tfds {known.builder}: needs features 'image' and 'label' with class names; it "
                f"has {listed}."
            )
        wanted = {plain_name(name): position for position, name in enumerate(classes)}
        found = [plain_name(name) for name in names]
        if len(wanted) < len(classes) or sorted(found) != sorted(wanted):
            strange = [name for name in names if plain_name(name) not in wanted][:5]
            lacking = [name for name in classes if plain_name(name) not in found][:5]
            raise InputError(
                f"tfds {known.builder}: {len(names)} classes that are not the registry's "
                f"{len(classes)}; unknown {strange}, lacking {lacking}. Labels cannot be told "
                "apart safely."
            )
        return [wanted[name] for name in found]


def _missing_extra(error: ImportError) -> InputError:
    return InputError(
        "the source 'tfds' needs the packages tensorflow-datasets and array-record "
        f"({first_line(error)}). Install them: pip install 'rmtllmf-jax[tfds]'."
    )
