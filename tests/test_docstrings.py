"""Every Python session in a docstring of the package, run as it stands."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest

import rmtllmf_jax

ROOT = Path(rmtllmf_jax.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def written(path: Path) -> int:
    """Return the number of examples in the docstrings of a file, run or not."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, NODES)]
    parser = doctest.DocTestParser()
    return sum(len(parser.get_examples(ast.get_docstring(node) or "")) for node in nodes)


def sessions(module: ModuleType) -> list[doctest.DocTest]:
    """Return the sessions that doctest finds in a module."""
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


def run(tests: list[doctest.DocTest]) -> tuple[int, str]:
    """Run sessions; return how many examples were tried, and what doctest says of those wrong."""
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in tests:
        runner.run(test, out=said.append)
    return runner.tries, "".join(said)


FILES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text())


def name(path: Path) -> str:
    parts = ("rmtllmf_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def test_sessions_run():
    for path in FILES:
        tried, said = run(sessions(importlib.import_module(name(path))))
        assert said == "", path
        # None is passed over, under whatever decorator.
        assert tried == written(path) > 0, path


@pytest.mark.parametrize("room", ["fusion", "channel", "uplink", "evaluation"])
def test_the_rooms_have_examples(room: str):
    assert sum(name(path).startswith(f"rmtllmf_jax.{room}.") for path in FILES) >= 3


@pytest.mark.parametrize("source", ["4", "5"])
def test_a_wrong_example_is_seen(source: str):
    module = ModuleType("example")
    module.__doc__ = f">>> 2 + 2\n{source}\n"
    tried, said = run(sessions(module))
    assert tried == 1
    assert ("Expected:" in said) == (source == "5")
