"""Scenarios: what lies between a run's users and the base station, by name."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from rmtllmf_jax.channel import ATTACKS, NO_ATTACK, Attack, NoAttack
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described, parse, parts_of
from rmtllmf_jax.uplink.poison import POISONS, Poison


class Scenario(str):
    """The name of a scenario as in tables, with its `attack`; `clean` has none.

    Made from such a name, from an attack, from None for `clean`, or from a tuple of one of these
    and `poisons`: what malicious users send in place of their task vectors, as text for example
    `sum_rate+sign_flip`.

    **Raises:** `InputError` that names the nearest one.

    >>> Scenario("towards(2)"), Scenario("towards(2)").attack
    ('towards(user=2)', Towards(user=2))
    >>> Scenario(None), Scenario(NoAttack())
    ('clean', 'ideal')
    >>> Scenario("ideal+sign_flip(user=3)").poisons
    (SignFlip(user=3),)
    """

    attack: Attack | None
    poisons: tuple[Poison, ...]

    def __new__(cls, given: str | Attack | Sequence[Any] | None) -> Scenario:
        if isinstance(given, Scenario):
            return given
        attack, *poisons = (
            _parsed(given)
            if isinstance(given, str)
            else given
            if isinstance(given, tuple)
            else (given,)
        )
        for poison in poisons:
            if getattr(poison, "stage", "") != "content":
                raise InputError(f"scenario: expected poisons after the attack, got {poison!r}.")
        plain = "clean" if attack is None else "ideal" if attack == NO_ATTACK else described(attack)
        made = super().__new__(cls, "+".join([plain, *map(described, poisons)]))
        made.attack, made.poisons = attack, tuple(poisons)
        return made

    def __getnewargs__(self) -> tuple[tuple[Any, ...]]:  # type: ignore[override]
        return ((self.attack, *self.poisons),)


@functools.cache
def _parsed(text: str) -> tuple[Any, ...]:
    first, *others = parts_of(text)
    if first == "clean":
        attack: Attack | None = None
    else:
        known = {"clean": NoAttack, "ideal": NoAttack, **ATTACKS}
        attack = parse(first, known, "scenario")
    return attack, *(parse(each, POISONS, "poison") for each in others)
