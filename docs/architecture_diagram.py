"""Draws architecture.svg from the imports of the package: python docs/architecture_diagram.py."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rmtllmf_jax.report.style import image_bytes

PACKAGE = Path(__file__).parents[1] / "rmtllmf_jax"
PICTURE = Path(__file__).with_suffix("").with_name("architecture.svg")
HOLDS = {
    "cli": "one file per sub-command",
    "report": "figures and pages from tables",
    "sweep": "grid, engine, store, tables",
    "gradients": "the differentiable objective",
    "runs": "run folders: open_run",
    "defences": "repairs, poisoned content",
    "training": "fine-tuning, realignment",
    "evaluation": "metrics, hypothesis test",
    "models": "CLIP, ViT, heads, weights",
    "data": "tasks, sources, cache",
    "uplink": "errors of the parameters",
    "fusion": "task vectors, merge methods",
    "channel": "fading, attacks, receivers",
}
"""What each sub-package holds; `common`, which all import, is left out."""


def imports() -> dict[str, set[str]]:
    """Return the sub-packages that each sub-package imports, lazily or not."""
    found: dict[str, set[str]] = {name: set() for name in HOLDS}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())) if name in found else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rmtllmf_jax"):
                parts = (node.module or "").split(".")[1:2] or [each.name for each in node.names]
                found[name] |= set(parts) & found.keys() - {name}
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph without the edges that follow from others."""
    above: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        above[name] = set().union(*(above[each] | {each} for each in graph[name]))
    return {
        name: {each for each in edges if not any(each in above[other] for other in edges)}
        for name, edges in graph.items()
    }


def picture() -> Figure:
    """Return the diagram: an arrow leads from what is imported to what imports it."""
    graph = imports()
    level: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        level[name] = 1 + max((level[each] for each in graph[name]), default=-1)
    level["report"] = level["cli"] - 1  # it imports nothing
    rows: dict[int, list[str]] = {}
    for name in reversed(HOLDS):
        rows.setdefault(level[name], []).append(name)
    place = {
        name: (spot - (len(row) - 1) / 2, -number)
        for number, row in rows.items()
        for spot, name in enumerate(row)
    }
    figure = Figure(figsize=(7.5, 1 + len(rows)))
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(-1.6, 1.6), ylim=(0.5 - len(rows), 0.5))
    panel.set_axis_off()
    for name, (x, y) in place.items():
        box = FancyBboxPatch(
            (x - 0.4, y - 0.2), 0.8, 0.4, "round,pad=0.03", fc="#eef2fb", ec="#3f51b5"
        )
        panel.add_patch(box)
        panel.text(x, y + 0.06, name, ha="center", va="center", weight="bold", zorder=3)
        panel.text(x, y - 0.1, HOLDS[name], ha="center", va="center", size=8, zorder=3)
        for other in reduced(graph)[name]:
            u, v = place[other]
            steps = level[name] - level[other]
            bend = 0.0 if steps == 1 else 0.3
            panel.annotate(
                "",
                (x, y + 0.23),
                (u, v - 0.23),
                zorder=1,
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#666666",
                    "connectionstyle": f"arc3,rad={bend if u <= x else -bend}",
                },
            )
    return figure


def arrows() -> list[str]:
    """Return the arrows as they are noted at the end of the file."""
    pairs = sorted((other, name) for name, edges in reduced(imports()).items() for other in edges)
    return [f"<!-- {other} to {name} -->" for other, name in pairs]


if __name__ == "__main__":
    drawn = image_bytes(picture(), "svg", dpi=100).decode()
    PICTURE.write_text("\n".join([drawn.rstrip(), *arrows()]) + "\n")
