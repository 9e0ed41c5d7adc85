"""A hook of MkDocs: every notebook of this folder becomes a page, with its outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ABOUT = "*[This notebook]({name}) was run from top to bottom to make this page.*"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(file.content_string)
            place = file.src_uri.removesuffix(".ipynb") + ".md"
            text = page(notebook, Path(file.src_uri).name)
            files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let other pages' links to notebooks, which GitHub shows, lead to their pages."""
    return re.sub(r"(\bnotebooks/\w+)\.ipynb\)", r"\1.md)", markdown)


def page(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown; its links to other notebooks lead to their pages."""
    title, *rest = (part for cell in notebook["cells"] for part in _parts(cell))
    return "\n\n".join([*_under(title, _ABOUT.format(name=name)), *rest]) + "\n"


def _under(first: str, about: str) -> list[str]:
    """Put a sentence under the title."""
    head, _, body = first.partition("\n")
    return [head, about, body.strip()]


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [re.sub(r"\.ipynb\)", ".md)", source)]
    kind = "bash" if source.startswith("!") else "python"
    parts = [f"```{kind}\n{source.removeprefix('!')}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if picture := data.get("image/png"):
            parts.append(f"![what the cell shows](data:image/png;base64,{picture})")
        else:
            text = "".join(output.get("text") or data["text/plain"]).rstrip()
            parts.append(f"```text\n{text}\n```")
    return parts
