"""The notebooks: each runs from top to bottom and prints what it kept."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_NUMBER = re.compile(r"[-+]?\d+\.?\d*")


def tool(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"notebooks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = tool("run")


def notebook(*cells: str) -> dict[str, Any]:
    return {"cells": [{"cell_type": "code", "source": [cell], "outputs": []} for cell in cells]}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_prints_what_it_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Numbers to a tenth, in which machines may differ: the last image of a hundred."""
    monkeypatch.chdir(tmp_path)
    kept = json.loads(path.read_text())
    found, expected = run.said(run.executed(kept)), run.said(kept)
    for new, old in zip(found, expected, strict=True):
        assert _NUMBER.sub("#", new) == _NUMBER.sub("#", old)
        for one, other in zip(_NUMBER.findall(new), _NUMBER.findall(old), strict=True):
            assert float(one) == pytest.approx(float(other), rel=0.1, abs=0.05 if "." in one else 4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_kept(path: Path):
    kept = json.loads(path.read_text())
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert any(cell["outputs"] for cell in code)
    assert kept["cells"][0]["source"][0].startswith("# ")


def test_there_are_five():
    assert len(NOTEBOOKS) == 5


def test_cells_share_names_and_show_their_last_expression(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    found = run.executed(notebook("x = 2\nprint('a')\nx + 1", "!echo out\nx", "x = 3"))
    assert run.said(found) == ["a\n3", "out\n2", ""]
    assert [cell["execution_count"] for cell in found["cells"]] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="exit code 3"):
        run.executed(notebook("!exit 3"))
    with pytest.raises(ZeroDivisionError):
        run.executed(notebook("1 / 0"))


def test_a_page_holds_code_outputs_and_pictures():
    pytest.importorskip("mkdocs", reason="pip install 'rmtllmf-jax[docs]'")
    picture = {"data": {"text/plain": ["<Figure>"], "image/png": "aGk="}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "See [b](b.ipynb)."]},
        {"cell_type": "code", "source": ["!ls"], "outputs": [{"text": ["file\n"]}]},
        {"cell_type": "code", "source": ["x"], "outputs": [picture]},
    ]
    assert tool("pages").page({"cells": cells}, "a.ipynb").split("\n\n") == [
        "# Title",
        "*[This notebook](a.ipynb) was run from top to bottom to make this page.*",
        "See [b](b.md).",
        "```bash\nls\n```",
        "```text\nfile\n```",
        "```python\nx\n```",
        "![what the cell shows](data:image/png;base64,aGk=)\n",
    ]
    assert tool("pages").on_page_markdown("[a](notebooks/a.ipynb) b.ipynb)") == (
        "[a](notebooks/a.md) b.ipynb)"
    )
