"""Where a task's frozen head comes from: class names, features, or the checkpoint itself.

>>> head_text(parse_head("probe=5")), head_text(Lda(shots=3)), parse_head("zero-shot")
('probe(shots=5)', 'lda(shots=3)', ZeroShot())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, PyTree

from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_known,
    require_non_negative,
)
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.common.values import described, parse
from rmtllmf_jax.data.registry import (
    plain_name,
    prompt_classes,
    prompt_templates,
    task_facts,
)
from rmtllmf_jax.data.task_data import TaskData
from rmtllmf_jax.data.tasks import REGISTERED
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.classifier import Classifier, read_classifier
from rmtllmf_jax.models.configs import ModelConfig
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import Head, lda_head, probe_head
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.pretrained import load_clip, read_pretrained
from rmtllmf_jax.models.tokens import load_tokenizer
from rmtllmf_jax.models.zero_shot import cached_zero_shot_head, load_head, save_head

_FORMAT = 2  # version of the heads that are made here, part of their names

_SHOWN = 5  # names in a message

MakeHead = Callable[[TaskData], tuple[Head, Path]]
"""Returns a task's head and its file in the run folder."""


@dataclass(frozen=True)
class HeadContext:
    """What heads are made from."""

    backbone: Backbone
    base: PyTree
    """Pretrained parameters of the image tower."""
    model: str
    """Directory or hub id."""
    prompts: str
    """Prompts of zero-shot heads, one of `data.registry.PROMPTS`."""
    seed: int
    """Chooses the shots."""
    key: Mapping[str, Any]
    """What features depend on (`RunConfig.key`)."""
    folder: Path
    """Where heads are kept, under hashes of what they depend on."""
    templates: tuple[str, ...] = ()
    """Prompts of zero-shot heads in place of these."""

    def kept(self, task: TaskData, make: Callable[[], Head]) -> tuple[Head, Path]:
        """Return a task's head from its file, or make it and write the file."""
        key = {"data": task.fingerprint, "v": _FORMAT, **self.key}
        path = self.folder / f"{task.name}-{content_hash(key)}.safetensors"
        if path.exists():
            return load_head(path, task.classes), path
        head = make()
        save_head(path, head, task.classes)
        return head, path

    def features(
        self, task: TaskData, shots: int | None
    ) -> tuple[Float[np.ndarray, "n width"], Int[np.ndarray, " n"]]:
        """Return features and labels of training images: all, or some of each class."""
        rows = task.train if shots is None else task.train.take(task.shots(shots, self.seed))
        title = f"features {task.name}"
        found = extract_features(self.backbone, self.base, rows.images, description=title)
        return found, rows.labels


@runtime_checkable
class TaskHeads(Protocol):
    """A kind of frozen head."""

    sees_images: ClassVar[bool]
    """Whether a head is made from training images, which its file's name then covers."""

    def require(self, config: ModelConfig, model: str) -> None:
        """Check, before any work, that a model has what the heads are made from."""
        ...

    def maker(self, context: HeadContext) -> MakeHead:
        """Return the maker of the tasks' heads."""
        ...


@dataclass(frozen=True)
class ZeroShot:
    """Directions of class names in the shared space of image and text tower."""

    name: ClassVar[str] = "zero-shot"
    sees_images: ClassVar[bool] = False

    def require(self, config: ModelConfig, model: str) -> None:
        """Check that there is a text tower, and a tokenizer that fits it."""
        if config.text is None:
            raise InputError(
                f"--head zero-shot needs a text tower, and {model} has none that shares a "
                "space with its images: take --head lda, or a CLIP or SigLIP model."
            )
        load_tokenizer(local_directory(model), config.text)

    def maker(self, context: HeadContext) -> MakeHead:
        """Return the maker; it raises `InputError` for a text that the tower cannot read."""
        model = local_directory(context.model)
        clip, params = load_clip(model)
        tokenizer = load_tokenizer(model, clip.shape.text)

        def make(task: TaskData) -> tuple[Head, Path]:
            templates = context.templates or prompt_templates(task.name, context.prompts)
            classes = prompt_classes(task.name, task.classes)
            return cached_zero_shot_head(
                context.folder, clip, params, tokenizer, classes, templates
            )

        return make


@dataclass(frozen=True)
class _AnyModel:
    """Heads that work for every model."""

    def require(self, config: ModelConfig, model: str) -> None:
        """Check nothing."""


