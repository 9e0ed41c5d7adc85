"""`rmtllmf report`: the page, figures and tables of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class Report:
    """Make a page with figures and tables from the tables of a run folder alone.

    The page is report/index.html in the run folder.

    Example: rmtllmf report runs/a
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder with results.parquet; the report goes into its folder report."""

    def run(self) -> None:
        """Run the sub-command."""
        report(self.run_folder)


def report(run: Path) -> None:
    """Print the summary and write the report of a run folder."""
    from rmtllmf_jax.report.tables import read_results
    from rmtllmf_jax.report.terminal import print_summary
    from rmtllmf_jax.report.write import write_report

    print_summary(read_results(run / "results.parquet"))
    for path in write_report(run):
        print(path)
