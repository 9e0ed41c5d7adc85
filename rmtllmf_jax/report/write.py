"""A run folder's report, written beside its tables."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json, write_bytes
from rmtllmf_jax.report.figures import cosine_figure, figure_2
from rmtllmf_jax.report.markdown import page
from rmtllmf_jax.report.tables import read_cosines, read_results, summary
from rmtllmf_jax.report.weak import weak_tasks, without_weak_tasks

_HEAT_MAPS = {"figure_3": "ideal", "figure_4": "sum_rate"}


def write_report(run: Path) -> list[Path]:
    """Write `<run>/report/` from `results.parquet`, `cosines.parquet` and `run.json` of a run.

    Returns the files written: `figure_2` (and `figure_2_informative`, without the tasks that
    fine-tuning did not teach, if there are such), `figure_3` (cosines, ideal) and `figure_4`
    (cosines, sum rate) as PNG and SVG, `summary.md` and `summary.csv`. A figure whose scenario the
    tables lack is skipped, its older files removed, and `summary.md` says why. Same tables, same
    bytes.

    **Raises:** `InputError` that names the file if a table is missing (`cosines.parquet` and
    `run.json` may be) or cannot be used.
    """
    results = read_results(run / "results.parquet")
    configuration = read_json(run / "run.json") if (run / "run.json").exists() else {}
    if not isinstance(configuration, dict):
        raise InputError(f"{run / 'run.json'}: expected a JSON object, got {configuration!r}.")
    figures, skipped = _figures(run, results)

    files: dict[str, bytes] = {}
    for stem, figure in figures.items():
        files[f"{stem}.png"] = _image(figure, "png")
        files[f"{stem}.svg"] = _image(figure, "svg")
    reasons = list(skipped.values())
    name = run.resolve().name
    files["summary.md"] = page(name, results, configuration, list(figures), reasons).encode()
    files["summary.csv"] = summary(results).to_csv(index=False, lineterminator="\n").encode()

    folder = run / "report"
    for stem in {"figure_2_informative", *skipped} - figures.keys():
        for suffix in (".png", ".svg"):
            (folder / f"{stem}{suffix}").unlink(missing_ok=True)
    for file, data in files.items():
        write_bytes(folder / file, data)
    return [folder / file for file in files]


def _figures(run: Path, results: pd.DataFrame) -> tuple[dict[str, Figure], dict[str, str]]:
    figures: dict[str, Figure] = {}
    skipped: dict[str, str] = {}
    if (results["protection"] != "control").any():
        figures["figure_2"] = figure_2(results)
        weak, informative = weak_tasks(results), without_weak_tasks(results)
        if weak and (informative["protection"] != "control").any():
            figures["figure_2_informative"] = figure_2(informative, f"without {', '.join(weak)}")
    else:
        skipped["figure_2"] = "figure_2 skipped: results.parquet holds control rows only."
    path = run / "cosines.parquet"
    cosines = read_cosines(path) if path.exists() else None
    for stem, scenario in _HEAT_MAPS.items():
        if cosines is None:
            skipped[stem] = f"{stem} skipped: the run has no cosines.parquet."
        elif scenario not in set(cosines["scenario"]):
            skipped[stem] = f"{stem} skipped: cosines.parquet has no scenario {scenario}."
        else:
            figures[stem] = cosine_figure(cosines, scenario)
    return figures, skipped


def _image(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    dateless = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "rmtllmf"}):
        figure.savefig(buffer, format=kind, dpi=200, metadata=dateless)
    return buffer.getvalue()
