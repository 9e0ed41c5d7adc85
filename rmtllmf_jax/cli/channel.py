"""`rmtllmf channel`: what attacks do to the users of a channel, in numbers and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rmtllmf_jax.cli.options import Cache, ChannelOptions, print_as_json, print_table, suggest
from rmtllmf_jax.common.errors import InputError, require_at_least, require_seed
from rmtllmf_jax.common.extras import MissingExtra, needed_by
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.common.values import described, parse_all
from rmtllmf_jax.runs.environment import default_cache, use_compilation_cache
from rmtllmf_jax.runs.folder import working_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray

    from rmtllmf_jax.channel import Link, Receiver

_ATTACKS = ("none", "strongest_user", "sum_rate")
_FIGURES = Path("runs/channel")
# Drops of the mean eigenvalues, and symbols of a constellation.
_EIGENVALUE_DROPS, _SYMBOLS, _QAM = 1000, 1500, 64


@dataclass(kw_only=True)
class Channel(ChannelOptions):
    """Draw channels, attack them, and print and plot the users' errors (MSE) and rates.

    Example: rmtllmf channel --preset paper --draws 20000 --attack none sum_rate --json
    """

    attack: tuple[str, ...] = ()
    """Attacks: none, white, white_in_range, sum_rate, sum_rate_floor_aware, strongest_user,
    min_max_rate, sum_mse, towards(user=0), jammer(antennas=2, covariance=worst), guessed(csi=0.5);
    by default none, strongest_user and sum_rate."""
    draws: int = 20_000
    """Channel realisations over which means and percentiles are taken."""
    seed: int = 0
    """Root of all random numbers."""
    json: bool = False
    """Print JSON and nothing else; figures only if --out is given. A list with one object per
    attack, with these names: preset, receiver, draws, seed, attack; mse_mean (over users and
    draws), mse_standard_error (of it), mse_attacked (mean over the strongest users of the draws),
    sum_rate (nats per channel use), percentiles ("5", "50" and "95", of a draw's mean MSE),
    worst_user_snr_db (of the parameters, where an MSE of 1 has c0_db), c0_db, user_mse and
    user_rate (weakest received power first). null means infinite or undefined."""
    out: Path | None = None
    """Folder for the figures (of a channel preset); runs/channel unless --json is given."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        require_at_least("--draws", self.draws, 1, 2**32)  # a key is made of numbers of 32 bits
        require_seed("--seed", self.seed)
        links = _chosen(self)
        use_compilation_cache(self.cache_dir)
        out = self._figures() if links[0].preset.has_channel else None
        if out is None:
            self._print(_users_mse(links, self.draws, self.seed), links[0])
            return
        with working_in(out):
            drops = _users_mse(links, self.draws, self.seed)
            self._print(drops, links[0])
            self._plot(drops, links, out)

    def _figures(self) -> Path | None:
        """Return the folder of the figures, `None` without any."""
        if self.json and self.out is None:
            return None
        try:
            with needed_by("drawing figures"):
                from rmtllmf_jax.report import channel_plots  # noqa: F401
        except MissingExtra as error:
            if self.out is not None:
                raise
            note(f"no figures: {error}")
            return None
        return self.out or _FIGURES

    def _print(self, drops: Mapping[str, ndarray], link: Link) -> None:
        from rmtllmf_jax.report.channel_summary import channel_summary
        from rmtllmf_jax.uplink.kappa import DEFAULT_C0_DB

        rows = [
            {
                "preset": self.preset,
                "receiver": described(link.receiver) if link.preset.has_channel else None,
                "draws": self.draws,
                "seed": self.seed,
                "attack": attack,
                "c0_db": DEFAULT_C0_DB,
                **channel_summary(mse, DEFAULT_C0_DB),
            }
            for attack, mse in drops.items()
        ]
        if self.json:
            print_as_json(rows)
        else:
            _print_table(f"Channel {self._note(link)}", rows)

    def _plot(self, drops: Mapping[str, ndarray], links: tuple[Link, ...], out: Path) -> None:
        from rmtllmf_jax.common.files import write_bytes
        from rmtllmf_jax.report import channel_plots
        from rmtllmf_jax.report.style import image_bytes

        note = self._note(links[0])
        figures = {
            "users": channel_plots.user_figure(drops, note),
            "distribution": channel_plots.distribution_figure(drops, note),
            **_channel_figures(links, self.draws, self.seed, note),
        }
        for name, figure in figures.items():
            write_bytes(out / f"{name}.png", image_bytes(figure))
            if not self.json:
                print(out / f"{name}.png")
        if not self.json:
            preset, run = quote(self.preset), "runs/on_this_channel"
            suggest(f"merge over it: rmtllmf reproduce demo --preset {preset} --out {run}")

    def _note(self, link: Link) -> str:
        receiver = [_title(link.receiver)] * link.preset.has_channel
        return ", ".join([self.preset, f"{self.draws:,} draws", f"seed {self.seed}", *receiver])


def _title(receiver: Receiver) -> str:
    from rmtllmf_jax.channel import Lmmse, Sic

    if isinstance(receiver, Sic):
        return f"SIC {receiver.order.replace('_', ' ')}"
    return "joint LMMSE" if isinstance(receiver, Lmmse) else described(receiver)


def _chosen(options: Channel) -> tuple[Link, ...]:
    """One link for each attack, each once.

    **Raises:** `InputError` for an unknown preset, receiver or attack, and for options that need a
    channel where the preset has none.
    """
    from rmtllmf_jax.channel import ATTACKS, PRESETS, Link, get_preset, get_receiver

    preset, receiver = get_preset(options.preset), get_receiver(options.receiver)
    by_default = _ATTACKS if preset.has_channel else ("none",)
    attacks = parse_all(options.attack or by_default, ATTACKS, "--attack")
    if options.out is not None and not preset.has_channel:
        raise InputError(
            f"--out {options.out} needs a channel, and the preset {options.preset!r} has none, "
            "only the errors that users end up with; leave it out, or choose a channel preset "
            f"({', '.join(PRESETS)})."
        )
    return tuple(Link(preset, attack, receiver) for attack in attacks)


def _users_mse(links: tuple[Link, ...], draws: int, seed: int) -> dict[str, ndarray]:
    """(draws, users): the users' MSE under each attack, from the weakest to the strongest."""
    import jax
    import numpy as np

    from rmtllmf_jax.channel.survey import mse_over_drops
    from rmtllmf_jax.common.progress import progress_bar

    found = []
    with progress_bar("draws", draws) as advance:
        for mse in mse_over_drops(links, jax.random.key(seed), draws):
            found.append(np.asarray(mse))
            advance(len(mse))
    by_attack = np.moveaxis(np.concatenate(found), 1, 0)
    return dict(zip((described(link.attack) for link in links), by_attack, strict=True))


def _channel_figures(
    links: tuple[Link, ...], draws: int, seed: int, note: str
) -> dict[str, Figure]:
    """Figures that need the channels themselves: eigenvalues and constellations."""
    import jax
    import numpy as np

    from rmtllmf_jax import channel
    from rmtllmf_jax.channel.survey import equalised_symbols, spectra
    from rmtllmf_jax.report import channel_plots

    key, preset, receiver = jax.random.key(seed), links[0].preset, links[0].receiver
    users, received = preset.users, {}
    shown = 0, users // 2, users - 1
    for link in links:
        symbols, sinr, wrong = equalised_symbols(link, key, shown, _SYMBOLS, _QAM)
        drawn = symbols, channel.snr.db(sinr), wrong
        received[described(link.attack)] = channel_plots.Equalised(*map(np.asarray, drawn))
    ideal = np.asarray(channel.modem.constellation(_QAM))
    cancelled = ", true symbols cancelled" if getattr(receiver, "chooses", "") else ""
    what = f"{_QAM}-QAM{cancelled}, first drop of {note}"
    of_channel, spectrum = spectra(links, key, min(draws, _EIGENVALUE_DROPS))
    of_attacks = dict(zip((described(link.attack) for link in links), spectrum, strict=True))
    return {
        "eigenvalues": channel_plots.eigenvalue_figure(
            of_channel, of_attacks, preset.attack_budget, note
        ),
        "constellation": channel_plots.constellation_figure(received, ideal, what),
    }


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    width = max(len(row["attack"]) for row in rows)  # so that no name is folded

    def line(name: str, unit: str, values: list[float], form: str) -> list[str]:
        cells = ("-" if math.isnan(value) else format(value, form) for value in values)
        return [name, unit, *(cell.rjust(width) for cell in cells)]

    percentiles = {p: [row["percentiles"][p] for row in rows] for p in rows[0]["percentiles"]}
    lines = [
        line("mean MSE", "-", [row["mse_mean"] for row in rows], ".4f"),
        line("its standard error", "-", [row["mse_standard_error"] for row in rows], ".1e"),
        *(line(f"{p} % of drops below", "-", values, ".4f") for p, values in percentiles.items()),
        line("strongest user's MSE", "-", [row["mse_attacked"] for row in rows], ".4f"),
        line("sum rate", "nats", [row["sum_rate"] for row in rows], ".2f"),
        line("worst parameter SNR", "dB", [row["worst_user_snr_db"] for row in rows], ".1f"),
    ]
    header = ["statistic", "unit", *(row["attack"] for row in rows)]
    print_table(title, header, lines)
