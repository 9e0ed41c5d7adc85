"""A run folder as an object: its users, with models and images loaded at first use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Array, Float, PyTree

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.data.samples import Task
from rmtllmf_jax.data.sources import hub_set
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.data.tasks import validate_tasks
from rmtllmf_jax.models.classifier import Classifier
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.heads import Head, stack_heads
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.shared import SharedModel, images_only
from rmtllmf_jax.models.zero_shot import head_classes
from rmtllmf_jax.runs.config import UserRecord, require_weights
from rmtllmf_jax.runs.environment import default_cache
from rmtllmf_jax.runs.folder import RUN, STATISTICS
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.runs.manifest import AnyConfig, AnyRecord, load_manifest
from rmtllmf_jax.runs.texts import nats
from rmtllmf_jax.runs.users import accuracy, load_user


@dataclass(frozen=True)
class Run:
    """What `open_run` found; models and images are loaded at first use.

    Every attribute raises `InputError` if model or images have moved, if the run was made with
    another model, or if a file is missing or damaged (the message names it).
    """

    path: Path
    config: AnyConfig
    """The settings that all users share, with the current locations of model and data: a
    `RunConfig` of images, or a `TextRunConfig`."""
    users: Mapping[str, AnyRecord]
    """The users by task, sorted: user q of every channel draw sends the q-th."""
    cache_dir: Path
    """Folder of decoded images, and of tokens."""
    remat: bool = False
    """Recompute activations in the backward pass."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.users)

    @property
    def model(self) -> SharedModel:
        """The image tower, or the decoder of texts, without its parameters."""
        return self._model[0]

    @property
    def base(self) -> PyTree:
        """The pretrained parameters."""
        return self._model[1]

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The images or texts of every task, memory-mapped."""
        self._require_data()
        found = tuple(
            task
            for name, config in self._configs().items()
            for task in config.load_tasks((name,), self.cache_dir)
        )
        for task in found:
            self.users[task.name].require_same(task)
        return found

    @cached_property
    def vectors(self) -> PyTree[Float[Array, "users ..."]]:
        """The task vectors, fine-tuned minus base parameters, stacked over the users."""
        between = fusion.TaskVector.between
        return fusion.stack([between(model, self.base).tree for model, _ in self._models])

    @property
    def heads(self) -> Head | None:
        """The frozen heads, padded and stacked over the users; `None` for texts."""
        found = [head for _, head in self._models if head is not None]
        return stack_heads(found) if found else None

    @property
    def provenance(self) -> dict[str, Any] | None:
        """The content of `run.json`, `None` before the first sweep."""
        path = self.path / RUN
        return read_json(path) if path.exists() else None

    def summary(self) -> dict[str, Any]:
        """Return how the users were made, for the provenance of results."""
        return {"setting": asdict(self.config), "recipe": self.users[self.names[0]].recipe}

    def finetuned(self, task: str) -> PyTree:
        """Return the fine-tuned parameters of a task's user."""
        return self._models[self.names.index(task)][0]

    def classifier(self, task: str) -> Classifier:
        """Return a task's frozen head with the names of its classes in the spelling of the data.

        Older runs have the spelling of the head's prompts.
        """
        user, head = self.users[task], self._models[self.names.index(task)][1]
        if head is None or not isinstance(user, UserRecord):
            raise InputError("a classifier needs images, but this run is of texts.")
        return Classifier(head, user.labels or head_classes(self.path / user.head))

    def accuracies(self, params: PyTree, samples: int = 0) -> dict[str, float]:
        """Return a model's accuracy on the test images of every task, under its frozen head.

        **Arguments:**

        - `params`: of the image tower, like `base`; for instance a merged model.
        - `samples`: images per task, a seeded subset; 0 is all.

        **Raises:** `InputError` for texts, see `nats`.
        """
        backbone, found = images_only(self.model, "accuracies under heads"), {}
        tasks: tuple[Any, ...] = self.tasks
        for task, (_, head) in zip(tasks, self._models, strict=True):
            rows = task.test.take(evaluation_subset(len(task.test), samples, self.config.seed))
            assert head is not None
            found[task.name] = accuracy(backbone, params, head, rows, f"test {task.name}")
        return found

    def nats(self, params: PyTree, samples: int = 0) -> dict[str, float]:
        """Return a decoder's nats per token on the test texts of every task.

        **Arguments:**

        - `params`: like `base`; for instance a merged model.
        - `samples`: rows per task, a seeded subset; 0 is all.

        **Raises:** `InputError` for images, see `accuracies`.
        """
        if not isinstance(self.model, Decoder):
            raise InputError(
                "nats per token need a language model; this run's model is for images."
            )
        return {
            task.name: nats(self.model, params, task.test.take(rows))
            for task in self.tasks
            for rows in (evaluation_subset(len(task.test), samples, self.config.seed),)
        }

    def inputs(self) -> SweepInputs:
        """Return everything in the form that sweeps and objectives take."""
        self._require_data()  # cheap checks first
        _, tasks = self._model, self.tasks
        users = {
            task.name: {**self.users[task.name].hashes(self.path), **task.fingerprints()}
            for task in tasks
        }
        return SweepInputs(
            self.names,
            self.model,
            self.base,
            self.vectors,
            self.heads,
            tasks,
            {"setting": self.config.key(), "tasks": users},
            self.path / STATISTICS,
        )

    def _configs(self) -> dict[str, AnyConfig]:
        """Return the settings of each task, as its images may be in a separate place."""
        return {
            name: replace(self.config, **user.images)
            if isinstance(user, UserRecord)
            else self.config
            for name, user in self.users.items()
        }

    def _require_data(self) -> None:
        for config in self._configs().values():
            config.require_data()

    @cached_property
    def _model(self) -> tuple[SharedModel, PyTree]:
        try:
            local_directory(self.config.model)
        except InputError as error:
            moved = "If it was moved, give its new place with --model."
            raise InputError(f"{error} {moved}") from error
        config: Any = self.config
        require_weights(config.model, config.model_hash)
        model, base = config.load_model(self.remat)
        config.require_same_model(model)
        return model, base

    @cached_property
    def _models(self) -> list[tuple[PyTree, Head | None]]:
        width = self.model.width
        return [load_user(self.path, user, self.base, width) for user in self.users.values()]


