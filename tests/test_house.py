"""The rules of the house: who may import whom, what is loaded lazily, how long a file may be."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rmtllmf_jax

PACKAGE = "rmtllmf_jax"
ROOT = Path(rmtllmf_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ROOMS = (
    "fusion",
    "channel",
    "uplink",
    "models",
    "data",
    "evaluation",
    "training",
    "defences",
    "runs",
    "gradients",
    "sweep",
    "report",
    "cli",
)
ALONE = ("fusion", "channel", "report", "common")
"""Rooms that import nothing of the house but `common`."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """Return the folder below the package, or the module's name."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path, source: str | None = None) -> set[str]:
    """Return the absolute names that a file imports anywhere, as ``module`` or ``module.name``."""
    found = set()
    package = [PACKAGE, *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(source if source is not None else path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path, source: str | None = None) -> set[str]:
    """Return the rooms that a file imports, itself left out; "" for the bare package."""
    rooms = set()
    for module in imported(path, source):
        package, _, rest = module.partition(".")
        if package == PACKAGE:
            rooms.add(rest.split(".")[0])
    return rooms - {room(path)}


def forbidden(path: Path, source: str | None = None) -> set[str]:
    """Return the rooms that a file imports and must not."""
    others = rooms_imported(path, source) - {"common"}
    if room(path) in ROOMS and room(path) not in ALONE:
        return others - set(ROOMS[: ROOMS.index(room(path))])
    return others


def test_every_file_is_in_a_room():
    assert {room(path) for path in FILES} - {"__init__", "__main__"} == {*ROOMS, "common"}


def test_imports_go_up_the_house():
    found = {name(path): forbidden(path) for path in FILES}
    assert {file: rooms for file, rooms in found.items() if rooms} == {}


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("fusion/merge.py", "from rmtllmf_jax import channel", {"channel"}),
        ("channel/sic.py", "from rmtllmf_jax.fusion import rms", {"fusion"}),
        ("models/vit.py", "def f():\n    import rmtllmf_jax.training.users", {"training"}),
        ("models/vit.py", "from rmtllmf_jax.fusion import rms", set()),
        ("models/vit.py", "from ..data import cache", {"data"}),
        ("models/vit.py", "from . import heads", set()),
        ("report/tables.py", "from rmtllmf_jax.sweep.tables import read", {"sweep"}),
        ("common/files.py", "from rmtllmf_jax.uplink import transmit", {"uplink"}),
        ("uplink.py", "from .training import Recipe", {"training"}),
        ("__init__.py", "from rmtllmf_jax.cli import main", {"cli"}),
    ],
)
def test_the_rule_sees_forbidden_imports(file: str, source: str, expected: set[str]):
    assert forbidden(ROOT / file, source) == expected


@pytest.mark.parametrize("part", ["data", "common"])
def test_no_jax_where_none_is_needed(part: str):
    for path in FILES:
        if room(path) == part:
            packages = {module.split(".")[0] for module in imported(path)}
            assert not packages & {"jax", "jaxlib", "flax", "optax", "orbax"}, name(path)


@pytest.mark.parametrize(
    ("module", "lazy"),
    [
        ("runs", ["jax", "transformers", "orbax", "sklearn", "pandas", "matplotlib"]),
        ("cli.main", ["jax", "transformers", "orbax", "sklearn", "pandas", "matplotlib"]),
        ("training.recipes", ["jax", "optax", "flax"]),
        ("data.task_data", ["jax", "transformers", "pandas"]),
        ("fusion", ["flax", "transformers", "optax", "orbax", "sklearn", "pandas"]),
        ("channel", ["flax", "transformers", "optax", "orbax", "sklearn", "pandas"]),
    ],
)
def test_importing_loads_nothing_heavy(module: str, lazy: list[str]):
    script = (
        f"import sys, {PACKAGE}.{module}\n"
        f"print(*sorted({{m.split('.')[0] for m in sys.modules}} & {set(lazy)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("package", ["", "common", *(room for room in ROOMS if room != "cli")])
def test_faces_are_whole(package: str):
    face = importlib.import_module(f"{PACKAGE}.{package}".rstrip("."))
    assert set(face.__all__) <= set(dir(face))
    assert [name for name in face.__all__ if getattr(face, name, None) is None] == []
    with pytest.raises(AttributeError, match="opne_run"):
        _ = face.opne_run


def test_pages_import_from_the_faces_alone():
    """What a face does not name is internal, and may change in any version."""
    pages = [Path(__file__).parents[1] / "README.md"]
    pages += sorted((pages[0].parent / "docs").rglob("*.md"))
    wrong = {}
    for page in pages:
        code = re.sub(r"^(>>>|\.\.\.) ?", "", page.read_text(), flags=re.MULTILINE)
        for module, names in re.findall(rf"from ({PACKAGE}[\w.]*) import (\([^)]*\)|.+)", code):
            face = importlib.import_module(module)
            named = {each.strip() for each in names.strip("()").split("#")[0].split(",")} - {""}
            if found := named - set(getattr(face, "__all__", ())):
                wrong[f"{page.name}: {module}"] = found
    assert wrong == {}


def test_no_circle_among_imports():
    """Lazy imports count; those for type checkers alone do not."""
    modules = {
        ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]): path for path in FILES
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    imports = {
        name: {found for found in map(partial(_module, modules), _run_time(path)) if found} - {name}
        for name, path in modules.items()
    }
    # A package's face imports its own modules, which import others of it.
    TopologicalSorter(imports).prepare()  # raises CycleError with the circle


def _run_time(path: Path) -> set[str]:
    """Return what a file imports, `if TYPE_CHECKING` left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return imported(path, ast.unparse(tree))


def _module(modules: dict[str, Path], name: str) -> str:
    """Return the module that a name is, or is in."""
    return (
        name if name in modules else name.rpartition(".")[0] * (name.rpartition(".")[0] in modules)
    )


def test_no_file_is_over_400_lines():
    lengths = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert {file: lines for file, lines in lengths.items() if lines > 400} == {}
