"""The pages of docs/ that hold Python sessions, run as they stand."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import rmtllmf_jax

DOCS = Path(__file__).parents[1] / "docs"
SESSIONS = sorted(page for page in DOCS.glob("*.md") if ">>> " in page.read_text())
LONG = ("channel.md", "extending.md", "gradients.md")  # half a minute of compiling
PAGES = [
    pytest.param(page, marks=pytest.mark.slow if page.name in LONG else (), id=page.name)
    for page in SESSIONS
]


@pytest.mark.parametrize("page", PAGES)
def test_sessions_run(page: Path):
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_sessions():
    assert [page.name for page in SESSIONS]


def test_every_room_has_a_page_of_reference():
    rooms = {module.name for module in iter_modules(rmtllmf_jax.__path__)} - {"__main__", "cli"}
    assert {page.stem for page in (DOCS / "reference").glob("*.md")} == rooms | {"index"}


def test_what_the_reference_names_is_there():
    pages = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    named = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert len(named) == len(set(named)) > 30
    for name in named:
        module, _, last = name.rpartition(".")
        assert hasattr(import_module(module), last) or import_module(name), name


def test_pages_load_nothing_from_other_hosts():
    """No script, picture or style; links are another matter."""
    for page in DOCS.rglob("*.md"):
        assert not re.search(r"!\[[^]]*\]\(https?:|<(script|img|link|iframe)\b", page.read_text())


def test_the_picture_of_the_architecture_is_that_of_the_imports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DOCS))
    diagram = import_module("architecture_diagram")
    rooms = {module.name for module in iter_modules(rmtllmf_jax.__path__)} - {"__main__", "common"}
    assert diagram.HOLDS.keys() == rooms
    lines = diagram.PICTURE.read_text().splitlines()
    assert [line for line in lines if " to " in line] == diagram.arrows()
