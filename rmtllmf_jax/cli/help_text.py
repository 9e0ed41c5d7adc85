"""What `--help` makes of the docstrings of options, and how folders are read from the words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
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
    """Return a folder, file or URL as it was meant where no shell saw to the `~`.

    **Raises:** `NoPlace` for nothing, which would be the folder that one happens to be in.
    """
    if not words[0]:
        raise NoPlace
    return os.path.expanduser(words[0])


Place = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=_place,
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
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
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: Path(_place(words)),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

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
    return replace(field, type=described, helptext=_in_paragraphs(field.helptext))


def _in_paragraphs(
    text: str | Callable[[], str | None] | None,
) -> str | Callable[[], str | None] | None:
    """Return a help text whose only line breaks are those between paragraphs."""
    if not callable(text):
        return None if text is None else _joined(text)
    return lambda: None if (found := text()) is None else _joined(found)


def _joined(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)
