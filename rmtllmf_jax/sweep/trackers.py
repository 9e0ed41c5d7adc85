"""Curves of a running sweep for TensorBoard or Weights & Biases, off unless asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rmtllmf_jax.common.errors import InputError, first_line, require_known
from rmtllmf_jax.common.extras import needed_by

Configuration = Mapping[str, Any]


@runtime_checkable
class Tracker(Protocol):
    """Takes numbers under names, step by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step; steps never decrease."""
        ...

    def close(self) -> None:
        """Store what is recorded; nothing is logged after it."""
        ...


class TensorBoard:
    """Event files in the sub-folder `tensorboard`, written by tensorboardX without TensorFlow.

    A sweep that resumes adds a file, and TensorBoard shows both as one curve. The configuration is
    a text under the name `configuration`.
    """

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        with needed_by("the tracker tensorboard"):
            from tensorboardX import SummaryWriter
        try:
            self._writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=30)
        except OSError as error:
            raise InputError(
                f"{folder / 'tensorboard'}: cannot be written ({error.strerror})."
            ) from error
        text = json.dumps(configuration, indent=2, default=str)
        self._writer.add_text("configuration", f"```json\n{text}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is recorded."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb with its files in the sub-folder `wandb`.

    Entity, run name, mode and everything else come from wandb's own variables: `WANDB_PROJECT`
    (`rmtllmf` without it), `WANDB_MODE=offline`, `WANDB_RUN_ID` with `WANDB_RESUME=allow` to
    continue a run.
    """

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        with needed_by("the tracker wandb"):
            import wandb
        folder.mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", "rmtllmf")
        try:
            self._run = wandb.init(project=project, dir=str(folder), config=dict(configuration))
        except wandb.Error as error:
            raise InputError(
                f"wandb cannot start ({first_line(error)}). Log in with `wandb login`, or set "
                "WANDB_MODE=offline."
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is recorded."""
        self._run.finish()


class _Several:
    """Passes everything to zero or more trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


TRACKERS: dict[str, Callable[[Path, Configuration], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
"""Trackers by the name of their option and extra."""


@contextmanager
def get_tracker(
    names: Sequence[str], folder: str | os.PathLike[str], configuration: Configuration
) -> Iterator[Tracker]:
    """Yield one tracker that passes everything to those called `names`, of which there may be none.

    `folder` is that of the run, on this machine. All are closed at the end, even after an error.

    **Raises:** `InputError` for an unknown name, a folder that is a URL, or a tracker whose package
    is not installed; the extra to install is named.
    """
    chosen = {require_known("tracker", name, TRACKERS): TRACKERS[name] for name in names}
    if chosen and "://" in os.fspath(folder):
        raise InputError(
            f"{os.fspath(folder)}: trackers ({', '.join(chosen)}) write to a local folder."
        )
    with ExitStack() as stack:
        trackers = []
        for make in chosen.values():
            trackers.append(make(Path(folder), configuration))
            stack.callback(trackers[-1].close)
        yield _Several(trackers)
