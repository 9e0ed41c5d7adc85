"""Sources of sets with arbitrary split names: which are train, validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.reading import Part, Reading, parts_of
from rmtllmf_jax.data.source import ALL_SPLITS, Example


@runtime_checkable
class Stored(Protocol):
    """One task as stored; splits go by their stored names.

    All methods raise `InputError` that names what is wrong.
    """

    @property
    def place(self) -> object:
        """Where it is, for messages."""
        ...

    @property
    def reading(self) -> Reading:
        """What is given about its columns and splits."""
        ...

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        ...

    def classes(self) -> tuple[str, ...]:
        """Return the class names in label order."""
        ...

    def size(self, split: str) -> int:
        """Return the number of images in a split."""
        ...

    def fingerprint(self, split: str) -> str:
        """Return a hash of a split's content."""
        ...

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the images of a split."""
        ...


class StoredSource:
    """The methods of a `Source` over tasks that are `Stored`."""

    def stored(self, task: str) -> Stored:
        """Return a task as stored."""
        raise NotImplementedError

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order."""
        return self.stored(task).classes()

    def splits(self, task: str) -> tuple[str, ...]:
        """Return the splits that a task has."""
        stored = self.stored(task)
        found = stored.reading.splits(stored.splits(), stored.place)
        return tuple(split for split in ALL_SPLITS if split in found)

    def size(self, task: str, split: str) -> int:
        """Return the number of images in a split."""
        stored, parts = self._parts(task, split)
        return sum(len(part.rows(stored.size(part.name))) for part in parts)

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the content of a split: of every byte, not of sizes and times."""
        stored, parts = self._parts(task, split)
        if [part.whole for part in parts] == [True]:
            return stored.fingerprint(parts[0].name)
        prints = []
        for part in parts:
            rows = part.rows(stored.size(part.name))
            prints.append([stored.fingerprint(part.name), rows.start, rows.stop])
        return content_hash({"parts": prints})

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the images of a split, as stored and in stored order."""
        stored, parts = self._parts(task, split)
        for part in parts:
            examples = stored.examples(part.name)
            if not part.whole:
                rows = part.rows(stored.size(part.name))
                examples = islice(examples, rows.start, rows.stop)
            yield from examples

    def _parts(self, task: str, split: str) -> tuple[Stored, tuple[Part, ...]]:
        require_known("split", split, ALL_SPLITS)
        stored = self.stored(task)
        return stored, parts_of(stored.reading.split(split, stored.splits(), stored.place))
