"""A run's measurements of the quantities that the paper prints, from its tables alone.

Only the paper's setting counts: task arithmetic, and no axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rmtllmf_jax.report.provenance import find
from rmtllmf_jax.report.reading import completed
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.report.weak import weak_tasks, without_weak_tasks

_PAIR = ["combination", "draw", "seed"]


@dataclass(frozen=True)
class Facts:
    """The tables and the configuration of a run, in terms of the paper's quantities."""

    results: pd.DataFrame
    """Rows of task arithmetic without an axis, and the controls; may be empty."""
    cosines: pd.DataFrame | None
    run: Mapping[str, Any]
    """The content of `run.json`."""

    @classmethod
    def of(
        cls, results: pd.DataFrame, cosines: pd.DataFrame | None, run: Mapping[str, Any]
    ) -> Facts:
        """Return the facts of a run's tables."""
        results = completed(results)
        merged = (results["rule"] == "task_arithmetic") & (results["axis"] == "")
        results = results[merged | (results["protection"] == "control")]
        if cosines is not None:
            cosines = completed(cosines)
            cosines = cosines[cosines["axis"] == ""]
        return cls(results, cosines, run)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, see `tables.cell_scores`."""
        return cell_scores(self.results)

    @cached_property
    def weak(self) -> list[str]:
        """The tasks that fine-tuning failed to teach."""
        return weak_tasks(self.results) if len(self.results) else []

    @cached_property
    def informative(self) -> Facts | None:
        """The same without weak tasks; `None` if no task or every task is weak."""
        rest = without_weak_tasks(self.results) if self.weak else self.results.iloc[:0]
        return Facts(rest, self.cosines, self.run) if len(rest) else None

    def scores(self, scenario: str, protection: str) -> np.ndarray:
        """Average normalised accuracy of the cells of a kind, fractions."""
        cells = self.cells
        chosen = (cells["scenario"] == scenario) & (cells["protection"] == protection)
        return cells.loc[chosen, "score"].to_numpy(float)

    def pairs(self, first: tuple[str, str], second: tuple[str, str]) -> np.ndarray:
        """(pairs, 2): scores of matching cells of two kinds (scenario, protection).

        A clean merge without randomness has one draw and one seed, which then stand for all.
        """
        keys = [key for key in _PAIR if "clean" not in (first[0], second[0]) or key != "draw"]
        sides = []
        for scenario, protection in (first, second):
            cells = self.cells
            chosen = (cells["scenario"] == scenario) & (cells["protection"] == protection)
            sides.append(cells[chosen])
        if "draw" not in keys and any(side["seed"].nunique() == 1 for side in sides):
            keys = ["combination"]
        both = sides[0][[*keys, "score"]].merge(sides[1][[*keys, "score"]], on=keys)
        return both[["score_x", "score_y"]].to_numpy(float)

    @cached_property
    def _user_mse(self) -> pd.DataFrame:
        """The MSE of each task's user: one row per (scenario, draw, seed), one column per task."""
        rows = self.results[self.results["protection"] != "control"]
        keys = ["scenario", "draw", "seed"]
        return rows.pivot_table(index=keys, columns="task", values="mse", aggfunc="first").dropna()

    def user_mse(self, scenario: str) -> pd.DataFrame:
        """(draws, users): MSE of each user in each channel draw; empty without the scenario."""
        table = self._user_mse
        table = table[table.index.get_level_values("scenario") == scenario]
        return (
            table.reset_index(["scenario", "seed"], drop=True)
            .reset_index()
            .drop_duplicates()
            .set_index("draw")
        )

    def attacked_mse(self) -> np.ndarray | None:
        """MSE of the attacked user in every draw of `strongest_user`.

        It is the user whose MSE grows most relative to the ideal uplink in the same draw; `None` if
        the run lacks one of the two scenarios.
        """
        attacked, ideal = (self.user_mse(name) for name in ("strongest_user", "ideal"))
        if attacked.empty or list(attacked.index) != list(ideal.index):
            return None
        values = attacked.to_numpy(float)
        worst = np.argmax(values / ideal.to_numpy(float), axis=1)
        return values[np.arange(len(values)), worst]

    @property
    def c0_db(self) -> float | None:
        """Parameter-domain SNR in dB of a user with MSE 1; `None` where it was not used."""
        symbols = find(self.run, "transport") not in (None, "gaussian")
        value = None if symbols or find(self.run, "kappa") is not None else find(self.run, "c0_db")
        return None if value is None else float(value)

    def worst_snr_db(self, scenario: str) -> np.ndarray:
        """-10 log10(max_q mu_q) + c0 of every draw, in dB; empty where it is not defined."""
        mse = self.user_mse(scenario)
        if mse.empty or self.c0_db is None or not (mse > 0).all(axis=None):
            return np.array([])
        return -10 * np.log10(mse.to_numpy(float).max(axis=1)) + self.c0_db

    def pair_cosines(self, scenario: str, protections: tuple[str, ...]) -> pd.Series:
        """Cosine of each pair of tasks, mean over draws and seeds, of the first protection there.

        Empty if the run has none of them.
        """
        empty = pd.Series(dtype=float)
        if self.cosines is None:
            return empty
        rows = self.cosines[self.cosines["scenario"] == scenario]
        rows = rows[rows["task_a"] < rows["task_b"]]
        for protection in protections:
            chosen = rows[rows["protection"] == protection]
            if len(chosen):
                return chosen.groupby(["task_a", "task_b"])["cosine"].mean()
        return empty
