"""Users that need no files: the embedded CLIP on embedded tasks, fine-tuned at the first call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rmtllmf_jax.data.tasks import EMBEDDED_NAMES, validate_tasks
from rmtllmf_jax.runs.config import configure
from rmtllmf_jax.runs.environment import default_cache, use_compilation_cache
from rmtllmf_jax.runs.folder import working_in
from rmtllmf_jax.runs.run import Run, open_run
from rmtllmf_jax.runs.users import train_users
from rmtllmf_jax.training.recipes import DEMO
from rmtllmf_jax.training.task_models import FineTuned


def embedded_run(
    tasks: Sequence[str] = EMBEDDED_NAMES, *, seed: int = 0, folder: Path | None = None
) -> Run:
    """Return users of the embedded model and tasks, like those of `rmtllmf reproduce demo`.

    Nothing is downloaded. The first call fine-tunes, some ten seconds per task on two cores, and
    later ones read the folder; a killed one resumes.

    **Arguments:**

    - `tasks`: from `data.EMBEDDED_NAMES`.
    - `seed`: of the fine-tuning.
    - `folder`: a run folder; by default one per seed in the user's cache folder.

    **Raises:** `InputError` for an unknown task, or if another process works in the folder.
    """
    names = tuple(sorted(validate_tasks(tuple(tasks), EMBEDDED_NAMES)))
    cache = default_cache()
    use_compilation_cache(cache)
    folder = folder or cache / "embedded" / f"seed-{seed}"
    config = configure(
        DEMO.model,
        source=DEMO.source,
        prompts=DEMO.prompts,
        image_size=DEMO.image_size,
        fit=DEMO.fit,
        normalise=DEMO.normalise,
        seed=seed,
    )
    with working_in(folder):
        backbone, base = config.load_model()
        models = FineTuned(backbone, base, DEMO.finetune, seed)
        data = config.load_tasks(names, cache)
        train_users(backbone, base, data, config, models, folder)
    return open_run(folder, names)
