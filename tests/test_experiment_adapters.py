"""Users of LoRA on the testbed (experiments/adapters.py)."""

from __future__ import annotations

from pathlib import Path

import adapters
import numpy as np
import pandas as pd
import pytest
from conftest import TinyRun

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.runs import open_run
from rmtllmf_jax.uplink import Adapter
from rmtllmf_jax.uplink.vectors import shapes_of


def test_runs_of_lora_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--lora: name at least one run folder"):
        adapters.main(adapters.Options(tmp_path / "none", cache_dir=tmp_path))


@pytest.mark.slow
def test_every_way_of_sending_stays_within_the_airtime(
    finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    full = finished.copy(tmp_path / "full", sweep=False)
    lora = tmp_path / "lora"
    words = ("--lora-rank", "1", "--learning-rate", "0.02", "--steps", "20")
    main(["finetune", "--out", str(lora), *finished.users, *words])
    options = adapters.Options(
        full,
        lora=(lora,),
        realign_steps=2,
        quick=True,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    adapters.main(options)
    names = {"README.md", "cells.csv", "adapters.png", "adapters.svg"}
    assert {path.name for path in options.out.iterdir()} == names
    cells = pd.read_csv(options.out / "cells.csv")
    attacked = cells[cells["scenario"] == adapters.ATTACK].set_index(["rank", "way"])
    assert (attacked["uses"] <= 1 + 1e-6).all()
    ways = [adapters.VECTOR, adapters.ONCE, adapters.REPEATED, adapters.BITS]
    assert sorted(attacked.loc[1].index) == sorted(ways)
    vectors = open_run(lora, cache_dir=cache_dir).vectors
    once = Adapter(1, adapters.trained_lora(open_run(lora)).targets)
    share = float(once.uses_of(np.ones(1), shapes_of(vectors))[0])
    assert attacked.loc[(1, adapters.ONCE), "uses"] == pytest.approx(share, rel=1e-4)
    assert attacked.loc[(1, adapters.BITS), "uses"] == pytest.approx(1, rel=1e-4)
    page = (options.out / "README.md").read_text()
    assert "| LoRA of rank 1 |" in page
    assert "| all parameters |" in page
    with pytest.raises(InputError, match="did not all train a LoRA"):
        adapters.trained_lora(open_run(full))
