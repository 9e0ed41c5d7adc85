"""What a sweep says when a cell cannot be computed: the cell, and which options to change."""

from __future__ import annotations

from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences.protection import protection_name, split
from rmtllmf_jax.defences.repairs import Realign
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import Scenario, is_surrogate


def not_finite(job: Job, tasks: list[str], settings: Settings) -> str:
    """Return which cell's model is broken, and which options may be the cause."""
    cell, stages = job.cell, settings.stages(job.cell.protection)
    fuse, _, repairs = split(stages.repairs)
    suspects = []
    if job.kind == "merged" and fuse:
        suspects.append(f"--scale (here {job.scale:g})")
        if Scenario(cell.scenario).attack and is_surrogate(settings.carrier(stages)):
            kappa = f"{settings.c0_db:g} dB" if settings.kappa is None else f"{settings.kappa:g}"
            suspects.append(f"{'--c0' if settings.kappa is None else '--kappa'} (here {kappa})")
    rates = [repair.learning_rate for repair in repairs if isinstance(repair, Realign)]
    own = not fuse and settings.control_learning_rate is not None
    option = "--control-learning-rate" if own else "--realign-learning-rate"
    suspects += [f"{option} (here {rate:g})" for rate in rates]
    name = f"{protection_name(cell.protection)}, {described(cell.rule)}"
    what = job.kind if job.kind != "merged" else name
    level = "" if cell.level is None else f", {cell.axis} {cell.level:g}"
    return (
        f"cell {'+'.join(cell.combination)}, {what}, {cell.scenario}{level}, draw {cell.draw}, "
        f"seed {cell.seed}: the model's outputs are not finite on samples of "
        f"{', '.join(tasks)}, so that it has no score. Look at "
        f"{' and '.join(suspects) or 'the weights'}; finished cells are kept."
    )


def out_of_memory(cells_at_once: int, error: Exception) -> str:
    """Return which option takes less memory."""
    reason = str(error).splitlines()[0]
    if cells_at_once > 1:
        return (
            f"a device ran out of memory with --cells-at-once {cells_at_once} ({reason}); "
            f"--cells-at-once {cells_at_once // 2} takes about half of what a chunk takes. "
            "Finished cells are kept."
        )
    return (
        f"a device ran out of memory with a single cell at once ({reason}): take a smaller "
        "--eval-batch-size or --realign-batch-size, or --remat. Finished cells are kept."
    )
