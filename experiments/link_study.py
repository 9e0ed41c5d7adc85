"""Is the uplink's Gaussian surrogate what a symbol-level link does to task vectors?

    python experiments/link_study.py

sends the eight task vectors of a small MLP (digits at eight angles) over channels of the `paper`
preset, symbol by symbol, and lays the surrogate beside it: independent Gaussian errors of variance
kappa^2 mu_q, here with kappa = the rms of the block (the package's default kappa is 31 dB above).
Compared are the error power in the parameters over mu, the errors' distribution, and the merged
model's accuracy, paired by channel: with uncoded analogue transmission, two parameters a symbol,
and with uncoded QAM. Where symbols arrive intact only the quantiser's error is left, which may be
less than mu; elsewhere a wrong symbol flips bits of any weight. A genie cancels the true symbols,
except in `qam64_propagated`. `gaussian_of_qam64` is Gaussian noise of the power that the 64-QAM
link had in that draw for that user.

3 seeds of 200 channels each, 1 to 1.5 minutes on a shared core; written to results/link_study/:
README.md, mse.csv, distribution.csv, best.csv, accuracy.csv and the figure.

Limits: no channel code, which a real link would have; one small model, whose merge tolerates much
noise; a clip range for Gaussian parameters, while these are heavier-tailed. Distributions are of
the first seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas as pd
import tyro
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from scipy import ndimage, stats
from sklearn.datasets import load_digits
from study import (
    HOLDS,
    caution,
    claimed,
    gap,
    made_by,
    quotient,
    sign,
    stands,
    write_figure,
    write_page,
)

from rmtllmf_jax import channel
from rmtllmf_jax.channel import modem
from rmtllmf_jax.channel.link import transmit
from rmtllmf_jax.channel.quantise import dequantise, normalise, quantise
from rmtllmf_jax.report.intervals import Interval, interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table

ATTACKS = ("none", "strongest_user", "sum_rate")
LINKS: dict[str, dict] = {
    "analogue": {"modulation": None},
    "qam4": {"modulation": 4},
    "qam16": {"modulation": 16},
    "qam64": {"modulation": 64},
    "qam64_propagated": {"modulation": 64, "cancellation": "decisions"},
    "qam256": {"modulation": 256},
}
"""Options of `transmit`; a genie cancels unless errors propagate."""
ANGLES = (-35, -25, -15, -5, 5, 15, 25, 35)
"""In degrees: digits turned by each are a task."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)
RIGHT = 0.05
"""How far the error power over mu may lie from 1 where the surrogate is right."""


@dataclass(frozen=True)
class Options:
    """What to run.

    **Fields:**

    - `preset`: where the channels come from; it needs eight users, one per task.
    - `draws`, `seeds`: channels a seed; a seed has its own channels and noise.
    - `out`: where the tables and the figure go.
    """

    preset: str = "paper"
    draws: int = 200
    seeds: int = 3
    out: Path = Path(__file__).parent / "results" / "link_study"


