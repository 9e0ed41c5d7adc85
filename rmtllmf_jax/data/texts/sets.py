"""Sets of text tasks: by the name of one that comes with the package, or from a file.

A file in YAML or JSON has one task per name::

    maths:
      train: gsm8k_train.jsonl
      test: gsm8k_test.jsonl
      prompt: "Question: {question}\\nAnswer:"
      template: " {answer}"
    news: {train: news.txt}
    code:
      train: {hub: google-research-datasets/mbpp, split: train, template: "{text}\\n{code}"}

Text files are beside it. `validation` and `test` may be left out, but not `train`, see
`load_text_task`; a part may have its own `prompt` and `template`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.mappings import read_mapping
from rmtllmf_jax.data.texts.embedded import embedded_text_tasks
from rmtllmf_jax.data.texts.sources import HubTexts, Texts, text_source
from rmtllmf_jax.data.texts.task import TextTask

TEXT_SETS: dict[str, Callable[[], tuple[TextTask, ...]]] = {"embedded": embedded_text_tasks}
"""Sets that come with the package, by the names that `finetune --texts` knows: each returns its
tasks, whose parts are any `Texts`. A set that is added here is found by name.
"""

_PARTS = ("train", "validation", "test")
_HOW = ("prompt", "template")
_OF_HUB = ("hub", "split", "config", "revision")


def text_tasks(name: str | Path) -> tuple[TextTask, ...]:
    """Return the tasks of a set: one of `TEXT_SETS`, or one in a file.

    **Raises:** `InputError` that names the file, the task and the key that cannot be used.
    """
    if (made := TEXT_SETS.get(str(name))) is not None:
        return made()
    path = Path(name).expanduser()
    if not path.suffix and not path.exists():
        raise InputError(
            f"{name}: no file of text tasks, and no set of the package ({', '.join(TEXT_SETS)})."
        )
    content = read_mapping(path, "file of text tasks", "tasks by name, as in `maths: {train: ...}`")
    if not content:
        raise InputError(f"{path}: holds no task.")
    return tuple(_task(path, task, about) for task, about in content.items())


def _task(path: Path, name: str, about: Any) -> TextTask:
    where = f"{path}: task {name!r}"
    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"{where}: expected a name of letters, digits, - and _.")
    if not isinstance(about, Mapping):
        raise InputError(f"{where}: expected {', '.join((*_PARTS, *_HOW))}, got {about!r:.60}.")
    for key in about:
        require_known(f"key of {where}", str(key), (*_PARTS, *_HOW))
    if about.get("train") is None:
        raise InputError(f"{where}: names no texts to train on (train).")
    shared = {key: about[key] for key in _HOW if key in about}
    parts = {
        part: _part(path, about[part], shared, f"{where}, {part}")
        for part in _PARTS
        if about.get(part) is not None
    }
    return TextTask(name, **parts)


def _part(path: Path, about: Any, shared: Mapping[str, Any], where: str) -> Texts:
    given = {"path": about} if isinstance(about, str) else about
    if not isinstance(given, Mapping) or ("path" in given) == ("hub" in given):
        raise InputError(
            f"{where}: expected a file, or a mapping with either path or hub, got {about!r:.60}."
        )
    for key in given:
        require_known(f"key of {where}", str(key), ("path", *_OF_HUB, *_HOW))
    how = {**shared, **{key: given[key] for key in _HOW if key in given}}
    of_hub = {key: given[key] for key in _OF_HUB if given.get(key) is not None}
    for key, value in {**how, **of_hub, "path": given.get("path", "")}.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: {key} must be a text, got {value!r:.60}.")
    try:
        if "path" not in given:
            if "split" not in of_hub:
                raise InputError("a data set of the hub needs a split.")
            return HubTexts(id=of_hub.pop("hub"), **of_hub, **how)
        if of_hub:
            raise InputError(
                f"{next(iter(of_hub))} belongs to a data set of the hub, not to a file."
            )
        return text_source(path.parent / Path(given["path"]).expanduser(), **how)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
