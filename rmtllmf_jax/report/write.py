"""A run folder's report, written beside its tables."""

from __future__ import annotations

from pathlib import Path

from rmtllmf_jax.common.files import write_bytes
from rmtllmf_jax.report.io import (
    find,
    read_configuration,
    read_cosines,
    read_results,
    read_scales,
)
from rmtllmf_jax.report.pages import Report, html_page, markdown_page
from rmtllmf_jax.report.paper import paper_sheet
from rmtllmf_jax.report.plates import STEMS, plates
from rmtllmf_jax.report.sheets import all_sheets, scale_sheets
from rmtllmf_jax.report.style import KINDS, image_bytes
from rmtllmf_jax.report.tables import summary
from rmtllmf_jax.report.verdict import verdict


def write_report(run: Path, folder: Path | None = None) -> list[Path]:
    """Write a report, into `<run>/report/` by default, from the tables of a run and `run.json`.

    Returns the files written: `index.html` (one page that needs no other file), the figures as PNG,
    SVG and PDF, `summary.md` and `summary.csv`. The figures: `figure_2` (one per merge method, if
    there are several; `_informative`: without the tasks that fine-tuning failed to teach, if any),
    `axis_<name>` along an axis, `figure_3` (cosines, ideal), `figure_4` (cosines, sum rate),
    `figure_5` (the halves of R-MTLLMF, where it has both) and `scale_law`. A figure that the tables
    do not allow is skipped, its older files are removed, and the pages say why. The same tables
    give the same bytes.

    **Raises:** `InputError` that names the file if a table is missing (`cosines.parquet`,
    `scales.parquet` and `run.json` are optional) or cannot be used.
    """
    results = read_results(run / "results.parquet")
    cosines, scales = (
        read(path) if (path := run / f"{name}.parquet").exists() else None
        for name, read in (("cosines", read_cosines), ("scales", read_scales))
    )
    configuration = read_configuration(run)

    said = verdict(results)
    if so_far := find(configuration, "so_far"):
        said.insert(0, f"The sweep is not finished: everything below covers {so_far}.")
    report = Report(
        run.resolve().name,
        said,
        *plates(results, cosines, scales, find(configuration, "shots")),
        [*all_sheets(results, spread=True), *scale_sheets(results, scales)],
        paper_sheet(results, cosines, configuration),
        configuration,
    )
    files: dict[str, bytes] = {}
    for plate in report.plates:
        for kind in KINDS:
            files[f"{plate.stem}.{kind}"] = image_bytes(plate.figure, kind)
    svg = {plate.stem: files[f"{plate.stem}.svg"].decode() for plate in report.plates}
    files["summary.md"] = markdown_page(report).encode()
    files["summary.csv"] = summary(results).to_csv(index=False, lineterminator="\n").encode()
    files["index.html"] = html_page(report, svg).encode()

    folder = run / "report" if folder is None else folder
    for pattern in STEMS:
        for kind in KINDS:
            for file in folder.glob(f"{pattern}.{kind}"):
                if file.name not in files:
                    file.unlink()
    for file_name, data in files.items():
        write_bytes(folder / file_name, data)
    return [folder / file_name for file_name in files]
