"""Why a run's numbers differ from the paper's: facts of the run at hand, never a set phrase.

A reason is given only where the tables or the configuration show that it holds. It names a
difference of the setting; how much of the gap it explains is for an experiment to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtllmf_jax.report.paper_facts import Facts
from rmtllmf_jax.report.provenance import find
from rmtllmf_jax.report.sheets import percent
from rmtllmf_jax.report.tables import base_by_size

_UNKNOWN = "not recorded"
_PRINTED_MSE = {"ideal": 0.013, "sum_rate": 0.21}
# Averages over 20,000 drops of the channel preset `paper`, see docs/maths.md.
_CALIBRATED = {"ideal": ".0129", "sum_rate": ".2081", "strongest_user": ".0327"}


@dataclass(frozen=True)
class Setting:
    """One line of the set-up: the paper's, the run's, and how they differ (empty: not at all)."""

    what: str
    paper: str
    ours: str
    why: str
    short: str = ""
    """What differs, in a word or two; empty if nothing does or nothing is known."""


def settings(facts: Facts) -> list[Setting]:
    """Return the lines of the set-up."""
    return [*_model(facts), *_recipe(facts), *_tasks(facts), *_channel(facts), *_shots(facts)]


def accuracy(facts: Facts, scenario: str, protection: str, printed: str) -> str:
    """Return the reasons for a normalised accuracy."""
    scores = facts.scores(scenario, protection)
    said = []
    low, high = (float(part) / 100 for part in (printed.split("-")[0], printed.split("-")[-1]))
    spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
    if low - spread <= float(np.mean(scores)) <= high + spread:
        said.append("Within one standard deviation of the paper's number.")
    if scenario != "clean":
        said += _noise(facts, scenario)
    if protection == "none":
        base = base_by_size(facts.results)
        ends = percent(float(base.min())), percent(float(base.max()))
        span = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
        said.append(f"The base model under the tasks' own heads has {span} %, nothing fused.")
        if scenario == "clean":
            said += _scale(facts)
    said += _set_up(facts)
    return " ".join(said)


def mse(facts: Facts, scenario: str) -> str:
    """Return the reasons for an average MSE."""
    table = facts.user_mse(scenario)
    said = [f"{_count(len(table), 'channel draw')} here, mean over {table.shape[1]} users."]
    if _preset(facts) == "paper" and find(facts.run, "order") is None:
        said.append(f"The preset's average over 20,000 drops is {_CALIBRATED[scenario]}.")
    if scenario == "strongest_user":
        said.append(
            "With eight users a mean of .16 is impossible under the paper's (5), which saturates "
            "at .139: .16 can only be the attacked user's."
        )
    return " ".join(said)


def snr(facts: Facts, scenario: str) -> str:
    """Return what the SNR is, and the reasons for its value."""
    if facts.c0_db is None:
        return "The noise scale kappa is given, or c0 is not recorded: a user's MSE says no SNR."
    count = _count(len(facts.user_mse(scenario)), "channel draw")
    return (
        f"The paper does not say of what; ours is the worst user's in the parameters, "
        f"-10 log10(max MSE) + c0 with c0 = {facts.c0_db:g} dB, averaged over {count}."
    )


def cosine(facts: Facts, scenario: str) -> str:
    """Return the reasons for the cosines between received task vectors."""
    model = facts.error_model
    said = []
    if model is None:
        said.append("The error model is not recorded.")
    elif model == "independent":
        said.append(
            "The errors of different users are independent here, so noise draws cosines to 0; the "
            "paper does not name its error model."
        )
    elif model == "noisy_reference":
        said.append("Errors share a noisy reference, as .48-.52 asks for: their cosine is 1/2.")
    else:
        said.append(f"The errors of different users follow {model}; the paper names no model.")
    clean = facts.pair_cosines("clean", ("none",))
    if len(clean) and scenario == "ideal":
        said.append(f"Without noise the cosines are {clean.min():.2f} to {clean.max():.2f}.")
    return " ".join(said)


def over_baseline(facts: Facts) -> str:
    """Return the reasons for R-MTLLMF, ideal, over the noiseless baseline."""
    ideal, clean = facts.scores("ideal", "r-mtllmf").mean(), facts.scores("clean", "none").mean()
    said = f"{percent(ideal)} over {percent(clean)} here, 89.1 over 91.2 in the paper."
    realigned = facts.scores("clean", "r-mtllmf")
    if len(realigned) and realigned.mean() > clean:
        said += (
            f" Without noise, R-MTLLMF lifts the baseline itself to {percent(realigned.mean())}."
        )
    return said


def over_unprotected(facts: Facts, scenario: str) -> str:
    """Return the reasons for protected over unprotected."""
    left = float(facts.scores(scenario, "none").mean())
    if left <= 0.06:
        return ""
    return (
        f"Unprotected keeps {percent(left)} % here, 4-6 % in the paper: even 100 % would be "
        f"{1 / left:.1f} x."
    )


def half(facts: Facts, name: str, scenarios: Sequence[str]) -> str:
    """Return the reasons for what one half of R-MTLLMF lacks."""
    spans = {}
    for against in ("none", "r-mtllmf"):
        pairs = [facts.pairs((scenario, name), (scenario, against)) for scenario in scenarios]
        spans[against] = [pair.mean(axis=0) for pair in pairs if len(pair)]
    if name == "realign" and spans["r-mtllmf"]:
        shares = [100 * alone / both for alone, both in spans["r-mtllmf"] if both > 0]
        return f"Realignment alone reaches {min(shares):.0f}-{max(shares):.0f} % of R-MTLLMF here."
    if name == "freeze" and spans["none"]:
        gains = [100 * (alone - none) for alone, none in spans["none"]]
        return (
            f"Reloading the embeddings alone moves the unprotected merge by {min(gains):+.1f} to "
            f"{max(gains):+.1f} points here."
        )
    return ""


def _noise(facts: Facts, scenario: str) -> Iterator[str]:
    rows = facts.results[facts.results["scenario"] == scenario]
    low, high = rows["kappa"].min(), rows["kappa"].max()
    kappa = f"{low:.2g}" if np.isclose(low, high) else f"{low:.2g}-{high:.2g}"
    if not np.isclose([low, high], 1.0).all():
        yield f"The noise in the parameters has the scale kappa = {kappa}; 1 in the paper's text."
    draws = facts.user_mse(scenario).mean(axis=1)
    printed = _PRINTED_MSE.get(scenario)
    if printed is not None and len(draws) and not 0.9 <= draws.mean() / printed <= 1.1:
        yield (
            f"The {_count(len(draws), 'channel draw')} have a mean MSE of {draws.mean():.3g}, the "
            f"paper {printed:g}."
        )


def _scale(facts: Facts) -> Iterator[str]:
    rule = find(facts.run, "settings", "scale")
    rows = facts.results[facts.results["protection"] != "control"]
    used = rows.groupby("size")["scale"].mean()
    if rule is not None and len(used):
        yield (
            f"Merging coefficient by the rule {rule}: {used.iloc[0]:.3g} at {used.index[0]} tasks, "
            f"{used.iloc[-1]:.3g} at {used.index[-1]}."
        )


def _set_up(facts: Facts) -> Iterator[str]:
    different = [setting.short for setting in settings(facts) if setting.short]
    if different:
        yield f"Set up differently: {', '.join(different)} (first rows)."


def _model(facts: Facts) -> Iterator[Setting]:
    model, size = find(facts.run, "setting", "model"), find(facts.run, "setting", "image_size")
    model = model if model is not None else find(facts.run, "model")
    size = size if size is not None else find(facts.run, "image_size")
    what, paper = "Model and images", "CLIP ViT-B/16, 224 pixels"
    if model is None:
        yield Setting(what, paper, _UNKNOWN, "")
        return
    name = str(model).rstrip("/").split("/")[-1]
    other = "clip-vit-base-patch16" not in name.lower()
    small = size is not None and int(size) != 224
    why = ["Another model."] * other + [f"Images of {size} pixels."] * small
    short = ", ".join(["model"] * other + ["image size"] * small)
    pixels = "" if size is None else f", {size} pixels"
    yield Setting(what, paper, name + pixels, " ".join(why), short)


def _recipe(facts: Facts) -> Iterator[Setting]:
    what, paper = "Fine-tuning", "2000 steps of 128 images"
    steps, batch = (find(facts.run, "recipe", name) for name in ("steps", "batch_size"))
    if steps is None or batch is None:
        yield Setting(what, paper, _UNKNOWN, "")
        return
    same = (steps, batch) == (2000, 128)
    ours = f"{steps} steps of {batch} images"
    seen = steps * batch / (2000 * 128)
    why = "" if same else f"{seen:.2g} times the images of the paper."
    yield Setting(what, paper, ours, why, "" if same else "fine-tuning")


def _tasks(facts: Facts) -> Iterator[Setting]:
    if facts.results.empty:
        return
    tasks = sorted(facts.results["task"].unique())
    ours = f"{len(tasks)}: {', '.join(tasks)}"
    other = len(tasks) != 8
    why = [f"{len(tasks)} tasks in place of eight."] * other
    if facts.weak:
        why.append(f"Fine-tuning did not teach {', '.join(facts.weak)}.")
    yield Setting("Tasks", "8", ours, " ".join(why), "tasks" if other else "")
    there = 2 ** len(tasks) - len(tasks) - 1
    found = facts.results["combination"].nunique()
    few = found < there
    why_few = f"{found} of the {there} combinations of two tasks or more." if few else ""
    if other and not few:
        why_few = f"All that {len(tasks)} tasks have."
    yield Setting("Combinations", "247", str(found), why_few, "combinations" if few else "")
    images = find(facts.run, "eval_samples")
    if images:
        why_images = "A part of the test images, with its sampling error."
        yield Setting("Test images a task", "-", f"at most {images}", why_images, "test images")


def _channel(facts: Facts) -> Iterator[Setting]:
    preset = _preset(facts)
    what, paper = "Channel", "8 users, 16 antennas, 64-QAM, 0.1 mW, 100-1000 m"
    if preset is None:
        yield Setting(what, paper, _UNKNOWN, "")
        return
    order, other = find(facts.run, "order"), preset != "paper"
    receiver = order not in (None, "weakest_first")
    ours = f"preset {preset}" + (f", receiver {order}" if order is not None else "")
    why = ["Another channel."] * other + ["Another receiver."] * receiver
    why.append("No symbols are sent: the errors of the parameters are Gaussian with the MSE.")
    yield Setting(what, paper, ours, " ".join(why), "channel" if other or receiver else "")


def _shots(facts: Facts) -> Iterator[Setting]:
    shots: Any = find(facts.run, "shots")
    if shots is not None:
        why = "" if shots == 10 else f"{shots} samples a class in place of 10."
        short = "" if shots == 10 else "samples a class"
        yield Setting("Samples a class for realignment", "10", str(shots), why, short)


def _preset(facts: Facts) -> str | None:
    value = find(facts.run, "settings", "preset")
    value = value if value is not None else find(facts.run, "preset")
    return None if value is None else str(value)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
