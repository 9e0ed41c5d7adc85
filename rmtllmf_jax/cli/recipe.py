"""Recipes: the options of `rmtllmf fuse` as a file, and those of mergekit that mean the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from rmtllmf_jax.cli.options import default_of
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.mappings import read_mapping
from rmtllmf_jax.common.values import converted, described

if TYPE_CHECKING:
    from rmtllmf_jax.cli.fuse import Fuse
    from rmtllmf_jax.fusion.files.variation import ByName, Variation

Variations = tuple["Variation", ...]

BESIDE = ("recipe", "out", "dry_run")
"""Options that go with a recipe; the others are in it."""
PARAMETERS = "parameters"
_RECORD = "recipe"
"""Where a `fusion.json` has its recipe."""


def read_recipe(path: Path, kind: type[Fuse]) -> tuple[Fuse, Variations]:
    """Return the command that a file describes, and what of it varies by model and by name.

    A `fusion.json`, a file of mergekit's, or a mapping from options of the command to values, with
    `parameters` for options of the method. Paths are relative to the file, where something is
    there; otherwise as the command line has them.

    **Raises:** `InputError` that names file and key.
    """
    content = read_mapping(path, "recipe", "options by name, as in `method: ties`")
    if isinstance(content.get(_RECORD), Mapping) and "versions" in content:
        content = dict(content[_RECORD])
    elif "merge_method" in content:
        from rmtllmf_jax.fusion.files.mergekit import from_mergekit

        content = from_mergekit(content, str(path))
    known = [each.name for each in fields(kind) if each.name not in ("recipe", "dry_run")]
    for key in content:
        require_known(f"key of {path}", key, (*known, PARAMETERS))
    models, variations = _models(path, content)
    hints = get_type_hints(kind)
    options = {
        name: _option(path, name, content[name], hints[name])
        for name in known
        if name in content and name != "models"
    }
    return kind(models=models, **options), variations


def recipe_of(
    command: Fuse, out: Path, variations: Variations, method: object, scale: float
) -> dict[str, Any]:
    """Return a command as `read_recipe` reads it from a file in its output."""
    found: dict[str, Any] = {}
    for option in fields(command):
        value = getattr(command, option.name)
        if option.name not in (*BESIDE, "options", "models") and value != default_of(option):
            found[option.name] = _written(value, out)
    found |= {"method": described(method), "scale": scale}
    models: list[Any] = [_relative(model, out) for model in command.models]
    for each in variations:
        if len(each.by_model) == 1:
            found.setdefault(PARAMETERS, {})[each.option] = _cases(each.by_model[0])
            continue
        for number, values in enumerate(each.by_model):
            if isinstance(models[number], str):
                models[number] = {"model": models[number], PARAMETERS: {}}
            models[number][PARAMETERS][each.option] = _cases(values)
    return found | {"models": models}


def _written(value: Any, out: Path) -> Any:
    if isinstance(value, tuple):
        return [_written(each, out) for each in value]
    return _relative(value, out) if isinstance(value, Path) else value


def _cases(values: ByName) -> list[dict[str, Any]]:
    from rmtllmf_jax.fusion.files.variation import Gradient

    return [
        {"names": names, "value": list(value.values) if isinstance(value, Gradient) else value}
        for names, value in values.cases
    ]


def _relative(path: Path, out: Path) -> str:
    """Return a path as seen from the output; a hub id stays one, with its revision."""
    from rmtllmf_jax.fusion.files.places import hub_name
    from rmtllmf_jax.models.hub import safetensors_place

    if path.expanduser().exists():
        return os.path.relpath(path.expanduser(), out)
    return hub_name(safetensors_place(path)) or str(path)


def _place(text: str, path: Path) -> Path:
    there = path.expanduser().parent / Path(text).expanduser()
    return there if there.exists() else Path(text)


def _option(path: Path, name: str, value: Any, hint: Any) -> Any:
    where = f"{path}: {name}"
    if hint in (Path, Path | None):
        text = converted(value, str | None, where)
        if text is None:
            return None
        place = _place(text, path)
        return path.expanduser().parent / text if name == "out" else place
    if hint == tuple[Path, ...]:
        return tuple(_place(text, path) for text in converted(value, tuple[str, ...], where))
    if name == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, str) and hint in (float, float | None):
        return converted(_number(value, where), hint, where)
    return converted(value, hint, where)


def _number(text: str, where: str) -> float:
    try:
        return float(text)  # YAML takes 1e-3 for a text
    except ValueError:
        raise InputError(f"{where} must be a number, got {text!r}.") from None


def _models(path: Path, content: dict[str, Any]) -> tuple[tuple[Path, ...], Variations]:
    """Return the models and what varies; takes what is said of the coefficient by name out."""
    from rmtllmf_jax.fusion.files.variation import ALL, SCALE, ByName, Variation

    given = content.get("models")
    if not isinstance(given, list) or not given:
        raise InputError(f"{path}: models must be a list of at least one, got {given!r}.")
    models, own = [], []
    for each in given:
        entry = {"model": each} if isinstance(each, str) else each
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise InputError(
                f"{path}: models: expected a name, or `model: NAME` with parameters, got {each!r}."
            )
        for key in entry:
            require_known(f"key of a model in {path}", key, ("model", PARAMETERS))
        models.append(_place(entry["model"], path))
        own.append(_settings(entry.get(PARAMETERS), f"{path}: {entry['model']}"))
    shared = _settings(content.get(PARAMETERS), f"{path}: {PARAMETERS}")
    variations = []
    if any(SCALE in each for each in own):
        raise InputError(f"{path}: {SCALE} is one for all models; models have a weight.")
    for option in dict.fromkeys(key for each in own for key in each):
        values = [each.get(option, ()) + shared.get(option, ()) for each in own]
        if option == "weight":  # as where no weights are given
            values = [cases or ((ALL, 1.0),) for cases in values]
        if not all(values):
            raise InputError(
                f"{path}: {option} is given for some models: give it for all, or under "
                f"{PARAMETERS} for the others."
            )
        variations.append(Variation(option, tuple(map(ByName, values))))
    for option in shared.keys() - {each.option for each in variations}:
        variations.append(Variation(option, (ByName(shared[option]),)))
    if isinstance(content.get(SCALE), list):
        cases = _values(content.pop(SCALE), f"{path}: {SCALE}")
        variations.append(Variation(SCALE, (ByName(cases),)))
    return tuple(models), tuple(sorted(variations, key=lambda each: each.option))


Cases = tuple[tuple[str, Any], ...]


def _settings(given: Any, where: str) -> dict[str, Cases]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"{where}: expected options of the method by name, got {given!r}.")
    return {str(key): _values(value, f"{where}: {key}") for key, value in given.items()}


def _values(given: Any, where: str) -> Cases:
    """Return a value, or a list of values by name, as cases."""
    from rmtllmf_jax.fusion.files.variation import ALL

    if not isinstance(given, list) or not any(isinstance(each, dict) for each in given):
        return ((ALL, _value(given, where)),)
    found = []
    for each in given:
        if not isinstance(each, dict) or "value" not in each:
            raise InputError(
                f"{where}: expected a value, or a list of values such as "
                "{names: '.*mlp.*', value: 0.5}, got "
                f"{each!r}."
            )
        for key in each:
            require_known(f"key of a value in {where}", key, ("names", "value"))
        pattern = converted(each.get("names", ALL), str, f"{where}: names")
        found.append((pattern, _value(each["value"], where)))
    return tuple(found)


def _value(given: Any, where: str) -> Any:
    """Return a value; a list is one of numbers, a gradient over the blocks of the model."""
    from rmtllmf_jax.fusion.files.variation import Gradient

    if isinstance(given, list) and given:
        numbers = [_value(each, where) for each in given]
        return Gradient(converted(numbers, tuple[float, ...], where))
    if not isinstance(given, bool | int | float | str):
        raise InputError(f"{where}: expected a number, a word, true or false, got {given!r}.")
    if isinstance(given, str) and given[:1] in "+-.0123456789":
        return _number(given, where)
    return given
