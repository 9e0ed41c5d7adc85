"""The pages of docs/ that hold Python sessions, run as they stand."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SESSIONS = sorted(page for page in DOCS.glob("*.md") if ">>> " in page.read_text())
LONG = ("channel.md",)  # half a minute of compiling
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
