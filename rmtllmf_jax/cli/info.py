"""`rmtllmf info`: what is installed, what it runs on, and where things and defaults come from."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from rmtllmf_jax.cli.options import Cache, default_of, print_as_json
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.runs.environment import (
    default_cache,
    devices,
    extras,
    settings,
    use_compilation_cache,
    versions,
)

VARIABLES = {
    "XDG_CACHE_HOME": "folder of the default of --cache-dir",
    "HF_HOME": "folder of the hub's models, data sets and login",
    "HF_HUB_OFFLINE": "1: nothing is asked of the hub",
    "JAX_PLATFORMS": "what JAX may run on: cpu, cuda, tpu",
    "JAX_ENABLE_X64": "1: float64 where a program asks for it",
    "JAX_DEFAULT_MATMUL_PRECISION": "precision of matrix products: default, high, highest",
    "XLA_FLAGS": "options of the compiler",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "share of a GPU's memory that JAX takes at the start",
    "NO_COLOR": "anything: no colours and lines in the terminal",
}
"""Environment variables that change a run, and how."""

_GIVEN = "command line"


@dataclass(kw_only=True)
class Info:
    """Print versions, devices, caches, and the source of a run's defaults.

    Example: rmtllmf info --recipe paper
    """

    recipe: str = "demo"
    """Recipe of `reproduce` whose defaults are listed."""
    json: bool = False
    """Print JSON and nothing else: an object of versions and extras (by package; null means not
    installed), backend, devices (memory in bytes), folders (size in bytes; null means missing),
    variables (null means not set), embedded_model and defaults (of --recipe; by option, value and
    from)."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax.cli.reproduce import RECIPES

        require_known("recipe", self.recipe, RECIPES)
        use_compilation_cache(self.cache_dir)
        found = everything(self.recipe, self.cache_dir)
        if self.json:
            print_as_json(found)
        else:
            _print(found, self.recipe)


def everything(recipe: str, cache_dir: Path) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "versions": versions(),
        "extras": extras(),
        "backend": settings(),
        "devices": devices(),
        "folders": folders(cache_dir),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "embedded_model": embedded_model(),
        "defaults": defaults(recipe),
    }


def folders(cache_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the folders that runs share: path and bytes; `None` bytes where there is none."""
    paths = {"decoded images": cache_dir / "images", "compiled programs": cache_dir / "xla"}
    with suppress(ModuleNotFoundError):  # without the extra there is no such folder
        from huggingface_hub.constants import HF_HUB_CACHE

        paths["Hugging Face hub"] = Path(HF_HUB_CACHE)
    return {what: {"path": str(path), "bytes": size_of(path)} for what, path in paths.items()}


def size_of(folder: Path) -> int | None:
    """Return the bytes of all files in a folder, links not followed; `None` if there is none."""
    if not folder.is_dir():
        return None
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another process has just removed it
            total += path.lstat().st_size if path.is_symlink() or not path.is_dir() else 0
    return total


def embedded_model() -> dict[str, Any]:
    """Return where the embedded model is, or what is wrong with it."""
    from rmtllmf_jax.models.hub import embedded_directory

    try:
        path = embedded_directory()
    except InputError as error:
        return {"path": None, "bytes": None, "error": str(error)}
    return {"path": str(path), "bytes": size_of(path), "error": None}


def defaults(recipe: str) -> list[dict[str, Any]]:
    """Return the options of `reproduce` with their values under a recipe and where they are from.

    What must be given has the value `None` and comes from the command line.
    """
    from rmtllmf_jax.cli.reproduce import Reproduce, recipe_options

    changes = recipe_options(recipe)
    rows = []
    for option in fields(Reproduce):
        value, source = changes.get(option.name, default_of(option)), "package"
        if option.name in changes:
            source = f"recipe {recipe}"
        elif value is MISSING:
            value, source = None, _GIVEN
        elif option.name == "cache_dir" and os.environ.get("XDG_CACHE_HOME"):
            source = "XDG_CACHE_HOME"
        value = str(value) if isinstance(value, Path) else value
        rows.append(
            {"option": f"--{option.name.replace('_', '-')}", "value": value, "from": source}
        )
    return [row for row in rows if row["option"] != "--recipe"]


def _print(found: dict[str, Any], recipe: str) -> None:
    from rich.console import Console
    from rich.filesize import decimal

    from rmtllmf_jax.report.sheet import Sheet
    from rmtllmf_jax.report.terminal import print_texts

    def of(size: int | None, nothing: str = "not there") -> str:
        return nothing if size is None else decimal(size)

    def pairs(name: str, nothing: str) -> list[list[str]]:
        return [
            [each, nothing if value is None else str(value)] for each, value in found[name].items()
        ]

    def text(option: dict[str, Any]) -> str:
        value = option["value"]
        if option["from"] == _GIVEN:
            return "must be given"
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        return "none" if value is None or value == "" else str(value)

    console, model = Console(), found["embedded_model"]
    extras = [
        [extra, package, version or "not installed"]
        for extra, packages in found["extras"].items()
        for package, version in packages.items()
    ]
    devices = [
        [str(each["id"]), each["kind"], str(each["process"]), of(each["memory"], "unknown")]
        for each in found["devices"]
    ]
    folders = [[what, of(each["bytes"]), each["path"]] for what, each in found["folders"].items()]
    folders += [["embedded model", of(model["bytes"]), model["path"] or model["error"]]]
    variables = [
        [name, "not set" if value is None else value, VARIABLES[name]]
        for name, value in found["variables"].items()
    ]
    defaults = [[each["option"], each["from"], text(each)] for each in found["defaults"]]
    for title, header, rows in (
        ("Versions", "package version", pairs("versions", "not installed")),
        ("Optional extras, rmtllmf-jax[EXTRA]", "extra package version", extras),
        ("JAX", "setting value", pairs("backend", "none")),
        ("Devices", "number kind process memory", devices),
        ("Folders", "what size path", folders),
        ("Environment variables", "name value meaning", variables),
        (f"Defaults of rmtllmf reproduce {recipe}", "option from value", defaults),
    ):
        print_texts(Sheet(title, header.split(), rows), console)
