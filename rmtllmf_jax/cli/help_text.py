"""What `--help` makes of the docstrings of options, and how folders are read from the words."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

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


def help_registry() -> ConstructorRegistry:
    """Return rules for `tyro.cli` that make the help of dataclasses easier to read.

    Line breaks in a docstring do not break the help's lines, positional arguments are called by
    their names in capitals, and a default that is nothing is called `none`. A flag has no opposite
    unless it is `BothWays`.
    """
    registry = ConstructorRegistry()
    under_way: list[StructTypeInfo] = []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if under_way:  # asked by this rule itself, for what the rules of tyro say
            return None
        under_way.append(info)
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            under_way.pop()
        if not isinstance(found, StructConstructorSpec):
            return None
        return replace(found, fields=tuple(map(_readable, found.fields)))

    @registry.primitive_rule
    def paths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        return _place_as(Path, "PATH") if info.type is Path else None

    return registry


def _readable(field: StructFieldSpec) -> StructFieldSpec:
    described: Any = field.type
    marks: dict[str, Any] = {}
    if _POSITIONAL in get_args(described)[1:] and get_origin(get_args(described)[0]) is not Literal:
        marks["metavar"] = field.name.replace("_", "-").upper()
    if field.default in _NOTHING:
        marks["help_behavior_hint"] = "(default: none)"
    if described is bool:
        described = Annotated[described, _ALONE]
    if marks:
        described = Annotated[described, tyro.conf.arg(**marks)]

    def text() -> str | None:
        found = field.helptext() if callable(field.helptext) else field.helptext
        return found and re.sub(r"(?<!\n)\n(?!\n)", " ", found)

    return replace(field, type=described, helptext=text)
