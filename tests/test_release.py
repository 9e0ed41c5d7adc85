"""What a release consists of says the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import rmtllmf_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version():
    said = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert said
    assert PROJECT["version"] == rmtllmf_jax.__version__ == said[1]
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_the_steps_of_ci():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    commands = ("ruff check .", "ruff format --check .", "codespell", "mypy", "pip check")
    pytest = "pytest -n 2 --dist loadgroup -m "
    for command in (*commands, "mkdocs build --strict", f'{pytest}"not slow"', f"{pytest}slow"):
        assert command in script, command
        assert command in workflow, command


def test_the_workflow_tests_the_versions_that_are_promised():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    matrix = re.search(r"python: \[(.*)\]", workflow)
    promised = re.findall(r":: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert matrix
    assert re.findall(r"[\d.]+", matrix[1]) == promised


def test_nothing_but_the_package_has_addresses_of_its_own():
    """The owner replaces them in one place."""
    assert all("OWNER" in url for url in PROJECT["urls"].values()) or not any(
        "OWNER" in url for url in PROJECT["urls"].values()
    )
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        assert "/OWNER/" not in page.read_text(), page
