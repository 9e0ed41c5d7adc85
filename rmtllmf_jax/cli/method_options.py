"""NAME=VALUE pairs as the options of a merge rule, by the types of its dataclass."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_options(pairs: Sequence[str], options: type, method: str) -> Any:
    """Return a rule's options from pairs such as `density=0.2`, `weights=1,0.5`.

    Fields that hold whole trees (`metadata={"tree": True}`) are no options of a command line.

    **Raises:** `InputError` that names the option, what it takes, and the known ones.
    """
    hints = typing.get_type_hints(options)
    names = option_names(options)
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--options: expected NAME=VALUE, got {pair!r}.")
        if not names:
            raise InputError(f"--options: the method {method} has none, got {pair!r}.")
        require_known(f"option of {method}", name, names)
        if name in given:
            raise InputError(f"--options: {name} is given twice.")
        try:
            given[name] = _convert(text, hints[name])
        except (ValueError, TypeError):
            raise InputError(
                f"--options: {name} of {method} must be {_described(hints[name])}, got {text!r}."
            ) from None
    try:
        return options(**given)
    except InputError as error:
        raise InputError(f"--options of {method}: {error}") from None
    except TypeError:
        missing = [name for name in names if name not in given and _is_required(options, name)]
        raise InputError(f"--options: {method} needs {', '.join(missing)}.") from None


def option_names(options: type) -> list[str]:
    """Return the options of a rule that a command line can give."""
    return [field.name for field in dataclasses.fields(options) if not field.metadata.get("tree")]


def _convert(text: str, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return _TRUTH.get(text.lower()) if text.lower() in _TRUTH else _fail()
    if hint in (int, float, str):
        return hint(text)
    if origin is typing.Literal:
        return text if text in arguments else _fail()
    if origin is tuple:
        return tuple(_convert(part.strip(), arguments[0]) for part in text.split(",") if part)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        for argument in arguments:
            try:
                return _convert(text, argument)
            except (ValueError, TypeError):
                continue
        return _fail()
    if isinstance(origin, type) and issubclass(origin, Mapping):
        content = json.loads(text)
        if not isinstance(content, dict):
            _fail()
        return {key: _convert(_plain(value), arguments[1]) for key, value in content.items()}
    return _fail()


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if hint in plain:
        return plain[hint]
    if hint is type(None):
        return "none"
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return f"{_described(arguments[0])} each, separated by commas"
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_described(argument) for argument in arguments)
    return 'a JSON object such as {"layers/0": 0.5}'


def _is_required(options: type, name: str) -> bool:
    field = next(field for field in dataclasses.fields(options) if field.name == name)
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _fail() -> typing.NoReturn:
    raise ValueError
