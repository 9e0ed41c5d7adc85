"""The main job on eight real tasks with ViT-Ti/16 at 64 pixels, sized for two CPU cores.

    python experiments/main_job.py MODEL DATA runs/vit-tiny

runs `rmtllmf reproduce vit-tiny` with the options below (goes on where it was stopped) and copies
its tables and figures to results/main_job/. All 247 combinations, on a machine that is fast enough:
`--all`.

CLAIM_PLACEHOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

OPTIONS = (
    *("--scale", "validation"),
    *("--combinations", "2"),
    *("--draws", "2"),
    *("--eval-samples", "200"),
    *("--validation-samples", "100"),
)
ALL = ("--scale", "validation", "--combinations", "all", "--draws", "3", "--seeds", "2")
TABLES = ("results.parquet", "cosines.parquet", "scales.parquet", "run.json", "finetuned.json")


def main(model: str, data: str, out: str, *flags: str) -> None:
    """Run the main job and copy what it reached."""
    options = ALL if "--all" in flags else OPTIONS
    command = Path(sys.executable).parent / "rmtllmf"
    places = ("--model", model, "--data", data, "--out", out)
    subprocess.run([command, "reproduce", "vit-tiny", *places, *options], check=True)
    results = Path(__file__).parent / "results" / "main_job"
    results.mkdir(parents=True, exist_ok=True)
    run = Path(out)
    for file in [*(run / name for name in TABLES), *(run / "report").iterdir()]:
        shutil.copy(file, results / file.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
