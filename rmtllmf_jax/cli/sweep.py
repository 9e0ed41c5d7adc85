"""`rmtllmf sweep`: transmit, merge, protect and evaluate every cell of a grid."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtllmf_jax.cli.environment import provenance, use_compilation_cache
from rmtllmf_jax.cli.options import Cache, Out, SweepOptions, default_cache
from rmtllmf_jax.cli.run_folder import working_in

if TYPE_CHECKING:
    from rmtllmf_jax.sweep.grid import Grid
    from rmtllmf_jax.sweep.settings import Settings


@dataclass(kw_only=True)
class Sweep(SweepOptions):
    """Send the task vectors of a run folder over the channel, merge, protect and evaluate them.

    Example: rmtllmf sweep --out runs/a --combinations 3 --draws 2 --scale validation
    """

    out: Out
    tasks: tuple[str, ...] = ()
    """Tasks; none means all that were fine-tuned in the run folder."""
    seed: int = 0
    """Root of channel, noise, few-shot samples and evaluation subsets."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        use_compilation_cache(self.cache_dir)
        with working_in(self.out):
            sweep(self, self.out, self.tasks, self.seed, self.cache_dir)


def settings_of(options: SweepOptions, seed: int) -> Settings:
    """Return the library's settings for the options.

    **Raises:** `InputError` for an option that cannot be used.
    """
    from rmtllmf_jax.sweep.settings import Settings
    from rmtllmf_jax.training.recipes import REALIGN, Recipe

    return Settings(
        preset=options.preset,
        order=options.order,
        error_model=options.error_model,
        scale=options.scale,
        c0_db=options.c0,
        kappa=options.kappa,
        eval_samples=options.eval_samples,
        validation_samples=options.validation_samples,
        shots=options.shots,
        eval_batch_size=options.eval_batch_size,
        seed=seed,
        realign=Recipe(
            options.realign_steps,
            options.realign_batch_size,
            options.realign_learning_rate,
            REALIGN.weight_decay,
        ),
    )


def grid_of(options: SweepOptions, tasks: tuple[str, ...], seed: int) -> Grid:
    """Return the library's grid for the options.

    **Raises:** `InputError` for an unknown scenario or protection, for one that the preset cannot
    have, or for an empty grid.
    """
    from rmtllmf_jax.channel import SCENARIOS, DirectPreset, get_preset
    from rmtllmf_jax.common.errors import require_known
    from rmtllmf_jax.resilience import PROTECTIONS
    from rmtllmf_jax.sweep.grid import Grid, choose_combinations

    preset = get_preset(options.preset)
    for scenario in options.scenarios:
        require_known("scenario", scenario, SCENARIOS)
        if isinstance(preset, DirectPreset):
            preset.require_no_attack(scenario)
    for protection in options.protections:
        require_known("protection", protection, PROTECTIONS)
    return Grid(
        choose_combinations(tasks, options.per_size(), seed),
        tuple(dict.fromkeys(options.scenarios)),
        tuple(dict.fromkeys(options.protections)),
        options.draws,
        options.seeds,
    )


def check(options: SweepOptions, tasks: tuple[str, ...], seed: int) -> tuple[Settings, Grid]:
    """Return settings and grid; bad options are refused before any long work begins."""
    settings = settings_of(options, seed)
    settings.channel(len(tasks))
    return settings, grid_of(options, tasks, seed)


def sweep(
    options: SweepOptions, out: Path, tasks: tuple[str, ...], seed: int, cache_dir: Path
) -> None:
    """Run the grid on a run folder's users and write its tables."""
    from rmtllmf_jax.cli.finetune import load_tasks, load_tower, require_same_weights
    from rmtllmf_jax.common.files import content_hash, write_json
    from rmtllmf_jax.data.tasks import validate_tasks
    from rmtllmf_jax.sweep.inputs import load_inputs
    from rmtllmf_jax.sweep.journal import Journal
    from rmtllmf_jax.sweep.run import run_grid
    from rmtllmf_jax.sweep.runner import Runner
    from rmtllmf_jax.sweep.tables import write_table
    from rmtllmf_jax.training.users import load_manifest

    started = time.time()
    setting, records = load_manifest(out)
    names = tuple(sorted(validate_tasks(tasks or tuple(records), records)))
    settings, grid = check(options, names, seed)
    require_same_weights(setting)
    backbone, base = load_tower(setting, options.remat)
    data = load_tasks(setting, names, cache_dir)
    inputs = load_inputs(out, backbone, base, data, records, setting.key())
    key = content_hash({"inputs": inputs.fingerprint, "settings": settings.key()})
    with Journal(out / "sweep" / f"{key}.jsonl") as journal:
        runner = Runner(inputs, settings, journal)
        tables = run_grid(runner, grid)
    if "scales" not in tables:
        (out / "scales.parquet").unlink(missing_ok=True)  # of another scale rule
    for name, rows in tables.items():
        write_table(out / f"{name}.parquet", rows)
    configuration: dict[str, Any] = {
        **provenance(),
        "tasks": names,
        "users": {"setting": asdict(setting), "recipe": records[names[0]].recipe},
        "settings": asdict(settings),
        "grid": asdict(grid),
        "scales": {row["size"]: row["scale"] for row in tables["results"] if row["scale"]},
        "journal": f"sweep/{key}.jsonl",
        "seconds": round(time.time() - started, 1),
    }
    write_json(out / "run.json", configuration)
