"""Choices as values: frozen dataclasses, and the one small language in which they are written.

An attack, a receiver, a merge method, a repair is an instance of a frozen dataclass. `described`
writes one as the results tables and the command line have it, and `parse` reads it back::

    ties(density=0.1)    sic(order=strongest_first)    paper(users=12, fading=rician(9))

A name is that of the class in snake case, or the class's own `name`; options that have their
defaults are left out, and a class whose values are written otherwise has a method `described`. A
user's own class needs nothing more to work in Python, and is registered nowhere; a mapping from
names to classes serves the command line alone.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import types
import typing
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known

Known = Mapping[str, Any]
"""What a name may stand for: classes, and ready values such as presets."""

_WORDS = {"true": True, "false": False, "yes": True, "no": False, "none": None}
_BARE = re.compile(r"[A-Za-z_]\w*")
_PATH = re.compile(r"(?<=[(=,])\s*([\w~/\\.:+-]*\.[A-Za-z]{2,})\s*(?=[,)])")


def name_of(value: object) -> str:
    """Return the name of a value or class: its own `name`, or its class's in snake case.

    >>> class SumRate: ...
    >>> name_of(SumRate), name_of(SumRate())
    ('sum_rate', 'sum_rate')
    """
    kind = value if isinstance(value, type) else type(value)
    own = kind.__dict__.get("name")
    if isinstance(own, str):
        return own
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()


def by_name(*kinds: type) -> dict[str, type]:
    """Return classes by their names, for a command line to choose from."""
    return {name_of(kind): kind for kind in kinds}


def described(value: Any) -> str:
    """Return a value as one writes it; `parse` reads it back.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Ties:
    ...     density: float = 0.2
    ...     weights: tuple[float, ...] = ()
    >>> described(Ties()), described(Ties(0.1, (1.0, 0.5)))
    ('ties', 'ties(density=0.1, weights=(1.0, 0.5))')
    """
    if not isinstance(value, type) and callable(own := getattr(value, "described", None)):
        return str(own())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_call(name_of(value), differing(value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        plain = _BARE.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else repr(value)
    if isinstance(value, list | tuple):
        inner = ", ".join(map(described, value))
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(each)}" for key, each in value.items()) + "}"
    return repr(value)


def differing(value: Any, like: Any = None) -> dict[str, Any]:
    """Return the options of a dataclass that differ from those of `like`, by default its own."""
    own = {part: getattr(value, part.name) for part in dataclasses.fields(value) if part.init}
    return {
        part.name: each
        for part, each in own.items()
        if each != (_default(part) if like is None else getattr(like, part.name))
    }


def as_call(name: str, options: Mapping[str, Any]) -> str:
    """Return a name with its options, as `parse` reads them.

    >>> as_call("ties", {"density": 0.1}), as_call("ties", {})
    ('ties(density=0.1)', 'ties')
    """
    given = ", ".join(f"{option}={described(value)}" for option, value in options.items())
    return f"{name}({given})" if given else name


def parse(text: str, known: Known, what: str) -> Any:
    """Return the value that a text describes.

    **Arguments:**

    - `text`: ``name``, or ``name(option=value, ...)``; options may be given by place as well.
      Words need no quotes, nor do names of files where nothing is quoted. A value within is read
      by the class's `choices` (a class variable: option -> what a name may stand for).
    - `known`: what a name may stand for: a class, or a value, of which options then make another.
    - `what`: the kind of thing, for messages: "merge method".

    **Raises:** `InputError` that names the option, what it takes, and the known ones.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Ties:
    ...     density: float = 0.2
    >>> parse("ties(density=0.1)", {"ties": Ties}, "merge method")
    Ties(density=0.1)
    """
    name = text.partition("(")[0].strip()
    require_known(what, name, known)  # also where the rest is no expression
    if not {"'", '"'} & set(text):
        text = _PATH.sub(lambda path: repr(path[1]), text)
    tree = expression(text)
    if not isinstance(tree, ast.Name | ast.Call):
        raise InputError(
            f"{what} {text!r} cannot be read: write it as {name}, or with options as "
            f"{name}(option=value, ...)."
        )
    return _built(tree, known, what)


def expression(text: str) -> ast.expr | None:
    """Return the syntax tree of an expression, `None` where there is none."""
    try:
        with warnings.catch_warnings():
            # Regular expressions have backslashes that mean nothing to Python and stay.
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def parse_all(texts: Iterable[str], known: Known, what: str) -> tuple[Any, ...]:
    """Return the values of several texts, each once, see `parse`."""
    return tuple(dict.fromkeys(parse(text, known, what) for text in texts))


def parts_of(text: str) -> list[str]:
    """Return the texts of several values with a plus between.

    >>> parts_of("repeat(times=2)+reload(patterns=('a+',))")
    ['repeat(times=2)', "reload(patterns=('a+',))"]
    """
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "+" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def option_names(kind: type) -> list[str]:
    """Return the options of a class."""
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _built(tree: ast.Name | ast.Call, known: Known, what: str) -> Any:
    called = tree.func if isinstance(tree, ast.Call) else tree
    if not isinstance(called, ast.Name):
        raise InputError(f"{what} {ast.unparse(tree)!r}: a name must come before the brackets.")
    name = called.id
    start = known[require_known(what, name, known)]
    kind = start if isinstance(start, type) else type(start)
    given = _given(tree, kind, name, what) if isinstance(tree, ast.Call) else {}
    if not isinstance(start, type):
        return dataclasses.replace(start, **given) if given else start
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init and field.name not in given and _default(field) is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{what} {name} needs {', '.join(missing)}.")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{what} {name}: {error}") from None


def _given(tree: ast.Call, kind: type, name: str, what: str) -> dict[str, Any]:
    names, hints = option_names(kind), typing.get_type_hints(kind)
    choices: Mapping[str, Known] = getattr(kind, "choices", {})
    pairs = [(keyword.arg or "**", keyword.value) for keyword in tree.keywords]
    if (tree.args or pairs) and not names:
        raise InputError(f"{what} {name} has no options, got {ast.unparse(tree)!r}.")
    if len(tree.args) > len(names):
        raise InputError(f"{what} {name} has {len(names)} options, got {len(tree.args)}.")
    pairs = [*zip(names, tree.args, strict=False), *pairs]
    found: dict[str, Any] = {}
    for option, node in pairs:
        require_known(f"option of {what} {name}", option, names)
        if option in found:
            raise InputError(f"{what} {name}: {option} is given twice.")
        found[option] = _option(node, hints[option], choices.get(option), f"{name}: {option}", what)
    return found


def _option(node: ast.expr, hint: Any, choices: Known | None, where: str, what: str) -> Any:
    value: Any
    if choices is not None and isinstance(node, ast.Name | ast.Call):
        word = node.id.lower() if isinstance(node, ast.Name) else ""
        if word in _WORDS and word not in choices:
            return _WORDS[word]
        return _built(node, choices, where.replace(":", ""))
    try:
        value = _literal(node)
        return _converted(value, hint)
    except (ValueError, TypeError):
        raise InputError(
            f"{what} {where} must be {_takes(hint)}, got {ast.unparse(node)}."
        ) from None


def _literal(node: ast.expr) -> Any:
    """Return a number, text, tuple, list or mapping; a bare word is a text."""
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id.lower(), node.id)
    if isinstance(node, ast.Tuple):
        return tuple(map(_literal, node.elts))
    if isinstance(node, ast.List):
        return list(map(_literal, node.elts))
    if isinstance(node, ast.Dict):
        return {
            _literal(key): _literal(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Name):
        sign = -1 if isinstance(node.op, ast.USub) else 1
        return sign * float(node.operand.id)  # -inf
    return ast.literal_eval(node)


def converted(value: Any, hint: Any, what: str) -> Any:
    """Return a literal as a field of this type holds it.

    **Raises:** `InputError` that says what it takes.

    >>> converted(1, float, "scale"), converted(["a"], tuple[str, ...], "names")
    (1.0, ('a',))
    """
    try:
        return _converted(value, hint)
    except (ValueError, TypeError):
        raise InputError(f"{what} must be {_takes(hint)}, got {value!r}.") from None


def _converted(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if hint is float:
        return _fail() if isinstance(value, bool) else float(value)
    if hint in (bool, int, str):
        return value if type(value) is hint else _fail()
    if hint is type(None):
        return None if value is None else _fail()
    if origin is typing.Literal:
        return value if value in arguments else _fail()
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _converted(value, argument)
            except (ValueError, TypeError):
                continue
        return _fail()
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            _fail()
        return {key: _converted(each, arguments[1]) for key, each in value.items()}
    if isinstance(origin, type) and issubclass(origin, Iterable):
        if not isinstance(value, list | tuple):
            _fail()
        return tuple(_converted(each, arguments[0]) for each in value)
    return _fail()


def _takes(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if hint in plain:
        return plain[hint]
    if hint is type(None):
        return "none"
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(map(_takes, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping such as {'layers/0': 0.5}"
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return f"{_takes(arguments[0])} each, in brackets and separated by commas"
    return "a value of another kind"


def _default(field: dataclasses.Field[Any]) -> Any:
    missing = dataclasses.MISSING
    return field.default if field.default_factory is missing else field.default_factory()


def _fail() -> typing.NoReturn:
    raise ValueError
