"""The prompts of a task: its templates, and its classes as CLIP's users spell them."""

from __future__ import annotations

from collections.abc import Sequence

from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.data.registry import SINGLE_PROMPT, task_facts
from rmtllmf_jax.data.tasks import TASK_NAMES

PROMPTS = ("ensemble", "single")
"""All templates of the task, or only "a photo of a {}"."""


def prompt_templates(task: str, prompts: str) -> tuple[str, ...]:
    """Return the templates of a task; tasks unknown to the registry have the single prompt.

    **Raises:** `InputError` if `prompts` is not one of `PROMPTS`.
    """
    require_known("prompts", prompts, PROMPTS)
    if prompts == "single" or task not in TASK_NAMES:
        return (SINGLE_PROMPT,)
    return task_facts(task).prompts


def prompt_classes(task: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as used in prompts, in the order given.

    A name that the registry knows, in any of its spellings, becomes CLIP's (`AnnualCrop` is
    "annual crop land"); any other keeps the data's spelling, with spaces for underscores.
    """
    if task not in TASK_NAMES:
        return tuple(name.replace("_", " ") for name in classes)
    facts = task_facts(task)
    return tuple(
        name.replace("_", " ") if label is None else facts.classes[label]
        for name, label in zip(classes, facts.labels_of(classes), strict=True)
    )
