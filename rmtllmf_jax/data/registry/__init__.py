"""Facts about the tasks of the literature: class names, prompts, split sizes, sources."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.data.reading import AS_USUAL, Reading
from rmtllmf_jax.data.tasks import REGISTERED

SINGLE_PROMPT = "a photo of a {}"
"""The prompt of recipes without an ensemble; `{}` stands for the class name."""

PROMPTS = ("ensemble", "single")
"""All templates of the task, or only "a photo of a {}"."""


@dataclass(frozen=True)
class HubSet:
    """A data set on the Hugging Face hub; `revision` is a commit, a tag or a branch."""

    id: str
    config: str | None = None
    revision: str | None = None
    reading: Reading = AS_USUAL


@dataclass(frozen=True)
class TfdsSet:
    """A `tensorflow-datasets` builder, optionally with its config after a slash.

    `train`, `test` and `validation`, if there is one, are split strings of TFDS
    (`train+validation`).
    """

    builder: str
    train: str
    test: str
    validation: str | None = None


@dataclass(frozen=True)
class OtherSize:
    """A number of images that a split is known to have in other copies.

    `follows` says what such a split is and what follows for a run that uses it; `level` is `error`
    if the run's accuracies would be meaningless.
    """

    split: str
    size: int
    level: Literal["error", "warning"]
    follows: str


@dataclass(frozen=True)
class TaskFacts:
    """One task at full size, as the task-arithmetic literature uses it.

    `classes` are CLIP's spellings, used in the prompts and by the hub sets of `tanganke`;
    `dataset_classes` are the names of the data set itself and `other_classes` further spellings of
    all classes; each is in label order. A prompt holds `{}` once. `train` and `test` are numbers of
    images, `train_counts` and `test_counts` those of each class if they distinguish classes;
    `pixels` is the side of the images if all of them are squares of one small size, and
    `validation` the number of validation images if the set has a validation split.
    `tfds_note` says why there is no `tfds`, or what to know about it.
    `finetuned` is the suffix of the published models `tanganke/clip-vit-base-patch16_<suffix>`.
    `note` describes the label order, and where other copies of the set differ.
    """

    name: str
    classes: tuple[str, ...]
    dataset_classes: tuple[str, ...]
    prompts: tuple[str, ...]
    train: int
    test: int
    train_counts: tuple[int, ...] | None
    test_counts: tuple[int, ...] | None
    pixels: int | None
    hub: HubSet
    tfds: TfdsSet | None
    tfds_note: str
    finetuned: str
    note: str
    other_sizes: tuple[OtherSize, ...]
    other_classes: tuple[tuple[str, ...], ...]
    validation: int | None = None

    def labels_of(self, names: Iterable[str]) -> tuple[int | None, ...]:
        """Return this task's label for each class name, None for an unknown name.

        A name may be any known spelling (see `plain_name`), in any order and number.
        """
        known: dict[str, int] = {}
        for spelling in (self.classes, self.dataset_classes, *self.other_classes):
            known |= {plain_name(name): label for label, name in enumerate(spelling)}
        return tuple(known.get(plain_name(name)) for name in names)


def plain_name(name: str) -> str:
    """Return a class name without the differences between its spellings.

    Removes case, separators, punctuation, leading zeros of numbers and the initial of SUN397's
    folders: `/f/field/wild` and `Field Wild` become the same, as do `00007` and `7`.
    """
    name = re.sub(r"^/[a-z]/", "", name.casefold())
    letters = re.sub(r"[\W_]+", "", name)
    return str(int(letters)) if letters.isdecimal() else letters


@cache
def task_facts(name: str) -> TaskFacts:
    """Return what is known about a task.

    **Raises:** `InputError` for a name that is not in `REGISTERED`, with the nearest one.
    """
    require_known("task", name, REGISTERED)
    path = files(__name__) / f"{name}.json"
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    facts |= {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
    facts["other_sizes"] = tuple(OtherSize(**size) for size in facts["other_sizes"])
    facts["other_classes"] = tuple(tuple(names) for names in facts["other_classes"])
    reading = Reading(**facts["hub"].pop("reading", {}))
    facts["hub"] = HubSet(**facts["hub"], reading=reading)
    facts["tfds"] = None if facts["tfds"] is None else TfdsSet(**facts["tfds"])
    return TaskFacts(name=name, **facts)


def prompt_templates(task: str, prompts: str) -> tuple[str, ...]:
    """Return the templates of a task; tasks unknown to the registry use the single prompt.

    **Raises:** `InputError` if `prompts` is not one of `PROMPTS`.
    """
    require_known("prompts", prompts, PROMPTS)
    if prompts == "single" or task not in REGISTERED:
        return (SINGLE_PROMPT,)
    return task_facts(task).prompts


def read_templates(path: Path) -> tuple[str, ...]:
    """Return the templates in a text file, one per line, or in a JSON list.

    **Raises:** `InputError` that names the file and a line without exactly one `{}`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip().startswith("["):
        lines = read_json(path)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str) or line.count("{}") != 1 or "{" in line.replace("{}", ""):
            raise InputError(f"{path}: template {number} needs {{}} once, got {line!r}.")
    if not lines:
        raise InputError(f"{path}: holds no template.")
    return tuple(lines)


def prompt_classes(task: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as used in prompts, in the order given.

    A name that the registry knows, in any of its spellings, becomes CLIP's (`AnnualCrop` is
    "annual crop land"); any other keeps the data's spelling, with spaces for underscores.
    """
    if task not in REGISTERED:
        return tuple(name.replace("_", " ") for name in classes)
    facts = task_facts(task)
    return tuple(
        name.replace("_", " ") if label is None else facts.classes[label]
        for name, label in zip(classes, facts.labels_of(classes), strict=True)
    )
