"""The tests of the rooms channel and fusion see small errors: each seeded fault makes one fail."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from seeded_faults import FAULTS, Fault, pytest_in

import rmtllmf_jax

PACKAGE = Path(rmtllmf_jax.__file__).parent
TESTS = Path(__file__).parent
IDS = [f"{fault.file}-{fault.name}" for fault in FAULTS]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["jax", "flax.linen", "optax", "orbax.checkpoint", "pandas", "pytest"])
"""A process that has imported what takes long, and of the package nothing."""


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


def run(copy: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests on the copy of the package, and make sure that it is the copy."""
    said = copy / "said.txt"
    words = ["-x", "-q", "-p", "no:cacheprovider", *(f"{TESTS.name}/{test}" for test in tests)]
    process = FORKS.Process(target=pytest_in, args=(copy, words, said))
    process.start()
    process.join()
    *lines, imported = said.read_text().splitlines()
    assert Path(imported) == copy / PACKAGE.name / "__init__.py", lines
    assert process.exitcode is not None
    return process.exitcode, "\n".join(lines)


def test_faults_fit_the_code_and_name_tests():
    for fault in FAULTS:
        assert fault.new != fault.old, fault
        assert (PACKAGE / fault.file).read_text().count(fault.old) == 1, fault
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
    code, said = run(copy, tuple(dict.fromkeys(test for fault in FAULTS for test in fault.tests)))
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_is_caught(fault: Fault, copy: Path):
    path = copy / PACKAGE.name / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1
    path.write_text(text.replace(fault.old, fault.new))
    code, said = run(copy, fault.tests)
    assert code == pytest.ExitCode.TESTS_FAILED, said
    # Not an error of a fixture, which says nothing of what the test checks.
    assert " failed" in said.splitlines()[-1], said