@dataclass(frozen=True)
class Lda(_AnyModel):
    """Shrinkage linear discriminant analysis of the base model's features, in closed form."""

    shots: int | None = None
    """Training images per class; `None` is all."""
    sees_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the number: a single image has no covariance."""
        if self.shots is not None:
            require_at_least("shots of an lda head", self.shots, 2)

    def maker(self, context: HeadContext) -> MakeHead:
        """Return the maker; it raises `InputError` for a class with too few images."""

        def make(task: TaskData) -> Head:
            return lda_head(*context.features(task, self.shots), len(task.classes))

        return lambda task: context.kept(task, lambda: make(task))


@dataclass(frozen=True)
class Probe(_AnyModel):
    """A linear probe: multinomial logistic regression on the base model's features."""

    shots: int | None = None
    """Training images per class; `None` is all."""
    strength: float = 1.0
    """Inverse of the L2 penalty, for features of unit variance on average."""
    sees_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.shots is not None:
            require_at_least("shots of a probe", self.shots, 1)
        if require_non_negative("strength of a probe", self.strength) == 0:
            raise InputError("strength of a probe must be above 0, got 0.")

    def maker(self, context: HeadContext) -> MakeHead:
        """Return the maker; it raises `InputError` for a class with too few images."""

        def make(task: TaskData) -> Head:
            found = context.features(task, self.shots)
            return probe_head(*found, len(task.classes), strength=self.strength)

        return lambda task: context.kept(task, lambda: make(task))


@dataclass(frozen=True)
class Own:
    """The checkpoint's own classifier, with its outputs selected and ordered by class names."""

    sees_images: ClassVar[bool] = False

    def require(self, config: ModelConfig, model: str) -> None:
        """Check that there is a classifier on the features of the image tower."""
        read_classifier(read_pretrained(model))

    def maker(self, context: HeadContext) -> MakeHead:
        """Return the maker; it raises `InputError` for a class that the classifier lacks."""
        classifier = read_classifier(read_pretrained(context.model))

        def make(task: TaskData) -> tuple[Head, Path]:
            return context.kept(task, lambda: own_head(classifier, task.name, task.classes))

        return make


def own_head(classifier: Classifier, task: str, classes: Sequence[str]) -> Head:
    """Return a classifier's outputs for the classes of a task, in their order.

    Names are compared in the spellings that the registry knows (`plain_name`), and those of
    ImageNet (``tench, Tinca tinca``) part by part; outputs without names are taken in order.

    **Raises:** `InputError` for classes that match no output, or more than one.
    """
    if not classifier.labels:
        if (outputs := len(classifier.head.bias)) != len(classes):
            raise InputError(
                f"task {task!r} has {len(classes)} classes, and the model's own classifier "
                f"{outputs} outputs without names (id2label): take another --head."
            )
        note(
            f"{task}: the outputs of the model's own classifier have no names, and are taken "
            "in their order."
        )
        return classifier.head
    whole = [_spellings(task, label) for label in classifier.labels]
    parts = [
        set().union(*(_spellings(task, part) for part in label.split(",")))
        for label in classifier.labels
    ]
    chosen, wrong = [], []
    for name in classes:
        wanted = _spellings(task, name)
        found = [i for i, names in enumerate(whole) if names & wanted]
        found = found or [i for i, names in enumerate(parts) if names & wanted]
        chosen += found[:1]
        wrong += [] if len(found) == 1 else [f"{name!r} ({len(found)} outputs)"]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(
            f"task {task!r}: --head own needs one output of the model's classifier for every "
            f"class, by its name (id2label): {', '.join(wrong[:_SHOWN])}{more}; the model has "
            f"{', '.join(map(repr, classifier.labels[:_SHOWN]))}, ..."
        )
    head, rows = classifier.head, np.asarray(chosen)
    return replace(head, kernel=head.kernel[:, rows], bias=head.bias[rows])


def _spellings(task: str, name: str) -> set[str]:
    found = {plain_name(name)}
    if task in REGISTERED and (label := task_facts(task).labels_of([name])[0]) is not None:
        found.add(f"class {label}")
    return found


HEADS: dict[str, type] = {"zero-shot": ZeroShot, "lda": Lda, "own": Own, "probe": Probe}
"""Kinds of heads by name, for the command line."""


def parse_head(text: str) -> TaskHeads:
    """Return the kind of head that a text describes: ``lda(shots=5)``, or ``probe=5`` for short.

    **Raises:** `InputError` that names what is unknown, and the known ones.
    """
    name, equals, shots = text.partition("=")
    if "(" not in name:
        require_known("--head", name, HEADS)
        if not equals:
            return HEADS[name]()
        text = f"{name}({shots})"
    return parse(text, HEADS, "--head")


def head_text(heads: TaskHeads) -> str:
    """Return the text of a kind of head, as `parse_head` reads it."""
    return described(heads)
