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


def test_unknown_task_names_the_nearest_and_the_available() -> None:
    with pytest.raises(InputError, match=r"'eurosta'.*'eurosat'.*Known: dtd, eurosat"):
        validate_tasks(["dtd", "eurosta"], ("dtd", "eurosat"))


def test_a_known_task_that_is_not_available_is_refused() -> None:
    with pytest.raises(InputError, match="unknown task 'cars'"):
        validate_tasks(["cars"], ("dtd",))


def test_duplicates_are_refused() -> None:
    with pytest.raises(InputError, match=r"'dtd' is given more than once: dtd, cars, dtd"):
        validate_tasks(["dtd", "cars", "dtd"], TASK_NAMES)


def test_at_least_one_task() -> None:
    with pytest.raises(InputError, match=r"at least one.*mnist"):
        validate_tasks([], TASK_NAMES)


def test_the_room_imports_no_jax() -> None:
    names = [module.name for module in pkgutil.iter_modules(rmtllmf_jax.data.__path__)]
    assert "cache" in names
    imports = "; ".join(f"import rmtllmf_jax.data.{name}" for name in names)
    check = "import sys; sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
    root = Path(rmtllmf_jax.__file__).parents[1]
    subprocess.run([sys.executable, "-c", f"{imports}; {check}"], cwd=root, check=True, timeout=60)
