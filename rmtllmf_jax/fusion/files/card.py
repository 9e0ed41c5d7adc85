"""The model card of an output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rmtllmf_jax.fusion.files.checkpoint import Checkpoint
from rmtllmf_jax.fusion.files.configuration import config_of
from rmtllmf_jax.fusion.files.places import Named, hub_name, labels

_FRONT = re.compile(r"---\s*\n(.*?)\n---\s*\n", re.DOTALL)


def hub_facts(base: Checkpoint, models: Sequence[Named]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a card that the hub reads, and notes.

    `base_model` (those of the inputs that are on the hub), `license` if all inputs that name one
    name the same, `library_name`, `tags`.
    """
    inputs: list[Named] = [base, *models]
    about = [_metadata(each.given) for each in inputs]
    names = [name for each in inputs if (name := hub_name(each.given))]
    facts: dict[str, Any] = {"tags": ["merge", "task-vectors"]}
    if names:
        facts["base_model"] = list(dict.fromkeys(name.partition("@")[0] for name in names))
        facts["base_model_relation"] = "merge"
    stated = {
        name: str(each["license"])
        for name, each in zip(labels(inputs), about, strict=True)
        if "license" in each
    }
    notes = []
    if len(set(stated.values())) == 1:
        facts["license"] = next(iter(stated.values()))
    elif stated:
        each = ", ".join(f"{name}: {text}" for name, text in stated.items())
        notes.append(f"licences differ ({each}); the card names none")
    kind = "transformers" if "model_type" in config_of(base) else None
    if library := about[0].get("library_name", kind):
        facts["library_name"] = library
    return facts, notes


def _metadata(given: Path) -> dict[str, Any]:
    """Return the front matter of a directory's README.md, empty if it cannot be read."""
    if not (given / "README.md").is_file():
        return {}
    front = _FRONT.match((given / "README.md").read_text(errors="replace"))
    try:
        found = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def card(
    name: str, record: Mapping[str, Any], carried: Sequence[Path], code: str, plot: str | None
) -> str:
    """Return the page `README.md` of a merged model.

    **Arguments:**

    - `record`: `method`, `formula`, `reference`, `scale`, `dtype`, `tensors`, `inputs` (`role`,
      `name` and `files` of each), `versions`, and `layer_weights` (None, or the `models` and the
      weights by layer), `hub` (as from `hub_facts`), `kept` (share by model), `energy` (of an
      adapter: shares), `notes`, and where present `statistics`, and `uplink` with the result for
      each of its `users`.
    - `carried`: files copied from the base.
    - `code`: what happened to the base's code files, in a sentence, or nothing.
    - `plot`: file name of the figure of the weights by layer.
    """
    reference = record["reference"]
    settings = [
        ("method", f"`{record['method']}`" + (f" ({reference})" if reference else "")),
        ("formula", f"`{record['formula']}`"),
        ("scale", f"{record['scale']:.6g}"),
        ("type of the weights", record["dtype"]),
        ("tensors", f"{record['tensors']['merged']} merged, {record['tensors']['copied']} copied"),
        *(
            (f"share of the task vector of {name} that is kept", f"{share:.4f}")
            for name, share in record["kept"].items()
        ),
        *((f"version of {key}", value) for key, value in record["versions"].items()),
    ]
    files = [
        (each["role"], each["name"], file["name"], f"{file['bytes']:,}", _hash_of(file))
        for each in record["inputs"]
        for file in each["files"]
    ]
    parts = [
        f"---\n{yaml.safe_dump(record['hub']).strip()}\n---",
        f"# {name}",
        "A merge of fine-tuned models with their common base, made by `rmtllmf fuse`.",
        "## How",
        _table(("what", "value"), settings),
        "## Inputs",
        _table(("role", "model", "file", "bytes", "SHA-256"), files),
    ]
    if statistics := record.get("statistics"):
        heads = ("kind", "task", "samples", "seed", "file", "sha256")
        parts += ["## Statistics", "Measured on training data of the tasks."]
        parts += [_table(heads, [[str(each.get(h, "")) for h in heads] for each in statistics])]
    if uplink := record.get("uplink"):
        users = uplink["users"]
        of_users = [[str(value) for value in user.values()] for user in users]
        said = [(key, f"`{value}`") for key, value in uplink.items() if key != "users" and value]
        parts += ["## Uplink", "The task vectors came over an uplink before they were merged."]
        parts += [_table(("what", "value"), said), _table(list(users[0]), of_users)]
    if notes := record["notes"]:
        lines = [
            f"- {note}".replace("<", r"\<") for note in notes
        ]  # tokens such as <s> are no HTML
        parts += ["## What was seen and done", "\n".join(lines)]
    if weights := record["layer_weights"]:
        rows = [(layer, *(f"{w:.4f}" for w in row)) for layer, row in weights["layers"].items()]
        parts += ["## Weights by layer", _table(("layer", *weights["models"]), rows)]
        parts += [f"![Weights by layer]({plot})"] if plot else []
    if energy := record["energy"]:
        rows = [("all", f"{energy['overall']:.6f}")]
        rows += [(key, f"{share:.6f}") for key, share in energy["tensors"].items()]
        parts += [
            "## An adapter",
            "Opened by PEFT on the base. Of the merged vector's energy (sum of squares) it has:",
            _table(("tensor", "share"), rows),
        ]
    if carried or code:
        parts.append("## From the base")
    if carried:
        parts.append(f"Copied: {', '.join(f'`{path.as_posix()}`' for path in carried)}.")
    return "\n\n".join([*parts, *([code] if code else [])]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(c).replace('|', '/') for c in row)} |" for row in lines)


def _hash_of(file: Mapping[str, Any]) -> str:
    return f"`{file['sha256']}`" if "sha256" in file else "not computed (--no-hash-inputs)"
