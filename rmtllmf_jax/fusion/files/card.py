"""The model card of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def card(
    name: str, record: Mapping[str, Any], carried: Sequence[Path], code: str, plot: str | None
) -> str:
    """Return the page `README.md` of a merged model.

    **Arguments:**

    - `record`: `method`, `formula`, `reference`, `scale`, `dtype`, `tensors`, `inputs` (`role`,
      `name` and `files` of each), `versions`, and `layer_weights` (None, or the `models` and the
      weights by layer), `kept` (share by model) and
      `notes`.
    - `carried`: files copied from the base.
    - `code`: what became of the base's files of code, in a sentence, or nothing.
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
        (each["role"], each["name"], file["name"], f"{file['bytes']:,}", f"`{file['sha256']}`")
        for each in record["inputs"]
        for file in each["files"]
    ]
    parts = [
        "---\ntags:\n- merge\n- task-vectors\n---",
        f"# {name}",
        "A merge of fine-tuned models with their common base, made by `rmtllmf fuse`.",
        "## How",
        _table(("what", "value"), settings),
        "## Inputs",
        _table(("role", "model", "file", "bytes", "SHA-256"), files),
    ]
    if notes := record["notes"]:
        parts += ["## What was seen and done", "\n".join(f"- {note}" for note in notes)]
    if weights := record["layer_weights"]:
        rows = [(layer, *(f"{w:.4f}" for w in row)) for layer, row in weights["layers"].items()]
        parts += ["## Weights by layer", _table(("layer", *weights["models"]), rows)]
        parts += [f"![Weights by layer]({plot})"] if plot else []
    if carried or code:
        parts.append("## From the base")
    if carried:
        parts.append(f"Copied: {', '.join(f'`{path.as_posix()}`' for path in carried)}.")
    return "\n\n".join([*parts, *([code] if code else [])]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(c).replace('|', '/') for c in row)} |" for row in lines)
