"""Choices as values: what they are called, and the language in which they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import by_name, described, name_of, parse, parse_all


@dataclass(frozen=True)
class KFactor:
    k_db: float = 9.0


@dataclass(frozen=True)
class FlatFading:
    name: ClassVar[str] = "flat"


@dataclass(frozen=True)
class Everything:
    share: float = 0.2
    count: int = 3
    exact: bool = False
    kind: Literal["block", "tensor"] = "block"
    weights: tuple[float, ...] = ()
    places: Sequence[float] | None = None
    text: str = "a text"
    layers: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    fading: KFactor | FlatFading = FlatFading()

    choices: ClassVar[Mapping[str, Mapping[str, object]]] = {"fading": by_name(KFactor, FlatFading)}

    def __post_init__(self) -> None:
        if self.share > 1:
            raise InputError(f"share must be at most 1, got {self.share}.")


@dataclass(frozen=True)
class Needy:
    users: int


KNOWN = {**by_name(Everything, Needy, FlatFading), "half": Everything(share=0.5)}


def read(text: str) -> object:
    return parse(text, KNOWN, "thing")


def test_names_are_the_classes_in_snake_case_or_their_own():
    assert [name_of(kind) for kind in (Everything, KFactor, FlatFading)] == [
        "everything",
        "k_factor",
        "flat",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("everything", Everything()),
        (" everything() ", Everything()),
        ("everything(0.5, count=4)", Everything(0.5, 4)),
        ("everything(share=1)", Everything(1.0)),
        ("everything(share=-inf)", Everything(float("-inf"))),
        ("everything(exact=yes, kind=tensor)", Everything(exact=True, kind="tensor")),
        ("everything(weights=(1, 0.5))", Everything(weights=(1.0, 0.5))),
        ("everything(places=[1, 2], text=word)", Everything(places=(1.0, 2.0), text="word")),
        ("everything(places=none)", Everything()),
        ("everything(layers={'a/0': 1, 'b': (0, 1)})", Everything(layers={"a/0": 1, "b": (0, 1)})),
        ("everything(fading=k_factor(k_db=3))", Everything(fading=KFactor(3.0))),
        ("half", Everything(share=0.5)),
        ("half(count=7)", Everything(share=0.5, count=7)),
        ("needy(users=2)", Needy(2)),
    ],
)
def test_texts_are_read(text: str, value: object):
    assert read(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("everythin", "unknown thing 'everythin'. Did you mean 'everything'?"),
        ("everything(shar=1)", "option of thing everything 'shar'. Did you mean 'share'?"),
        ("everything(share=word)", "everything: share must be a number, got word."),
        ("everything(share=true)", "everything: share must be a number, got true."),
        ("everything(count=1.5)", "everything: count must be a whole number, got 1.5."),
        ("everything(kind=blok)", "everything: kind must be block or tensor, got blok."),
        ("everything(weights=1)", "everything: weights must be a number each, in brackets"),
        ("everything(share=2)", "thing everything: share must be at most 1, got 2.0."),
        ("everything(share=1, share=2)", "everything: share is given twice."),
        ("everything(0.1, share=0.2)", "everything: share is given twice."),
        ("everything(share=1", "cannot be read: write it as everything"),
        ("everything(share=__import__('os'))", "share must be a number, got __import__('os')."),
        ("everything(fading=k_facto(3))", "fading 'k_facto'. Did you mean 'k_factor'?"),
        ("everything(fading=k_factor(k_db=x))", "k_factor: k_db must be a number, got x."),
        ("flat(1)", "thing flat has no options, got 'flat(1)'."),
        ("needy", "thing needy needs users."),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str):
    with pytest.raises(InputError) as error:
        read(text)
    assert said in str(error.value)


def test_each_of_several_comes_once():
    assert parse_all(("flat", "needy(2)", "flat"), KNOWN, "thing") == (FlatFading(), Needy(2))


numbers = st.floats(allow_nan=False, max_value=1.0)


@given(
    st.builds(
        Everything,
        share=numbers,
        count=st.integers(),
        exact=st.booleans(),
        kind=st.sampled_from(["block", "tensor"]),
        weights=st.lists(numbers).map(tuple),
        places=st.none() | st.lists(numbers).map(tuple),
        text=st.text(),
        layers=st.dictionaries(st.text(), numbers),
        fading=st.builds(KFactor, numbers) | st.just(FlatFading()),
    )
)
def test_what_is_described_is_read_back(value: Everything):
    assert read(described(value)) == value
