"""The tutorials: every page's code runs from top to bottom and prints what the page says.

Blocks of ```python share one namespace; those of ```bash run in a shell, in the page's folder, but
for those that begin with `# elsewhere`. A ```text block behind one is its output, with `...` for
what differs from run to run.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
ELSEWHERE = "# elsewhere"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
# What runs in one folder, one after the other.
QUICK = (("fuse.md",),)
SLOW = (
    ("lata.md", "send_a_llama.md"),
    ("channel.md",),
    ("gradients.md",),
    ("protect.md",),
    ("own_model_and_data.md", "sweep_on_tpu.md"),
)


@dataclass(frozen=True)
class Block:
    """Code of a page, and what it prints if the page says so."""

    kind: str
    code: str
    line: int
    said: str | None


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page that run, in order."""
    found = list(BLOCK.finditer(text))
    for block, behind in zip(found, [*found[1:], None], strict=True):
        if block["kind"] not in ("python", "bash") or block["code"].startswith(ELSEWHERE):
            continue
        shown = behind is not None and behind["kind"] == "text"
        said = behind["code"] if shown and behind is not None else None
        yield Block(block["kind"], block["code"], text.count("\n", 0, block.start("code")), said)


def run(page: str, text: str, folder: Path, names: dict[str, Any]) -> int:
    """Run a page's blocks in `folder`; return how many there are."""
    count = 0
    for block in blocks(text):
        where = f"{page}, line {block.line + 1}"
        count += 1
        if block.kind == "bash":
            printed = in_shell(block.code, folder, where)
        else:
            lines = "\n" * block.line + block.code  # so that a traceback points into the page
            with redirect_stdout(StringIO()) as output:
                exec(compile(lines, page, "exec"), names)
            printed = output.getvalue()
        if block.said is not None:
            same = doctest.OutputChecker().check_output(block.said, printed, FLAGS)
            assert same, f"{where}: the page says\n{block.said}and it prints\n{printed}"
    return count


def in_shell(code: str, folder: Path, where: str) -> str:
    """Return what commands print; the `rmtllmf` of this environment is the first on the path."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={**environment(), "PATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "pages",
    [
        *(pytest.param(pages, id=pages[0]) for pages in QUICK),
        *(pytest.param(pages, id=pages[0], marks=pytest.mark.slow) for pages in SLOW),
    ],
)
def test_tutorials_run(
    pages: tuple[str, ...], tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rmtllmf").symlink_to(cache_dir)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for page in pages:
        assert run(page, (FOLDER / page).read_text(), tmp_path, {"__name__": __name__}) > 0


def test_every_tutorial_is_run():
    listed = [page for pages in (*QUICK, *SLOW) for page in pages]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.md"))


def test_names_and_files_last_until_the_end_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = (
        "```python\nfrom pathlib import Path\nx = 3\n```\n```bash\necho file > file\n```\n"
        f"```bash\n{ELSEWHERE}: a cluster\nfalse\n```\n"
        "```python\nprint(x, Path('file').read_text())\n```\n```text\n3 f...e\n```\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run("page.md", text, tmp_path, {}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "\n\n```python\nprint(4)\n```\n\n```text\n5\n```\n",
            r"page\.md, line 4: the page says\s+5",
        ),
        ("```bash\necho 4\n```\n```text\n5\n```\n", r"page\.md, line 2: the page says\s+5"),
        ("```bash\nfalse\ntrue\n```\n", r"page\.md, line 2: exit code 1"),
    ],
)
def test_a_page_that_is_wrong_is_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(AssertionError, match=message):
        run("page.md", text, tmp_path, {})
