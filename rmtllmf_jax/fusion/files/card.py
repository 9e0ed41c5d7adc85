"""What an output holds beside its weights: the base's configuration and code, and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.files import read_json, write_json
from rmtllmf_jax.fusion.files.checkpoint import INDEX
from rmtllmf_jax.fusion.files.configuration import CONFIG

KEEP = "keep"
"""Every tensor in the type that it has in the base."""
_PATTERNS = (
    *("*.json", "*.jinja", "*.model", "*.txt", "*chat_templates/*.jinja"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
_TRAINING = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")


def code_files(directory: Path | None) -> list[Path]:
    """Return the files of code, which go into an output only on request.

    Whoever opens a model with `trust_remote_code=True` runs them.
    """
    return _found(directory, ("*.py",))


def _found(directory: Path | None, patterns: tuple[str, ...]) -> list[Path]:
    if directory is None:
        return []
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(directory) for path in found)


def copy_carried(directory: Path | None, folder: Path, dtype: str, *, code: bool) -> list[Path]:
    """Copy configuration and tokenizer files; the configuration names the type of the output.

    `code` includes the files of code. Returns the files, relative to the directory.

    **Raises:** `InputError` if the configuration is not JSON.
    """
    found = _found(directory, _PATTERNS)
    files = [name for name in found if not name.name.endswith(INDEX) and name.name not in _TRAINING]
    files += code_files(directory) if code else []
    for name in files:
        assert directory is not None  # or there would be no file
        (folder / name).parent.mkdir(exist_ok=True)
        if name == Path(CONFIG) and dtype != KEEP:
            write_json(folder / name, _with_dtype(read_json(directory / name), dtype))
        else:
            shutil.copyfile(directory / name, folder / name)
    return files


def _with_dtype(config: Any, dtype: str) -> Any:
    if not isinstance(config, dict):
        return config
    changed = {key: _with_dtype(value, dtype) for key, value in config.items()}
    for key in ("dtype", "torch_dtype"):
        if isinstance(config.get(key), str):
            changed[key] = dtype
    return changed


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