def main(options: Options) -> None:
    """Run the study; write tables, figure and page."""
    start = time.perf_counter()
    preset = channel.get_preset(options.preset)
    fusion = fuse_digits()
    users, accuracies, samples = [], [], {}
    for seed in range(options.seeds):
        key = jax.random.key(seed)
        h = np.asarray(channel.draw_channels(preset, key, options.draws))
        number_of = seed * options.draws + np.arange(options.draws)
        for number, attack in enumerate(ATTACKS):
            covariance, mu = map(np.asarray, under_attack(h, attack, preset))
            keys = channel.draw_keys(jax.random.fold_in(key, 1 + number), options.draws)
            received = {"surrogate": gaussian(fusion.blocks, mu, keys)}
            wrong = {"surrogate": np.full_like(mu, np.nan)}
            for link, choice in LINKS.items():
                received[link], wrong[link] = map(
                    np.asarray,
                    over_draws(fusion.blocks, h, covariance, keys, **choice),
                )
            error = {link: block - fusion.blocks for link, block in received.items()}
            mse = {link: np.mean(e**2, axis=2) for link, e in error.items()}
            received["gaussian_of_qam64"] = gaussian(fusion.blocks, mse["qam64"], keys)
            where = {"seed": seed, "attack": attack}
            for link, e in error.items():
                columns = {"mu": mu, "mse": mse[link], "symbol_errors": wrong[link]}
                columns["channel"], columns["user"] = np.meshgrid(
                    number_of, np.arange(mu.shape[1]), indexing="ij"
                )
                flat = {name: values.ravel() for name, values in columns.items()}
                users.append(pd.DataFrame({**where, "link": link, **flat}))
                if seed == 0:
                    samples[attack, link] = (e / np.sqrt(mu)[..., None]).ravel()
            for link, block in received.items():
                columns = {"channel": number_of, "accuracy": np.asarray(fusion.accuracy(block))}
                accuracies.append(pd.DataFrame({**where, "link": link, **columns}))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)

    by_user, by_draw = pd.concat(users), pd.concat(accuracies)
    by_user["bin"] = np.round(4 * np.log10(by_user["mu"]))
    tables = {
        "mse": mse_table(by_user),
        "distribution": distribution_table(samples),
        "best": best_table(by_user),
        "accuracy": accuracy_table(by_draw),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(options.out / f"{name}.csv", index=False, float_format="%.6g")
    drawn = draw_figure(by_user, samples, by_draw, fusion.reference["merged"])
    write_figure(options.out / "link_study", drawn)
    floors = {order: quantiser_floor(fusion.blocks, order) for order in modem.QAM_ORDERS}
    alone = listed(f"{floor:.2g} ({order}-QAM)" for order, floor in floors.items())
    reference = {name: f"{100 * value:.1f} %" for name, value in fusion.reference.items()}
    seeds = f"0 to {options.seeds - 1}"
    lines = [
        "# The Gaussian surrogate beside the symbol-level link",
        made_by("link_study.py", seeds, time.perf_counter() - start),
        conclusion(tables, by_draw),
        f"Preset {options.preset}, {options.draws} channels a seed. Accuracies are means over "
        f"the eight tasks: without a channel the merged model has {reference['merged']}, the base "
        f"model {reference['base']}. The quantiser alone leaves {alone} of the power. "
        "distribution.csv has quantiles of error / sqrt(mu) of the first seed, best.csv the "
        "constellation with the least error power by mu.",
        *(f"## {sheet.title}\n\n{markdown_table(sheet)}" for sheet in sheets(tables)),
        "![Error power against mu, densities, accuracies](link_study.png)",
    ]
    write_page(options.out, lines)


@partial(jax.jit, static_argnames=("attack", "preset"))
def under_attack(
    h: jax.Array, attack: str, preset: channel.ChannelPreset
) -> tuple[jax.Array, jax.Array]:
    """The attacker's covariance (draws, antennas, antennas) and the users' MSE (draws, users)."""
    attacker = channel.ATTACKS[attack]()

    def one(h: jax.Array) -> tuple[jax.Array, jax.Array]:
        covariance = attacker(h, preset.attack_budget)
        mse = channel.user_mse(h, attacker, preset.attack_budget)
        return covariance, mse

    return jax.vmap(one)(h)


@partial(jax.jit, static_argnames=("modulation", "cancellation"))
def over_draws(
    blocks: jax.Array, h: jax.Array, attack: jax.Array, keys: jax.Array, **options
) -> tuple[jax.Array, jax.Array]:
    """Received blocks (draws, users, size) and the share of wrong symbols (draws, users)."""

    def one(draw: tuple) -> tuple[jax.Array, jax.Array]:
        channel_, attack, key = draw
        received = transmit(blocks, channel_, attack.astype(channel_.dtype), 1.0, key, **options)
        wrong = jnp.abs(received.decisions - received.symbols) > 1e-4
        return received.parameters, jnp.mean(wrong, axis=1)

    return jax.lax.map(one, (h, attack, keys))


def gaussian(blocks: np.ndarray, variance: np.ndarray, keys: jax.Array) -> np.ndarray:
    """Blocks of unit power with independent Gaussian errors, `variance` (draws, users) each."""
    draw = jax.jit(lambda k: jax.lax.map(lambda key: jax.random.normal(key, blocks.shape), k))
    return blocks + np.sqrt(variance)[..., None] * np.asarray(draw(keys))


def quantiser_floor(blocks: np.ndarray, order: int) -> float:
    """Error power of the quantiser alone."""
    bits = modem.bits_per_symbol(order)
    back = dequantise(quantise(jnp.asarray(blocks), bits), bits)
    return float(jnp.mean((back - blocks) ** 2))


@dataclass(frozen=True)
class Fusion:
    """Eight task vectors, ready to be sent, and what becomes of the model they are merged into.

    **Fields:**

    - `blocks`: (users, size); every leaf of every task vector has unit power.
    - `accuracy`: received blocks (draws, users, size) to the merged models' mean test accuracy.
    - `reference`: accuracies of the base model, the task's own models and the clean merge; scale.
    """

    blocks: np.ndarray
    accuracy: Callable[[np.ndarray], jax.Array]
    reference: dict[str, float]


def fuse_digits(hidden: int = 32, seed: int = 0) -> Fusion:
    """Task vectors of a small MLP on digits turned by eight angles.

    The base model has seen upright digits for a short time; each task vector comes from
    fine-tuning it at one angle. The merging coefficient is the best on validation samples without
    noise.
    """
    digits = load_digits()
    shuffled = np.random.default_rng(seed).permutation(digits.target.size)
    images, labels = digits.images[shuffled] / 16, jnp.asarray(digits.target[shuffled])
    turned = [ndimage.rotate(images, angle, (1, 2), reshape=False, order=1) for angle in ANGLES]
    x = jnp.asarray(np.stack(turned).reshape(len(ANGLES), labels.size, 64), jnp.float32)
    train, validation, test = slice(0, 1000), slice(1000, 1300), slice(1300, None)

    def dense(key: jax.Array, inputs: int, outputs: int) -> dict:
        kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    keys = jax.random.split(jax.random.key(seed))
    start = {"first": dense(keys[0], 64, hidden), "last": dense(keys[1], hidden, 10)}

    def logits(model: dict, x: jax.Array) -> jax.Array:
        features = jax.nn.relu(x @ model["first"]["kernel"] + model["first"]["bias"])
        return features @ model["last"]["kernel"] + model["last"]["bias"]

    def fit(model: dict, x: jax.Array, y: jax.Array, steps: int) -> dict:
        optimiser = optax.adam(3e-3)

        def loss(model: dict) -> jax.Array:
            scores = logits(model, x)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, y))

        def step(carry: tuple, _: None) -> tuple:
            model, state = carry
            updates, state = optimiser.update(jax.grad(loss)(model), state)
            return (optax.apply_updates(model, updates), state), None

        return jax.lax.scan(step, (model, optimiser.init(model)), None, steps)[0][0]

    def right(model: dict, x: jax.Array, part: slice) -> jax.Array:
        return jnp.mean(jnp.argmax(logits(model, x[part]), axis=-1) == labels[part])

    upright = jnp.asarray(images[train].reshape(-1, 64), jnp.float32)
    base = jax.jit(fit, static_argnums=3)(start, upright, labels[train], 60)
    tuned = jax.jit(jax.vmap(lambda x: fit(base, x, labels[train], 60)))(x[:, train])
    flat_base, unravel = ravel_pytree(base)
    vectors = jax.tree.map(lambda a, b: (a - b).reshape(len(ANGLES), -1), tuned, base)
    unit, rms = zip(*map(normalise, jax.tree.leaves(vectors)))
    blocks = jnp.concatenate(unit, axis=1)
    # One rms a leaf and user, beside every parameter of the leaf.
    power = jnp.concatenate([r[:, None] * jnp.ones_like(u) for r, u in zip(rms, unit)], axis=1)

    def merged(blocks: jax.Array, scale: float | jax.Array, part: slice = test) -> jax.Array:
        model = unravel(flat_base + scale * jnp.sum(power * blocks, axis=0))
        return jnp.mean(jax.vmap(right, (None, 0, None))(model, x, part))

    scales = jnp.linspace(0.05, 1, 20)
    best = scales[jnp.argmax(jax.vmap(lambda s: merged(blocks, s, validation))(scales))]
    reference = {
        "base": merged(blocks, 0.0),
        "own": jnp.mean(jax.vmap(right, (0, 0, None))(tuned, x, test)),
        "merged": merged(blocks, best),
        "scale": best,
    }
    accuracy = jax.jit(lambda many: jax.lax.map(lambda one: merged(one, best), many))
    return Fusion(np.asarray(blocks), accuracy, {k: float(v) for k, v in reference.items()})


