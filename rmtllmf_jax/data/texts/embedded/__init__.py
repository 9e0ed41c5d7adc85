"""Four small text tasks that come with the package: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.data.texts.embedded import dates, queries, stories, sums
from rmtllmf_jax.data.texts.embedded.task import EmbeddedTexts, StyledTask
from rmtllmf_jax.data.texts.task import TextTask

EMBEDDED_TEXTS: Mapping[str, StyledTask] = MappingProxyType(
    {module.TASK.name: module.TASK for module in (dates, queries, stories, sums)}
)
"""The tasks by name."""


def embedded_text_tasks(seed: int = 0) -> tuple[TextTask, ...]:
    """Return all four, see `embedded_text_task`."""
    return tuple(embedded_text_task(name, seed) for name in EMBEDDED_TEXTS)


def embedded_text_task(name: str, seed: int = 0) -> TextTask:
    """Return an embedded task: 1,500 texts for training, 200 for validation and 300 for test.

    One seed always gives the same texts. Another seed gives others, but a question that is in test
    under one seed is never in train under another, and none has been read by the embedded model.

    **Raises:** `InputError` for an unknown task or a negative seed.
    """
    task = EMBEDDED_TEXTS[require_known("task", name, EMBEDDED_TEXTS)]
    train, validation, test = (
        EmbeddedTexts(task=task, split=split, seed=seed)
        for split in ("train", "validation", "test")
    )
    return TextTask(name, train, validation, test)
