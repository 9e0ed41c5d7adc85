"""The tests of the rooms channel and fusion see small errors: each seeded fault makes one fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from seeded_faults import FAULTS, Fault

import rmtllmf_jax

PACKAGE = Path(rmtllmf_jax.__file__).parent
TESTS = Path(__file__).parent
IDS = [f"{fault.file}-{fault.name}" for fault in FAULTS]

PYTEST_AND_WHAT_IT_IMPORTED = """
import sys, pytest
code = pytest.main(sys.argv[1:])
import rmtllmf_jax
print(rmtllmf_jax.__file__)
sys.exit(code)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A folder with the package, the tests and pytest's options, to be changed at will."""
    # Compiled files go along: their sources keep the times that they are known by.
    left_out = shutil.ignore_patterns("checkpoints")
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=left_out)
    shutil.copytree(TESTS, tmp_path / TESTS.name)
    shutil.copyfile(TESTS.with_name("pyproject.toml"), tmp_path / "pyproject.toml")
    yield tmp_path
    shutil.rmtree(tmp_path)


def run(copy: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run tests on the copy of the package, and make sure that it is the copy."""
    command = [sys.executable, "-c", PYTEST_AND_WHAT_IT_IMPORTED, "-x", "-q"]
    command += ["-p", "no:cacheprovider", *(f"{TESTS.name}/{test}" for test in tests)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    imported = Path(done.stdout.splitlines()[-1])
    assert imported == copy / PACKAGE.name / "__init__.py", done.stdout + done.stderr
    return done


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_faults_fit_the_code_and_name_tests(fault: Fault):
    assert fault.new != fault.old
    assert (PACKAGE / fault.file).read_text().count(fault.old) == 1
    for test in fault.tests:
        file, _, function = test.partition("::")
        name = function.partition("[")[0]
        assert f"def {name}(" in (TESTS / file).read_text(), test


def test_there_are_enough_faults_and_no_two_are_alike():
    assert len(FAULTS) >= 20
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
    assert {fault.file.partition("/")[0] for fault in FAULTS} == {"channel", "fusion"}


@pytest.mark.slow
def test_without_a_fault_all_of_these_tests_pass(copy: Path):
    done = run(copy, tuple(dict.fromkeys(test for fault in FAULTS for test in fault.tests)))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_is_caught(fault: Fault, copy: Path):
    path = copy / PACKAGE.name / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1
    path.write_text(text.replace(fault.old, fault.new))
    done = run(copy, fault.tests)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    # Not an error of a fixture, which says nothing of what the test checks.
    assert " failed" in done.stdout.splitlines()[-2], done.stdout
