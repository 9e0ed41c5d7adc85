"""What a data set calls its columns and splits: as given, or recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.source import ALL_SPLITS

Kind = Literal["images", "classes", "numbers", "texts", "other"]
"""What a column holds: image files, numbers with class names, plain numbers, texts, or neither."""


class Column(NamedTuple):
    """The content of a column, and its type as named by the library that reads it."""

    kind: Kind
    type: object


_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
LABELS = ("label", "labels", "class", "class_name", "category", "target")
"""Usual names of a column of labels, in any case."""

_PART = re.compile(r"(?P<name>[^\[\]+]+?)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Part:
    """Some rows of a stored split, from `start` to before `stop`, which may be percentages."""

    name: str
    start: str | None = None
    stop: str | None = None

    @property
    def whole(self) -> bool:
        """Whether they are all rows."""
        return self.start is None and self.stop is None

    def rows(self, total: int) -> range:
        """Return the selected rows of a split with `total` rows."""

        def row(text: str) -> int:
            percent = text.endswith("%")
            number = int(text.removesuffix("%"))
            return round(number * total / 100) if percent else number

        bounds = (None if text is None else row(text) for text in (self.start, self.stop))
        return range(total)[slice(*bounds)]


def parts_of(split: str) -> tuple[Part, ...]:
    """Return the parts of a split as `datasets` and TFDS write them: `train[:80%]`, `train+val`.

    **Raises:** `InputError` for any other syntax.
    """
    parts = []
    for text in split.split("+"):
        match = _PART.fullmatch(text.strip())
        if match is None:
            raise InputError(f"split {split!r}: expected NAME, NAME[:80%] or NAME+NAME.")
        parts.append(Part(match["name"], match["start"], match["stop"]))
    return tuple(parts)


def names_in(split: str) -> list[str]:
    """Return the names of the stored splits that a split is made of."""
    return [part.name for part in parts_of(split)]


@dataclass(frozen=True)
class Reading:
    """The names of the columns and splits of a set; those that are `None` are recognised.

    A split may be a part, or several: `train[:80%]`, `train+validation`. Where `validation_split`
    is the same as that of train, the validation part is cut from train.
    """

    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None

    @classmethod
    def of(cls, options: object) -> Reading:
        """Return the values of options with these names."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    @property
    def told(self) -> dict[str, str]:
        """Everything that is given, by the names of the fields."""
        return {name: text for name, text in asdict(self).items() if text is not None}

    @property
    def columns_given(self) -> dict[str, str]:
        """The given columns, for the hash of a content."""
        given = {"image": self.image_column, "label": self.label_column}
        return {role: name for role, name in given.items() if name is not None}

    def knows(self, stored: Iterable[str]) -> bool:
        """Return whether any stored split has a usual name, or a given one."""
        told = [getattr(self, f"{role}_split") for role in ALL_SPLITS]
        known = {name for split in told if split is not None for name in names_in(split)}
        usual = {name for names in _SPLITS.values() for name in names}
        return any(name in known or name.casefold() in usual for name in stored)

    def splits(self, stored: Sequence[str], place: object) -> dict[str, str]:
        """Return the set's names for train, validation and test, without those that it lacks.

        Recognised names are train and training; validation, val, valid and dev; test and testing,
        in upper or lower case. A stored split that is given as another one is not used twice.

        **Raises:** `InputError` that names `place` for a split that is not stored, and if the
        choice is ambiguous.
        """
        told = {role: getattr(self, f"{role}_split") for role in ALL_SPLITS}
        taken = set()
        for role, split in told.items():
            for name in () if split is None else names_in(split):
                taken.add(name)
                if name not in stored:
                    raise InputError(
                        f"{place}: no split {name!r}, which is to be {role} (--{role}-split); it "
                        f"has {', '.join(stored) or 'none'}."
                    )
        if (told["validation"] or "").casefold() in _SPLITS["train"]:
            taken.discard(told["validation"])  # to be cut from train
        found: dict[str, str] = {}
        for role, split in told.items():
            fitting = [x for x in stored if x.casefold() in _SPLITS[role] and x not in taken]
            if split is None and len(fitting) > 1:
                raise InputError(
                    f"{place}: {' and '.join(fitting)} may be {role}: say which with "
                    f"--{role}-split."
                )
            if split is not None or fitting:
                found[role] = split or fitting[0]
        if found.get("validation") == found.get("train"):
            found.pop("validation", None)
        return found

    def split(self, role: str, stored: Sequence[str], place: object) -> str:
        """Return the set's name for one split.

        **Raises:** `InputError` as `splits`, and if there is none.
        """
        found = self.splits(stored, place)
        if role not in found:
            raise InputError(
                f"{place}: no {role} split; it has {', '.join(stored) or 'none'}. Say which one is "
                f"meant, with --{role}-split, or which part of one, as 'train[80%:]'."
            )
        return found[role]

    def columns(self, there: Mapping[str, Column], place: object) -> tuple[str, str]:
        """Return the names of the columns of images and labels.

        Recognised columns are `image`, else the only one with images; `label`, else the only one
        with class names, else one with another usual name.

        **Raises:** `InputError` that names `place` and lists the columns.
        """
        usual = [name for name in there if name.casefold() in LABELS]
        image = _chosen("image", self.image_column, "images", there, [], place)
        label = _chosen("label", self.label_column, "classes", there, usual, place)
        if there[image].kind != "images":
            kind = there[image].type
            raise InputError(f"{place}: column {image!r} must hold images, as files, got {kind}.")
        if there[label].kind not in ("classes", "numbers", "texts"):
            kind = there[label].type
            raise InputError(f"{place}: column {label!r} must hold integers or names, got {kind}.")
        return image, label


AS_USUAL = Reading()
"""Everything is recognised."""


def _chosen(
    role: str,
    told: str | None,
    kind: Kind,
    there: Mapping[str, Column],
    usual: Sequence[str],
    place: object,
) -> str:
    typed = [name for name, column in there.items() if column.kind == kind]
    found: Sequence[str] = []
    for found in ([told] if told else [], [role] if role in there else [], typed, usual):
        if len(found) == 1 and found[0] in there:
            return found[0]
        if found:
            break
    listed = ", ".join(there)
    if told:
        raise InputError(f"{place}: no column {told!r}; it has {listed}.")
    which = f"{' and '.join(found)} may be meant" if found else f"it has {listed}"
    raise InputError(f"{place}: no column {role!r}; {which}. Name it with --{role}-column.")


def names_of(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the different labels of a split as class names: numbers in order, or texts."""
    texts = {str(value) for value in values if value is not None}
    if all(re.fullmatch(r"-?\d+", text) for text in texts):
        return tuple(sorted(texts, key=int))
    return tuple(sorted(texts))


def numbered(value: Any, names: Mapping[str, int], origin: str) -> int:
    """Return the label of a class that is given by name, or by a number not counted from 0.

    **Raises:** `InputError` that begins with `origin` for a class that is not among the names.
    """
    label = names.get(str(value))
    if label is None:
        raise InputError(f"{origin}: label {value!r} is none of the {len(names)} classes of train.")
    return label
