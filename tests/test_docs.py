"""The pages of docs/ that hold Python sessions, run as they stand."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SESSIONS = sorted(page for page in DOCS.glob("*.md") if ">>> " in page.read_text())


@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.name)
def test_sessions_run(page: Path):
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_sessions():
    assert [page.name for page in SESSIONS]
