"""`rmtllmf report`: the page, figures and tables of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class Report:
    """Make a page with figures and tables from the tables of a run folder alone.

    The page is index.html in the folder of the report.

    Example: rmtllmf report runs/a
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder with results.parquet."""
    out: Path | None = None
    """Folder of the report; by default the folder report in the run folder. For a run folder that
    may be read alone."""

    def run(self) -> None:
        """Run the sub-command."""
        report(self.run_folder, self.out)


def report(run: Path, out: Path | None = None) -> None:
    """Print the summary of a run folder and write its report, into `<run>/report` by default."""
    from rmtllmf_jax.report.tables import read_results
    from rmtllmf_jax.report.terminal import print_summary
    from rmtllmf_jax.report.write import write_report

    print_summary(read_results(run / "results.parquet"))
    for path in write_report(run, out):
        print(path)
