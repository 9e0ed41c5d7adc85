"""The README: short, whole, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_under_200_lines():
    assert len(README.splitlines()) < 200


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 10
    assert [link for link in local if not (ROOT / link.partition("#")[0]).exists()] == []


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_pipeline_runs(demo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demo.parents[1])
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["mse"].shape == (8,)
    before, after = (names[name]["post_layernorm"]["scale"] for name in ("base", "fused"))
    assert before.shape == after.shape
    assert not (before == after).all()
