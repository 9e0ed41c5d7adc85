"""What `reproduce --dry-run` finds out about models and images before any of them is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmtllmf_jax.cli.reproduce import Reproduce
    from rmtllmf_jax.models.shapes import CLIPShape, ViTShape
    from rmtllmf_jax.sweep.plan import Needed, TaskSize
    from rmtllmf_jax.training.presets import Preset


def size_of_task(options: Reproduce, name: str) -> TaskSize:
    """Return what is known of a task: by the registry, or by the source's own data.

    **Raises:** `InputError` if neither knows it.
    """
    from rmtllmf_jax.common.errors import require_known
    from rmtllmf_jax.data.registry import task_facts
    from rmtllmf_jax.data.sources import get_source
    from rmtllmf_jax.data.tasks import TASK_NAMES
    from rmtllmf_jax.sweep.plan import OwnTask

    if name in TASK_NAMES and options.source != "embedded":
        return task_facts(name)
    source = get_source(options.source, options.data)
    require_known("task", name, source.tasks())
    return OwnTask(
        name, source.classes(name), source.size(name, "train"), source.size(name, "test")
    )


def images_needed(options: Reproduce, task: TaskSize) -> Needed:
    """Return where the images of a task come from, and whether they are on this machine."""
    from rmtllmf_jax.data.registry import task_facts
    from rmtllmf_jax.data.sources.hub_cache import in_cache
    from rmtllmf_jax.sweep.plan import Needed

    what = f"images {task.name}"
    if options.source == "embedded":
        return Needed(what, "comes with the package", None, present=True)
    if options.source != "hub" and options.data is not None:
        there = any(options.data.glob(f"{task.name}*"))
        return Needed(what, str(options.data / task.name), None, there)
    hub = task_facts(task.name).hub
    where = hub.id if hub.config is None else f"{hub.id} ({hub.config})"
    return Needed(what, where, None, options.source == "hub" and in_cache(hub, options.data))


def what_is_needed(
    model: CLIPShape | ViTShape,
    preset: Preset,
    tasks: Sequence[TaskSize],
    *,
    model_there: Callable[[str], bool],
    images: Callable[[TaskSize], Needed],
    ready_vectors: bool = False,
) -> tuple[Needed, ...]:
    """Return what a run reads: models (sizes from their parameters) and data sets."""
    from rmtllmf_jax.cli.import_task_vector import published
    from rmtllmf_jax.sweep.cost import FLOAT, all_parameters, tower_parameters
    from rmtllmf_jax.sweep.plan import Needed

    size = FLOAT * all_parameters(model)
    found = [Needed("model", preset.model, size, model_there(preset.model))]
    for task in tasks if ready_vectors else ():
        name, size = published(task.name), FLOAT * tower_parameters(model)
        found.append(Needed(f"fine-tuned {task.name}", name, size, model_there(name)))
    return (*found, *map(images, tasks))
