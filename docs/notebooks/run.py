"""Run the notebooks of this folder from top to bottom and keep what they print, without Jupyter.

    python docs/notebooks/run.py [NAME ...]

Code is run as a notebook runs it: one namespace, a cell's last expression is shown, lines that
begin with `!` go to a shell. What goes to standard error is not kept.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Notebook = dict[str, Any]


def shell(line: str) -> None:
    """Run a line in a shell and print what it prints; the environment's commands come first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError(f"{line}: exit code {done.returncode}\n{done.stderr}")


def executed(notebook: Notebook) -> Notebook:
    """Return a notebook with the outputs of a run in the current folder."""
    names: dict[str, Any] = {"__name__": "__main__", "_shell": shell}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = _outputs("".join(cell["source"]), names, count)
            cell = cell | {"execution_count": count, "outputs": outputs}
        cells.append(cell)
    return notebook | {"cells": cells}


def _outputs(code: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    code = re.sub(r"^!((?:.*\\\n)*.*)$", lambda found: f"_shell({found[1]!r})", code, flags=re.M)
    tree = ast.parse(code)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    where, shown = f"<cell {count}>", None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, where, "exec"), names)
        if last is not None:
            shown = eval(compile(last, where, "eval"), names)
    found: list[dict[str, Any]] = []
    if text := printed.getvalue():
        lines = text.splitlines(keepends=True)
        found.append({"output_type": "stream", "name": "stdout", "text": lines})
    if shown is not None:
        data = {"text/plain": [_text(shown)], **_picture(shown)}
        about = {"execution_count": count, "metadata": {}}
        found.append({"output_type": "execute_result", "data": data, **about})
    return found


def _text(shown: Any) -> str:
    return "<Figure>" if hasattr(shown, "savefig") else repr(shown)


def _picture(shown: Any) -> dict[str, str]:
    if not hasattr(shown, "savefig"):
        return {}
    buffer = io.BytesIO()
    shown.savefig(buffer, format="png", dpi=80)
    return {"image/png": base64.b64encode(buffer.getvalue()).decode()}


def said(notebook: Notebook) -> list[str]:
    """Return what each code cell prints or shows as text, without white space at the ends."""
    texts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            parts = [
                "".join(each.get("text") or each["data"]["text/plain"]) for each in cell["outputs"]
            ]
            texts.append("\n".join(part.strip() for part in parts))
    return texts


def main() -> None:
    """Run the notebooks that are named, or all, each in an empty folder, and write them back."""
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        path = (FOLDER / f"{name}.ipynb").resolve()
        before = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                found = executed(json.loads(path.read_text()))
            finally:
                os.chdir(before)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(path.name)


if __name__ == "__main__":
    main()
