"""The tables that a sweep leaves: parquet files, replaced atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rmtllmf_jax.common.files import replacing


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a parquet table."""
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_parquet(temporary, index=False)