def mse_table(by_user: pd.DataFrame) -> pd.DataFrame:
    """Error power in the parameters beside the surrogate's, over draws and users.

    `ratio` is of the means, with its 95 % interval over channels; the quantiles are of the ratio of
    a single user in a single draw.
    """
    rows = []
    for (attack, link), group in by_user.groupby(["attack", "link"], sort=False):
        by_channel = group.groupby("channel", as_index=False)[["mse", "mu"]].mean()
        found = quotient(by_channel, "mse", "mu", ("channel",))
        single = group["mse"] / group["mu"]
        row = {
            "attack": attack,
            "link": link,
            "mu": group["mu"].mean(),
            "mse": group["mse"].mean(),
            "ratio": found.mean,
            "low": found.low,
            "high": found.high,
            "channels": found.levels,
            **{f"ratio_{p}%": single.quantile(p / 100) for p in (10, 50, 90)},
        }
        order = LINKS.get(link, {}).get("modulation")
        if order is not None:
            sinr = channel.unbiased_sinr(jnp.asarray(group["mu"].to_numpy()))
            theory = np.asarray(modem.symbol_error_rate(sinr, order))
            row |= {"symbol_errors": group["symbol_errors"].mean(), "theory": theory.mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def best_table(by_user: pd.DataFrame) -> pd.DataFrame:
    """The constellation with the least error power by mu, where a genie cancels.

    Four bins of mu in a decade, of those with 30 users or more; no name where the best cannot be
    distinguished from the next, user by user.
    """
    sent = by_user[by_user["link"].isin([f"qam{order}" for order in modem.QAM_ORDERS])]
    rows = []
    for _, at in sent.groupby("bin"):
        if len(at) < 30 * at["link"].nunique():
            continue
        means = at.groupby("link")["mse"].mean().sort_values()
        first, second = means.index[:2]
        less = gap(at, "link", first, second, "channel", "attack", "user", of="mse")
        sure = sign(less, ".9f", 1.0) < 0
        rows.append({"mu": at["mu"].mean(), "best": first if sure else "", "mse": means.iloc[0]})
    return pd.DataFrame(rows)


def distribution_table(samples: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """Quantiles of |error| / sqrt(mu) and kurtosis, pooled over draws, users and parameters."""
    names = [f"{100 * q:g}%" for q in QUANTILES]
    normal = dict(zip(names, stats.norm.ppf((1 + np.array(QUANTILES)) / 2)))
    rows = [{"attack": "", "link": "standard Gaussian", **normal, "kurtosis": 3.0}]
    for (attack, link), error in samples.items():
        quantiles = dict(zip(names, np.quantile(np.abs(error), QUANTILES)))
        kurtosis = stats.kurtosis(error.astype(float), fisher=False)
        rows.append({"attack": attack, "link": link, **quantiles, "kurtosis": kurtosis})
    return pd.DataFrame(rows)


def accuracy_table(by_draw: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the merged model, and its difference to the surrogate's in pairs.

    With 95 % intervals over channels.
    """
    rows = []
    for (attack, link), group in by_draw.groupby(["attack", "link"], sort=False):
        found = interval(group, "accuracy", ("channel",))
        row = {"mean": found.mean, "low": found.low, "high": found.high}
        more = above(by_draw, attack, link, "surrogate")
        row |= {"difference": more.mean, "difference_low": more.low, "difference_high": more.high}
        rows.append({"attack": attack, "link": link, **row, "worst_draw": group["accuracy"].min()})
    return pd.DataFrame(rows)


def above(by_draw: pd.DataFrame, attack: str, link: str, other: str) -> Interval:
    """The accuracy with a link minus that with another, channel by channel."""
    return gap(by_draw[by_draw["attack"] == attack], "link", link, other, "channel")


def sheets(tables: dict[str, pd.DataFrame]) -> Iterator[Sheet]:
    """Yield the tables as printed."""
    rows = [
        [
            row["attack"],
            row["link"],
            f"{row['mu']:.3g}",
            Interval(row["ratio"], row["low"], row["high"]).text(".2f", scale=1.0),
            f"{row['ratio_10%']:.3g} to {row['ratio_90%']:.3g}",
            "-" if np.isnan(row["theory"]) else f"{row['symbol_errors']:.3g}",
            "-" if np.isnan(row["theory"]) else f"{row['theory']:.3g}",
        ]
        for row in tables["mse"].to_dict("records")
    ]
    header = ["attack", "link", "mu", "error power / mu", "10 to 90 % of users"]
    header += ["symbol errors", "in theory"]
    yield Sheet("Error power in the parameters, 95 % intervals over channels", header, rows)
    rows = [
        [
            row["attack"],
            row["link"],
            Interval(row["mean"], row["low"], row["high"]).text(".1f"),
            Interval(row["difference"], row["difference_low"], row["difference_high"]).text(
                ".1f", "+"
            ),
            f"{100 * row['worst_draw']:.1f}",
        ]
        for row in tables["accuracy"].to_dict("records")
    ]
    header = ["attack", "link", "accuracy (%)", "above the surrogate (points)", "worst draw (%)"]
    yield Sheet("Accuracy of the merged model, 95 % intervals over channels", header, rows)


def conclusion(tables: dict[str, pd.DataFrame], by_draw: pd.DataFrame) -> str:
    """Say for which links the surrogate is right, and what the others do to accuracy."""
    mse, errors = tables["mse"], tables["distribution"]
    found = {
        (row.link, row.attack): Interval(row.ratio, row.low, row.high, row.channels)
        for row in mse.itertuples()
        if row.link != "surrogate"
    }
    off = {
        link for (link, _), each in found.items() if claimed(each, 1 - RIGHT, 1 + RIGHT) != HOLDS
    }
    links = list(dict.fromkeys(link for link, _ in found))
    right, wrong = ([link for link in links if (link in off) == flag] for flag in (False, True))
    said = [
        f"Within {100 * RIGHT:.0f} % under every attack the surrogate has the error power of "
        + (f"{listed(right)} ({_tails(errors, right)})." if right else "no link.")
    ]
    if wrong:
        ratios = [each.mean for (link, _), each in found.items() if link in off]
        said.append(
            f"That is not found for {listed(wrong)}, whose error power is {min(ratios):.2g} to "
            f"{max(ratios):.2g} times mu ({_tails(errors, wrong)})."
        )
    attack = by_draw.groupby("attack")["accuracy"].mean().idxmin()
    apart = {link: above(by_draw, attack, link, "surrogate") for link in links}
    ends = sorted(apart, key=lambda link: apart[link].mean)
    told = " to ".join(f"{apart[n].text('.1f', '+')} ({n})" for n in (ends[-1], ends[0]))
    kind = above(by_draw, attack, "gaussian_of_qam64", "qam64")
    spread = above(by_draw, attack, "qam64_propagated", "qam64")
    said.append(
        f"Under {attack}, which leaves the least, accuracies differ from the surrogate's by "
        f"{told} points. Gaussian noise of 64-QAM's power "
        f"{stands(kind, 'is kinder than', 'is worse than', 'channel')} the link itself "
        f"({kind.text('.1f', '+')}), and with errors that propagate it "
        f"{stands(spread, 'is better than', 'is worse than', 'channel')} without "
        f"({spread.text('.1f', '+')})."
    )
    best = tables["best"][tables["best"]["best"] != ""]
    runs = (best["best"] != best["best"].shift()).cumsum()
    if len(best):
        most = [
            f"{own['best'].iloc[0]} up to mu = {own['mu'].max():.2g}"
            for _, own in best.groupby(runs)
        ]
        said.append(f"The least error power has {listed(most)}.")
    return " ".join(said) + caution(found.values(), "channels")


def _tails(errors: pd.DataFrame, links: list[str]) -> str:
    own = errors.loc[errors["link"].isin(links), "kurtosis"]
    return f"kurtosis {own.min():.2f} to {own.max():.2f}"


def draw_figure(
    by_user: pd.DataFrame,
    samples: dict[tuple[str, str], np.ndarray],
    by_draw: pd.DataFrame,
    clean: float,
) -> Figure:
    """Error power against mu, error densities against the Gaussian, accuracies of the merge."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    power, density, accuracy = figure.subplots(1, 3)
    colours = dict(zip(LINKS, matplotlib.colormaps["tab10"].colors))
    fills = matplotlib.colormaps["Set2"].colors
    for link, group in by_user[by_user["link"] != "surrogate"].groupby("link", sort=False):
        curve = group.groupby("bin").agg({"mu": "mean", "mse": "mean", "link": "size"})
        curve = curve[curve["link"] >= 30]
        style = "--" if link == "qam64_propagated" else "-"
        power.loglog(curve["mu"], curve["mse"], style, color=colours[link], marker=".", label=link)
    power.loglog([1e-3, 0.6], [1e-3, 0.6], "k:", label="surrogate: mse = mu")
    power.set(xlabel="mu", ylabel="error power in the parameters / rms$^2$", title="Error power")
    power.legend(fontsize=8)

    edges = np.linspace(-12, 12, 121)
    middles = (edges[1:] + edges[:-1]) / 2
    for link in ("analogue", "qam64", "qam64_propagated"):
        error = np.clip(samples["sum_rate", link], -12, 12)
        counts, _ = np.histogram(error, edges, density=True)
        density.semilogy(middles, np.maximum(counts, 1e-9), color=colours[link], label=link)
    density.semilogy(middles, stats.norm.pdf(middles), "k:", label="surrogate")
    density.set(xlabel="error / sqrt(mu), ends collect the rest", title="Density under sum_rate")
    density.set_ylim(1e-6, 2)
    density.legend(fontsize=8)

    links = list(dict.fromkeys(by_draw["link"]))
    width = 0.8 / len(ATTACKS)
    for number, attack in enumerate(ATTACKS):
        chosen = by_draw[by_draw["attack"] == attack]
        values = [chosen[chosen["link"] == link]["accuracy"] for link in links]
        places = np.arange(len(links)) + (number - 1) * width
        look = {"widths": 0.8 * width, "patch_artist": True, "medianprops": {"color": "black"}}
        box = accuracy.boxplot(values, positions=places, whis=(5, 95), showfliers=False, **look)
        for patch in box["boxes"]:
            patch.set_facecolor(fills[number])
        accuracy.plot([], [], "s", color=fills[number], label=attack)
    accuracy.axhline(clean, color="grey", linestyle=":", label="without a channel")
    accuracy.set_xticks(range(len(links)), links, rotation=30, ha="right")
    accuracy.set(ylabel="mean accuracy over eight tasks", title="Merged model (5-95 % of draws)")
    accuracy.legend(fontsize=8, loc="lower left")
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options))
