"""`rmtllmf doctor`: is this data, and this checkpoint, what it should be?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmtllmf_jax.cli.help_text import Place
from rmtllmf_jax.common.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from rmtllmf_jax.data.doctor import Examination
    from rmtllmf_jax.data.source import Source
    from rmtllmf_jax.models.checkup import Checkup

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(kw_only=True)
class Doctor:
    """Check data sets against the eight tasks' registry, and a checkpoint against its config.

    Exit code 0 if no error was found, 1 if there was one.

    Example: rmtllmf doctor --data data --tasks dtd mnist --model models/vit
    """

    data: Path | None = None
    """Folder of the source; `hub` and `tfds` do without."""
    source: str | None = None
    """Where the images come from: hub, tfds, folder, arrays or embedded; folder if --data is
    given."""
    tasks: tuple[str, ...] = ()
    """Tasks; by default all that the source has."""
    near: int | None = None
    """Also report test images that are nearly those of train: at most this many of 256 bits of a
    perceptual hash apart (10 is a good start)."""
    model: Place | None = None
    """Checkpoint to check: a Hugging Face directory (config.json and weights), or a hub id."""
    json: bool = False
    """Print JSON and nothing else: an object of `tasks` (a list of task, classes, splits and
    findings) and `model` (kind, tensors, parameters and faults; null without --model). A finding
    has level (error, warning or note), check, task, what and follows; a fault the same but task."""

    def run(self) -> None:
        """Run the sub-command."""
        source = _source(self.source, self.data)
        if source is None and self.model is None:
            raise InputError("nothing to check; give --data or --source, --model, or both.")
        if source is None and (self.tasks or self.near is not None):
            raise InputError("--tasks and --near need data; give --data or --source.")
        examinations = [] if source is None else _examine(source, self.tasks, self.near, self.json)
        checkup = None if self.model is None else _check_model(self.model, self.json)
        levels: list[str] = [each.level for found in examinations for each in found.findings]
        levels += [] if checkup is None else [fault.level for fault in checkup.faults]
        if self.json:
            model = None if checkup is None else asdict(checkup)
            everything = {"tasks": [asdict(each) for each in examinations], "model": model}
            print(json.dumps(everything, indent=2, allow_nan=False))
        else:
            counts = [f"{levels.count(x)} {x}{'s' * (levels.count(x) != 1)}" for x in _COLOURS]
            print(", ".join(counts))
        if "error" in levels:
            sys.exit(1)


def _source(name: str | None, data: Path | None) -> Source | None:
    if name is None and data is None:
        return None
    from rmtllmf_jax.data.sources import get_source

    return get_source(name or "folder", data)


def _examine(
    source: Source, tasks: tuple[str, ...], near: int | None, quiet: bool
) -> list[Examination]:
    """Check one task after the other, and print each as soon as it is done."""
    from rmtllmf_jax.data.doctor import examine
    from rmtllmf_jax.data.tasks import validate_tasks

    known = source.tasks()
    examinations = []
    for task in validate_tasks(tasks or known, known):
        examinations.append(examine(source, task, near=near))
        if not quiet:
            _print_examination(examinations[-1])
    return examinations


def _check_model(model: str, quiet: bool) -> Checkup:
    from rmtllmf_jax.models.checkup import check_model

    checkup = check_model(model)
    if not quiet:
        from rich.console import Console

        console = Console()
        console.print(
            f"{model}: {checkup.kind}, {checkup.tensors} tensors, "
            f"{checkup.parameters:,} parameters",
            markup=False,
            highlight=False,
        )
        for fault in checkup.faults:
            _print_finding(console, fault.level, fault.check, fault.what, fault.follows)
        console.print()
    return checkup


def _print_examination(examination: Examination) -> None:
    from rich.console import Console

    from rmtllmf_jax.report.sheets import Sheet
    from rmtllmf_jax.report.terminal import print_sheet

    console = Console()
    rows = [
        [
            split,
            str(examination.classes or "-"),
            f"{figures.images:,}",
            "-" if figures.full is None else f"{figures.full:,}",
            _range(figures.images_a_class),
            _range(figures.shorter_side),
            _range(figures.longer_side),
        ]
        for split, figures in examination.splits.items()
    ]
    header = ["split", "classes", "images", "at full size", "a class", "shorter px", "longer px"]
    print_sheet(Sheet(examination.task, header, rows), console)
    for finding in examination.findings:
        _print_finding(console, finding.level, finding.check, finding.what, finding.follows)
    if not examination.findings:
        console.print("  nothing to report", highlight=False)
    console.print()


def _print_finding(console: Console, level: str, check: str, what: str, follows: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if not console.is_terminal:  # whole lines for files and grep: paths in them stay whole
        print(f"  {level} {check}: {what}\n    -> {follows}")
        return
    head = Text.assemble((level, _COLOURS[level]), f" {check}: {what}")
    console.print(Padding(head, (0, 0, 0, 2)))
    console.print(Padding(Text(f"-> {follows}"), (0, 0, 0, 4)))


def _range(values: tuple[int, int] | None) -> str:
    if values is None:
        return "-"
    low, high = values
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
