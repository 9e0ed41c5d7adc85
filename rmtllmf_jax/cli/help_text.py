"""What `--help` makes of the docstrings of options, and how folders are read from the words."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

_NOTHING = (None, (), "")
_POSITIONAL = get_args(tyro.conf.Positional[str])[1]
_ALONE = get_args(tyro.conf.FlagCreatePairsOff[bool])[1]


class NoPlace(Exception):
    """An option that names a folder is given an empty text. No `ValueError`: tyro catches these."""


def _place(words: list[str]) -> str:
    """Return a folder, file or URL as it was meant where no shell saw to the `~`."""
    if not words[0]:  # which would be the folder that one happens to be in
        raise NoPlace(
            'a folder is given as "", which is none; the current one is called . (a dot).'
        )
    return os.path.expanduser(words[0])


def _place_as(kind: type, metavar: str) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: kind(_place(words)),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


Place = Annotated[str, _place_as(str, "STR")]
"""A folder or something else in one text, such as a URL."""

BothWays = Annotated[bool, "--x and --no-x"]
"""A flag that can be given and taken back: one whose default a recipe may change."""


GROUP = "group"
"""Name of the class variable that says under which title `--help` lists a class's own options."""

WIDTH = 80
"""Columns of a help page."""


def described(command: type) -> str:
    """Return the description of a command: its docstring in lines, each example in its own.

    The lines begin with a space, as those of the options do; tyro would join others.
    """
    *texts, examples = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    blocks = [textwrap.wrap(text, WIDTH - 2) for text in texts]
    title, _, commands = " ".join(examples.split()).partition(": ")
    shown = [f"{title}:"]
    for example in commands.split("; "):
        lines = textwrap.wrap(example, WIDTH - 9, break_on_hyphens=False)
        shown += textwrap.indent(" \\\n  ".join(lines), "  ").splitlines()
    return "\n\n".join(textwrap.indent("\n".join(lines), " ") for lines in [*blocks, shown])


def line_up(name: str, text: str) -> str:
    """Return a name and what it means as one entry of a help page."""
    beside = " " * 22
    return textwrap.fill(text, WIDTH, initial_indent=f"  {name:20}", subsequent_indent=beside)


@dataclass(frozen=True)
class _Group:
    """Options under a title of their own: for tyro a struct within that of the command."""

    fields: tuple[StructFieldSpec, ...]


def help_registry() -> ConstructorRegistry:
    """Return rules for `tyro.cli` that make the help of dataclasses easier to read.

    Line breaks in a docstring do not break the help's lines, options are listed under the `GROUP`
    of the class that has them, positional arguments are called by their names in capitals, and
    what has no default is called optional. A flag has no opposite unless it is `BothWays`.
    """
    registry = ConstructorRegistry()
    under_way: list[StructTypeInfo] = []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if isinstance(info.type, _Group):
            return StructConstructorSpec(dict, info.type.fields)
        if under_way:  # asked by this rule itself, for what the rules of tyro say
            return None
        under_way.append(info)
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            under_way.pop()
        return _in_groups(info.type, found) if isinstance(found, StructConstructorSpec) else None

    @registry.primitive_rule
    def paths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        return _place_as(Path, "PATH") if info.type is Path else None

    @registry.primitive_rule
    def or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kinds = get_args(info.type) if get_origin(info.type) in (Union, UnionType) else ()
        others = tuple(kind for kind in kinds if kind is not NoneType)
        if len(others) == len(kinds):
            return None
        either: Any = Union[others]  # noqa: UP007 - made at run time
        inner = PrimitiveTypeInfo.make(either, info.markers)
        found = ConstructorRegistry.get_primitive_spec(inner)
        return _or_none(found) if isinstance(found, PrimitiveConstructorSpec) else None

    return registry


def _struct(title: str, fields: tuple[StructFieldSpec, ...]) -> StructFieldSpec:
    group: Any = _Group(fields)
    return StructFieldSpec(name=title, type=group, default=tyro.MISSING, helptext="")


def _or_none(found: PrimitiveConstructorSpec[Any]) -> PrimitiveConstructorSpec[Any]:
    """Return a rule for values that also takes `None`, of which its metavar says nothing."""
    return replace(
        found,
        choices=found.choices and (*found.choices, "None"),
        instance_from_str=lambda words: (
            None if words == ["None"] else found.instance_from_str(words)
        ),
        is_instance=lambda value: value is None or found.is_instance(value),
        str_from_instance=lambda value: (
            ["None"] if value is None else found.str_from_instance(value)
        ),
    )


def _in_groups(command: Any, found: StructConstructorSpec) -> StructConstructorSpec:
    """Return the options of a command with those of a group in a struct of their own."""
    titles: dict[str, str | None] = {}
    groups: dict[str | None, list[StructFieldSpec]] = {None: []}
    for owner in inspect.getmro(command):
        title = vars(owner).get(GROUP)
        groups.setdefault(title, [])
        for name in inspect.get_annotations(owner):
            titles.setdefault(name, title)
    for field in found.fields:
        groups[titles.get(field.name)].append(_readable(field))
    alone = groups.pop(None)
    structs = [_struct(str(title), tuple(fields)) for title, fields in groups.items() if fields]

    def instantiate(**values: Any) -> Any:
        for struct in structs:
            values |= values.pop(struct.name)
        return found.instantiate(**values)

    return StructConstructorSpec(instantiate, (*alone, *structs))


def _readable(field: StructFieldSpec) -> StructFieldSpec:
    described: Any = field.type
    marks: dict[str, Any] = {}
    if _POSITIONAL in get_args(described)[1:] and get_origin(get_args(described)[0]) is not Literal:
        marks["metavar"] = field.name.replace("_", "-").upper()
    if described is bool:
        described = Annotated[described, _ALONE]
        marks["help_behavior_hint"] = "(default: off)"
    elif field.default in _NOTHING:
        marks["help_behavior_hint"] = "(optional)"
    if marks:
        described = Annotated[described, tyro.conf.arg(**marks)]

    def text() -> str | None:
        found = field.helptext() if callable(field.helptext) else field.helptext
        return found and re.sub(r"(?<!\n)\n(?!\n)", " ", found)

    return replace(field, type=described, helptext=text)