def open_run(
    path: str | os.PathLike[str],
    tasks: Sequence[str] = (),
    *,
    model: str | None = None,
    data: Path | None = None,
    dtype: str | None = None,
    cache_dir: Path | None = None,
    remat: bool = False,
) -> Run:
    """Return the run of a folder that `rmtllmf finetune` or `reproduce` made.

    **Arguments:**

    - `tasks`: names; none means all that were fine-tuned.
    - `model`, `data`: their current locations, if they were moved; for texts, `data` is the file
      of the tasks.
    - `dtype`: compute type of the model, in place of that of the fine-tuning.
    - `cache_dir`: folder of decoded images and of tokens; by default the user's cache folder.

    **Raises:** `InputError` if the folder has no users, or a task is unknown or named twice.
    """
    folder = Path(path)
    config, records = load_manifest(folder)
    changes: dict[str, Any] = {} if model is None else {"model": model}
    changes |= {} if data is None else {"data": str(data.expanduser())}
    changes |= {} if dtype is None else {"dtype": dtype}
    names = sorted(validate_tasks(tuple(tasks) or tuple(records), records))
    for name, record in records.items():
        if "data" not in changes or not isinstance(record, UserRecord):
            continue
        at = record.images.get("data")
        if at is not None and hub_set(at) is None:
            records[name] = replace(record, images=record.images | {"data": changes["data"]})
    return Run(
        folder,
        replace(config, **changes),
        {name: records[name] for name in names},
        cache_dir or default_cache(),
        remat,
    )
