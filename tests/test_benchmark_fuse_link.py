"""The benchmark of `rmtllmf fuse --link` on a tiny Llama: it writes, checks and prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuse_link.py"
TINY = ["--vocabulary", "50", "--width", "16", "--mlp", "24", "--layers", "2", "--kv", "8"]


@pytest.mark.slow
def test_the_benchmark_runs_on_a_tiny_llama(tmp_path: Path):
    words = [*TINY, "--rounds", "1", "--models", "2", "--links", "sum_rate", "--json"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["links"]) == ["no link", "sum_rate"]
    assert found["parameters"] == 2 * 50 * 16 + 16 + 2 * (16 * (2 * 16 + 2 * 8) + 3 * 16 * 24 + 32)
    assert all(link["seconds"] > 0 and link["peak_gib"] > 0 for link in found["links"].values())
    assert not list(tmp_path.iterdir())
