"""The link of `rmtllmf fuse`: options as one value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from rmtllmf_jax.cli.options import UplinkOptions, default_of
from rmtllmf_jax.common.errors import InputError

if TYPE_CHECKING:
    from rmtllmf_jax.uplink import StreamedUplink


@dataclass(kw_only=True)
class LinkOptions(UplinkOptions):
    """The link that task vectors come over before they are merged."""

    link: str | None = None
    """Merge what a base station would receive: each model's task vector is sent over the uplink,
    model q as user q of --preset, under this attack: ideal (only thermal noise), sum_rate,
    strongest_user, ...; users may send poison instead, as in 'sum_rate+sign_flip(user=0)'. The
    names are those of --scenarios in `rmtllmf sweep`. By default the task vectors arrive without
    errors."""
    protection: str = "none"
    """With --link: choices along the chain, joined by plus signs: a receiver, on the air
    repeat(times=2), harq, hop or schedule, a transport gaussian, sparse(share=0.1), coded,
    adapter(rank=16, targets=('q_proj', 'v_proj')), qam(size=64) or analogue, estimators shrink,
    reliability(alpha=0.5) and singular_values, as in 'repeat(times=4)+shrink'."""
    draw: int = 0
    """With --link: which of the draws (channel realisations) to use, from 0, as in a sweep."""
    seed: int = 0
    """Root of all random numbers: the masks of dare and della, channel and noise of --link."""

    def uplink(self, models: int) -> StreamedUplink | None:
        """Return the link that so many models are sent over; none without `--link`.

        **Raises:** `InputError` for an unknown name, for what cannot go together, leaf by leaf or
        with files, and for options of a link that is not there.
        """
        if self.link is None:
            self._require_no_link()
            return None
        from rmtllmf_jax.channel import ONCE, Link, get_preset, get_receiver
        from rmtllmf_jax.defences.protection import parse_protection, stages_of
        from rmtllmf_jax.uplink import GAUSSIAN, Scenario, StreamedUplink

        scenario = Scenario(self.link)
        if scenario.attack is None:
            raise InputError(
                f"--link {self.link}: clean has no channel: use ideal (only thermal noise), an "
                "attack, or leave --link out."
            )
        stages = stages_of(parse_protection(self.protection))
        for repair in stages.repairs:
            _refuse(repair)
        link = Link(
            get_preset(self.preset),
            scenario.attack,
            stages.receiver or get_receiver(self.receiver),
            stages.air or ONCE,
        )
        made = StreamedUplink(
            link,
            stages.transport or GAUSSIAN,
            stages.estimators,
            scenario.poisons,
            self.c0,
            self.kappa,
            self.seed,
            self.draw,
        )
        made.require_users(models)
        return made

    def _require_no_link(self) -> None:
        for option in fields(LinkOptions):
            changed = getattr(self, option.name) != default_of(option)
            if changed and option.name not in ("link", "seed"):
                name = option.name.replace("_", "-")
                raise InputError(
                    f"--{name} needs a link: give --link, such as --link sum_rate, or leave it out."
                )


def _refuse(repair: object) -> None:
    """Refuse a repair, which needs a model that runs."""
    from rmtllmf_jax.common.values import described
    from rmtllmf_jax.defences.repairs import Reload

    if isinstance(repair, Reload):
        raise InputError(
            f"{described(repair)}: on files, tensors are taken from the base by "
            "--from-base PATTERN; leave it out of --protection."
        )
    raise InputError(
        f"{described(repair)} needs samples and a running model, but there are only files: "
        "leave it out, or use `rmtllmf sweep`."
    )
