"""`rmtllmf reproduce`: the whole pipeline, from images to figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_origin, get_type_hints

import tyro

from rmtllmf_jax.cli.finetune import Finetune, finetune, tasks_of
from rmtllmf_jax.cli.options import DryRunOptions, SweepOptions
from rmtllmf_jax.cli.report import report
from rmtllmf_jax.cli.sweep import check, sweep
from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.data.tasks import TASK_NAMES, TEXT_NAMES
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.runs.folder import working_in
from rmtllmf_jax.training.recipes import DEMO, DEMO_LM, RUN_RECIPES, RunRecipe, TextRecipe

_OF_RECIPE = ("model", "source", "tasks", "prompts", "image_size", "fit", "normalise")
_OF_TEXTS = ("model", "texts", "length")
DEMO_NAME, DEMO_LM_NAME, VIT = "demo", "demo-lm", "vit-tiny"
RECIPES = (DEMO_NAME, DEMO_LM_NAME, VIT, *RUN_RECIPES)

DEMO_SWEEP: dict[str, Any] = {
    "combinations": "2",
    "sizes": (2, 4, 8),
    "draws": 8,
    "repaired_draws": 5,
    "c0": -29.0,
    "control_learning_rate": 1e-3,
    "scale": "validation",
    "validation_samples": 60,
    "eval_samples": 100,
}
"""What the recipe `demo` sets besides its `RunRecipe`: a few cells of every kind.

c0 is the most noise, in whole dB, at which R-MTLLMF does not measurably lose to the control under
either attack with eight tasks (experiments/noise_scale.py); at -30 dB it does.
"""

DEMO_LM_SWEEP: dict[str, Any] = {
    "tasks": TEXT_NAMES,
    "combinations": "2",
    "sizes": (2, 4),
    "protections": ("none", "realign", "r-mtllmf", "phy", "holistic", "control"),
    "draws": 6,
    "repaired_draws": 5,
    "c0": -22.0,
    "shots": 16,
    "scale": "validation",
    "validation_samples": 24,
    "eval_samples": 32,
    "eval_batch_size": 32,
}
"""What the recipe `demo-lm` sets besides its `TextRecipe`."""

VIT_IMAGES: dict[str, Any] = {"image_size": 64, "tasks": TASK_NAMES}
"""What the recipe `vit-tiny` sets."""

QUICK: dict[str, Any] = {
    "steps": 100,
    "batch_size": 32,
    "combinations": "1",
    "eval_samples": 100,
    "validation_samples": 50,
    "realign_steps": 20,
}
"""What `--quick` sets: minutes in place of hours on two cores."""


@dataclass(kw_only=True)
class Reproduce(Finetune, SweepOptions, DryRunOptions):
    """Fine-tune, transmit, merge, protect, evaluate and report; resumes where it stopped.

    Examples: rmtllmf reproduce demo --out runs/demo;
    rmtllmf reproduce demo-lm --out runs/demo-lm;
    rmtllmf reproduce paper --out runs/paper;
    rmtllmf reproduce vit-tiny --model MODEL --data DATA --out runs/a --quick
    """

    recipe: tyro.conf.Positional[str]
    """What to reproduce: demo (the small CLIP and the eight small tasks that come with the program:
    minutes, no download), demo-lm (the same with a small language model and four text tasks),
    paper, task_vectors, fusion_bench or peta (CLIP ViT-B/16 and the eight tasks from the Hugging
    Face hub, by the recipe of that name), or vit-tiny (a Hugging Face ViT with closed-form heads).
    The recipe sets the defaults of the options below."""
    quick: bool = False
    """Use fewer steps, samples and combinations: at most 30 minutes on two cores with a ViT-Ti.
    Options given explicitly keep their values."""

    def run(self) -> None:
        """Run the sub-command."""
        self.require_dry_run()
        from rmtllmf_jax.runs import RunConfig, TextRunConfig, open_run

        self.tasks = tasks_of(self)
        of = RunConfig if self.texts is None else TextRunConfig
        settings, grid = check(self, self.tasks, of.metric)
        if self.dry_run:
            from rmtllmf_jax.cli.plan import dry_run

            dry_run(self, settings, grid)
            return

        use_compilation_cache(self.cache_dir)
        with working_in(self.out):
            finetune(self)
            run = open_run(self.out, self.tasks, cache_dir=self.cache_dir, remat=self.remat)
            sweep(self, run)
            report(self.out)


def changed_defaults(argv: Sequence[str]) -> dict[str, Any]:
    """Return what the recipe and `--quick` on a command line make of the options' defaults.

    So that options given beside them win, and `--help` shows the truth.

    **Raises:** `InputError` for a recipe that there is not.
    """
    recipe = recipe_in(argv[1:])
    changes = {} if recipe is None else recipe_options(require_known("recipe", recipe, RECIPES))
    return changes | (QUICK if "--quick" in argv else {})


def recipe_in(words: Sequence[str]) -> str | None:
    """Return the first of the words that is neither an option nor the value of one."""
    hints = get_type_hints(Reproduce) | {"for": str}
    takes = 0.0  # values that the option before may still have
    for word in words:
        name = word.lstrip("-").replace("-", "_")
        if word.startswith("--"):
            kind = hints.get(name, bool)  # with =, no- or of the command line itself: no value
            takes = math.inf if get_origin(kind) is tuple else 0 if kind is bool else 1
        elif takes:
            takes -= 1
        elif not word.startswith("-"):
            return word
    return None


def recipe_options(name: str) -> dict[str, Any]:
    """Return the options that a recipe sets."""
    if name == VIT:
        return VIT_IMAGES
    known: dict[str, RunRecipe | TextRecipe] = {DEMO_NAME: DEMO, DEMO_LM_NAME: DEMO_LM}
    recipe = (known | RUN_RECIPES)[name]
    chosen = _OF_TEXTS if name == DEMO_LM_NAME else _OF_RECIPE
    options = {option: getattr(recipe, option) for option in chosen} | asdict(recipe.finetune)
    for option in ("steps", "batch_size", "learning_rate"):
        options[f"realign_{option}"] = getattr(recipe.realign, option)
    return options | {DEMO_NAME: DEMO_SWEEP, DEMO_LM_NAME: DEMO_LM_SWEEP}.get(name, {})
