"""`rmtllmf report`: the page, figures and tables of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from rmtllmf_jax.cli.options import suggest


@dataclass
class Report:
    """Write a page with figures and tables from the results in a run folder.

    The page is index.html in the report folder.

    Example: rmtllmf report runs/a
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder with results.parquet."""
    out: Path | None = None
    """Folder of the report; by default the folder report in the run folder. Use it for a read-only
    run folder."""

    so_far: bool = False
    """Report on the finished cells of an incomplete sweep, running or stopped; tables and report
    are written to the folder so_far in the run folder."""

    def run(self) -> None:
        """Run the sub-command."""
        run = _so_far(self.run_folder) if self.so_far else self.run_folder
        report(run, self.out)


def _so_far(run: Path) -> Path:
    """Write the tables of what is finished of the sweep under way; return their folder."""
    from rmtllmf_jax.common.errors import InputError
    from rmtllmf_jax.common.files import read_json, write_json
    from rmtllmf_jax.runs.folder import UNDER_WAY
    from rmtllmf_jax.sweep.so_far import results_so_far
    from rmtllmf_jax.sweep.tables import write_table

    if not (run / UNDER_WAY).exists():
        raise InputError(f"{run / UNDER_WAY}: no such file; no sweep is under way here.")
    configuration = read_json(run / UNDER_WAY)
    store = configuration["store"]
    rows = results_so_far(store if "://" in store else str(run / store), configuration)
    cells = sum(1 / row["size"] for row in rows)
    configuration["so_far"] = f"{cells:.0f} of {configuration['cells']:,} cells"
    folder = run / "so_far"
    write_table(folder / "results.parquet", rows)
    write_json(folder / "run.json", configuration)
    return folder


def report(run: Path, out: Path | None = None) -> None:
    """Print the summary of a run folder and write its report, into `<run>/report` by default."""
    from rmtllmf_jax.report.io import read_results
    from rmtllmf_jax.report.terminal import print_summary
    from rmtllmf_jax.report.write import write_report

    results = read_results(run / "results.parquet")
    print_summary(results)
    written = write_report(run, out, results)
    for path in written:
        print(path)
    suggest(f"open {written[-1]} in a browser.")
