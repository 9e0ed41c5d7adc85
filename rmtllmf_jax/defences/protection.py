"""Protections: all that a defender chooses along the chain, as one tuple of values.

Every value knows the stage at which it acts: a `receiver`, an `air` scheme, a `transport` (what is
sent), `estimator`s of what was sent, and repairs of the merged model, which come last. So
``(Repeat(2), Shrink(), Reload(), Realign())`` is a protection, and that of the paper is
``(Reload(), Realign())``. A name stands for the protection with that name, also inside another:
``(Repeat(2), "r-mtllmf")``, written ``repeat+r-mtllmf``. Your own value declares its `stage`; one
that does not is a repair.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rmtllmf_jax.channel import AIR, RECEIVERS, Air, Receiver
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import described, parse, parts_of
from rmtllmf_jax.defences.repairs import REPAIRS, FromBase, Realign, Reload, Repair
from rmtllmf_jax.uplink import (
    ESTIMATORS,
    TRANSPORTS,
    Coded,
    Estimator,
    MseTransport,
    Transport,
)
from rmtllmf_jax.uplink.transports import require_estimators

Protection = tuple[Any, ...]
"""Values along the chain, repairs in the order in which they are applied; none protects nothing."""

Names = Mapping[str, Protection]

PARTS: Mapping[str, type] = MappingProxyType(
    {**RECEIVERS, **AIR, **TRANSPORTS, **ESTIMATORS, **REPAIRS}
)
"""What a protection may be made of, by the names that the command line knows."""


class Stages(NamedTuple):
    """A protection by the stages of the chain; `None` leaves a stage at its default."""

    receiver: Receiver | None
    air: Air | None
    transport: Transport | MseTransport | None
    estimators: tuple[Estimator, ...]
    repairs: tuple[Repair, ...]


def named(
    reload: Reload | None = None, realign: Realign | None = None, control: Realign | None = None
) -> dict[str, Protection]:
    """Return the protections that have names.

    **Arguments:** `control`: how the base model is realigned; by default like merged models.
    """
    reload, realign = reload or Reload(), realign or Realign()
    return {
        "none": (),
        "freeze": (reload,),
        "realign": (realign,),
        "r-mtllmf": (reload, realign),
        "phy": (Coded(),),
        "holistic": (Coded(), reload, realign),
        # The same shots spent without any task vector: what realignment alone is worth.
        "control": (FromBase(), reload, control or realign),
    }


PROTECTIONS: Names = MappingProxyType(named())
"""The named protections with their default options."""

PAPER = ("none", "freeze", "realign", "r-mtllmf", "control")
"""R-MTLLMF, its halves, what it is without and what its shots are worth alone."""


def parse_protection(text: str, names: Names = PROTECTIONS) -> str | Protection:
    """Return the protection that a text describes.

    One of `names`, or values and names joined by plus signs: ``repeat(times=2)+r-mtllmf``.

    **Raises:** `InputError` for an unknown name or option, and as `stages_of`.
    """
    if text in names:
        return text
    parts = parts_of(text)
    if len(parts) == 1 and "(" not in text and text not in PARTS:
        require_known("protection", text, (*names, *PARTS))
    made = tuple(part if part in names else parse(part, PARTS, "defence") for part in parts)
    stages_of(made, names)
    return made


def stages_of(protection: str | Protection, names: Names = PROTECTIONS) -> Stages:
    """Return a protection, which may be given by its name, by the stages of the chain.

    **Raises:** `InputError` for an unknown name, for a value that is not a defence, and for two
    values at a stage that takes one.
    """
    found: dict[str, list[Any]] = {stage: [] for stage in _STAGES}
    for part in _parts(protection, names):
        stage = getattr(part, "stage", "repair")
        odd = isinstance(part, type) or (stage == "repair" and not isinstance(part, Repair))
        if odd or stage not in found:
            raise InputError(
                f"protection: expected defences such as defences.Reload(), got {part!r}."
            )
        found[stage].append(part)
    for stage in _ONE_OF:
        if len(found[stage]) > 1:
            both = " and ".join(map(described, found[stage]))
            raise InputError(f"protection: {both} are two for the stage {stage}: leave one out.")
    receiver, air, transport = (next(iter(found[stage]), None) for stage in _ONE_OF)
    require_estimators(transport, tuple(found["estimator"]))
    return Stages(receiver, air, transport, tuple(found["estimator"]), tuple(found["repair"]))


_ONE_OF = ("receiver", "air", "transport")
_STAGES = (*_ONE_OF, "estimator", "repair")


def _parts(protection: str | Protection, names: Names) -> Protection:
    if isinstance(protection, str):
        return names[require_known("protection", protection, names)]
    return tuple(
        part
        for each in protection
        for part in (_parts(each, names) if isinstance(each, str) else (each,))
    )


def repairs_of(protection: str | Protection, names: Names = PROTECTIONS) -> tuple[Repair, ...]:
    """Return the repairs of a protection that may be given by its name.

    **Raises:** `InputError` as `stages_of`.
    """
    return stages_of(protection, names).repairs


def control_of(protection: str | Protection) -> str | Protection | None:
    """Return the control: the base model realigned like the merged one, on the same samples.

    A protection that sees samples is compared with its control, as its gain over no protection may
    come from the samples alone. `control` for a named protection that sees samples, `None` for one
    that sees none.

    **Raises:** `InputError` as `stages_of`.

    >>> control_of("realign"), control_of((Reload(),)), control_of((Realign(5),))[:1]
    ('control', None, (FromBase(),))
    """
    if not _sees(repairs := repairs_of(protection)):
        return None
    if isinstance(protection, str) or any(
        isinstance(each, str) and _sees(repairs_of(each)) for each in protection
    ):
        return "control"
    return (FromBase(), *repairs) if split(repairs).fuse else protection


def _sees(repairs: tuple[Repair, ...]) -> bool:
    return any(getattr(repair, "shots", 0) for repair in repairs)


def protection_name(protection: str | Protection) -> str:
    """Return what a protection is called in tables: its name, or its values one by one."""
    if isinstance(protection, str):
        return protection
    return "+".join(each if isinstance(each, str) else described(each) for each in protection) or (
        "none"
    )


class Split(NamedTuple):
    """Repairs as a compiled program takes them: the data, and the part compiled in."""

    fuse: bool
    """Whether the merged model counts, or the base alone."""
    reload: Reload | None
    """The leaves that are reloaded at once."""
    rest: tuple[Repair, ...]
    """What is done then."""


def split(repairs: tuple[Repair, ...]) -> Split:
    """Return the leading `FromBase` and `Reload` apart from the rest.

    Both are linear in the model, so a flag can switch them on and off: protections that differ in
    nothing else share a program.
    """
    fuse = not isinstance(next(iter(repairs), None), FromBase)
    rest = repairs if fuse else repairs[1:]
    reload = next(iter(rest), None)
    if isinstance(reload, Reload):
        return Split(fuse, reload, rest[1:])
    return Split(fuse, None, rest)
