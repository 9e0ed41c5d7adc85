"""A stage of a sweep: each job is done once, by any process, whatever interruptions occur."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.interrupts import interrupts_held
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.program import program
from rmtllmf_jax.sweep.trackers import Tracker

_NOTICE = "rmtllmf: finishing the running cells; Ctrl-C, or the signal again, drops them."
_POLL = 2.0  # seconds
_log = logging.getLogger(__name__)


class Stage:
    """What the stages of a sweep share: engine, store, and receivers of the progress."""

    def __init__(self, engine: Engine, folder: Path | str, tracker: Tracker | None = None) -> None:
        self.engine, self.folder, self.tracker = engine, folder, tracker
        every = 60.0 if "://" in str(self.folder) else 10.0  # an object store: few, large parts
        self.parts = CellStore(
            self.folder,
            process=engine.layout.process,
            every=every,
            program=program(engine.layout.devices[0]),
        )
        self._poll = _POLL * every / 10
        self._steps = 0
        self._samples = "rows" if engine.inputs.heads is None else "images"
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}

    def __enter__(self) -> Stage:
        """Return itself."""
        return self

    def __exit__(self, *ending: Any) -> None:
        """Write finished work, whatever ended the block."""
        self.parts.__exit__(*ending)

    def complete(self, jobs: Sequence[Job], description: str) -> None:
        """Do this process's share of the remaining jobs, and wait for the shares of the others.

        All processes are given the same jobs. When this returns, all jobs are in `parts`.
        """
        mine = self.engine.layout.mine(jobs)
        missing = [job for job in mine if job.hash not in self.parts]
        seen, images, started = 0, 0, time.monotonic()
        with progress_bar(description, len(mine), len(mine) - len(missing), unit="cells") as bar:
            while missing:  # a signal that ends nothing lets the rest be done
                with interrupts_held(_NOTICE) as stopped:
                    for chunk in self.engine.run(missing, stopped):
                        before = images
                        finished = {}
                        for job, sums in chunk:
                            uplink = self.engine.uplinks.columns(job.cell)
                            finished[job.hash] = job.rows(sums, self.engine.metric, uplink)
                            images += sum(self.engine.samples(t, job.split).count for t in sums)
                        self.parts.add_all(finished)
                        seen += len(chunk)
                        bar(len(chunk), **{self._samples: images - before})
                        self._tell(description, len(chunk), seen, images, started)
                missing = [job for job in missing if job.hash not in self.parts]
        self.parts.flush()
        self._wait(jobs, description)

    def score(self, job: Job, task: str) -> float:
        """Return the score of a finished job's model on a task."""
        score: float = self.row(job, task)["score"]
        return score

    def row(self, job: Job, task: str) -> dict[str, Any]:
        """Return a finished job's row for a task, as written by the program that computed it."""
        if job.hash not in self._rows:
            self._rows[job.hash] = {row["task"]: row for row in self.parts[job.hash]}
        return self._rows[job.hash][task]

    def _tell(self, description: str, cells: int, seen: int, images: int, started: float) -> None:
        if self.tracker is None:
            return
        self._steps += cells
        seconds = time.monotonic() - started
        speeds = {"cells a second": seen / seconds, f"{self._samples} a second": images / seconds}
        self.tracker.log(self._steps, {f"{description}/{k}": v for k, v in speeds.items()})

    def _wait(self, jobs: Sequence[Job], description: str) -> None:
        """Read what other processes write, until nothing is missing."""
        said, layout = float("-inf"), self.engine.layout
        while missing := {job.hash for job in jobs if job.hash not in self.parts}:
            if time.monotonic() - said >= 60:
                theirs = {
                    number: sum(job.hash in missing for job in layout.share(jobs, number))
                    for number in range(layout.processes)
                }
                _log.warning(
                    "%s: waiting for %s. A process that has gone is started again by its own "
                    "command; the others go on waiting.",
                    description,
                    ", ".join(f"{n:,} cells of process {p}" for p, n in theirs.items() if n),
                )
                said = time.monotonic()
            time.sleep(self._poll)
            self.parts.refresh()
