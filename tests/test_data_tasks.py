"""The task registry, and what importing the data room costs."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rmtllmf_jax.data
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.tasks import TASK_NAMES, validate_tasks


def test_the_eight_tasks() -> None:
    assert len(TASK_NAMES) == 8
    assert list(TASK_NAMES) == sorted(set(TASK_NAMES))
    assert validate_tasks(["svhn", "cars"], TASK_NAMES) == ("svhn", "cars")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dtd", "eurosta"], r"'eurosta'.*'eurosat'.*Known: dtd, eurosat"),
        (["cars"], "unknown task 'cars'"),  # known, but not available
        (["dtd", "eurosat", "dtd"], r"'dtd' is given more than once: dtd, eurosat, dtd"),
        ([], r"at least one.*eurosat"),
    ],
)
def test_tasks_that_a_run_cannot_use_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate_tasks(names, ("dtd", "eurosat"))


def test_the_room_imports_no_jax() -> None:
    names = [module.name for module in pkgutil.iter_modules(rmtllmf_jax.data.__path__)]
    assert "cache" in names
    imports = "; ".join(f"import rmtllmf_jax.data.{name}" for name in names)
    check = "import sys; sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
    root = Path(rmtllmf_jax.__file__).parents[1]
    subprocess.run([sys.executable, "-c", f"{imports}; {check}"], cwd=root, check=True, timeout=60)
