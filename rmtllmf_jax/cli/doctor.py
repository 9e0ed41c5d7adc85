"""`rmtllmf doctor`: is this data, and this checkpoint, what it should be?"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rmtllmf_jax.cli.help_text import Place
from rmtllmf_jax.cli.inputs import SetOptions
from rmtllmf_jax.cli.options import print_as_json, print_table
from rmtllmf_jax.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmtllmf_jax.data.doctor import Examination, Finding
    from rmtllmf_jax.models.checkup import Checkup, Fault

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(kw_only=True)
class Doctor(SetOptions):
    """Check data sets against the registry of 20 tasks, and a checkpoint against its config.

    Exit code 0 if no error was found, 1 if there was one.

    Example: rmtllmf doctor --data data --tasks dtd mnist --model models/vit
    """

    data: Place | None = None
    """Folder of the source; optional for `hub` and `tfds`; for `hub` it may be any data set,
    owner/name."""
    source: str | None = None
    """Where the images come from: hub, tfds, folder, arrays or embedded; folder if --data is
    given."""
    tasks: tuple[str, ...] = ()
    """Tasks; by default all that the source has, or for hub and tfds the eight of the
    literature."""
    near: int | None = None
    """Also report near duplicates of training images in test: perceptual hashes of 256 bits that
    differ in at most this many bits (10 is a good start)."""
    model: Place | None = None
    """Checkpoint to check: a Hugging Face directory (config.json and weights), or a hub id. With
    data: whether its text tower reads the prompts of their classes, too."""
    json: bool = False
    """Print JSON and nothing else: an object of `tasks` (a list of task, classes, splits and
    findings) and `model` (kind, tensors, parameters and faults; null without --model). A finding
    and a fault have level (error, warning or note), check, what and follows."""

    def run(self) -> None:
        """Run the sub-command."""
        if self.source is None and self.data is None:
            if self.model is None:
                raise InputError("nothing to check; give --data or --source, --model, or both.")
            if self.tasks or self.near is not None:
                raise InputError("--tasks and --near need data; give --data or --source.")
        examinations = self._examine()
        checkup = self._check_model()
        found: list[Finding | Fault] = [x for each in examinations for x in each.findings]
        found += () if checkup is None else checkup.faults
        levels = [str(each.level) for each in found]
        if self.json:
            model = None if checkup is None else asdict(checkup)
            everything = {"tasks": [asdict(each) for each in examinations], "model": model}
            print_as_json(everything)
        else:
            counts = [f"{levels.count(x)} {x}{'s' * (levels.count(x) != 1)}" for x in _COLOURS]
            print(", ".join(counts))
        if "error" in levels:
            sys.exit(1)

    def _examine(self) -> list[Examination]:
        """Check one task after the other, and print each as soon as it is done."""
        if self.source is None and self.data is None:
            return []
        from rmtllmf_jax.data.doctor import examine
        from rmtllmf_jax.data.sources import get_source
        from rmtllmf_jax.data.tasks import expand_tasks, validate_tasks

        tokens = None
        if self.model is not None:
            from rmtllmf_jax.models.checkup import prompt_reader

            with suppress(InputError):  # a fault of the model, which `check_model` reports
                tokens = prompt_reader(self.model)
        source = get_source(self.source or "folder", self.data, self.reading)
        known = source.tasks()
        examinations = []
        for task in validate_tasks(expand_tasks(self.tasks, known), known):
            examinations.append(examine(source, task, near=self.near, tokens=tokens))
            if not self.json:
                _print_examination(examinations[-1])
        return examinations

    def _check_model(self) -> Checkup | None:
        if self.model is None:
            return None
        from rmtllmf_jax.models.checkup import check_model

        checkup = check_model(self.model)
        if not self.json:
            tensors, parameters = f"{checkup.tensors} tensors", f"{checkup.parameters:,} parameters"
            print(f"{self.model}: {checkup.kind}, {tensors}, {parameters}")
            _print_findings(checkup.faults)
            print()
        return checkup


def _print_examination(examination: Examination) -> None:
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
    print_table(examination.task, header, rows)
    _print_findings(examination.findings)
    if not examination.findings:
        print("  nothing to report")
    print()


def _print_findings(findings: Sequence[Finding | Fault]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    for each in findings:
        if not console.is_terminal:  # whole lines for files and grep: paths in them stay whole
            print(f"  {each.level} {each.check}: {each.what}\n    -> {each.follows}")
            continue
        head = Text.assemble((each.level, _COLOURS[each.level]), f" {each.check}: {each.what}")
        console.print(Padding(head, (0, 0, 0, 2)))
        console.print(Padding(Text(f"-> {each.follows}"), (0, 0, 0, 4)))


def _range(values: tuple[int, int] | None) -> str:
    if values is None:
        return "-"
    low, high = values
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
