"""What a directory holds beside its weights: configuration, tokenizer, licence, and code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json, write_json
from rmtllmf_jax.fusion.files.checkpoint import INDEX
from rmtllmf_jax.fusion.files.dtypes import KEEP

_CONFIG = "config.json"
_PATTERNS = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
_CODE = ("*.py",)
_TRAINING = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")


def carried_files(directory: Path | None) -> list[Path]:
    """Return the files that go into an output, relative to the directory; none for `None`."""
    names = _found(directory, _PATTERNS)
    return [name for name in names if not name.name.endswith(INDEX) and name.name not in _TRAINING]


def code_files(directory: Path | None) -> list[Path]:
    """Return the files of code, which go into an output only on request.

    Whoever opens a model with `trust_remote_code=True` runs them.
    """
    return _found(directory, _CODE)


def _found(directory: Path | None, patterns: tuple[str, ...]) -> list[Path]:
    if directory is None:
        return []
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(directory) for path in found)


def copy_carried(directory: Path | None, folder: Path, dtype: str, *, code: bool) -> list[Path]:
    """Copy configuration and tokenizer files; the configuration names the type of the output.

    `code` includes the files of code.

    **Raises:** `InputError` if the configuration is not JSON.
    """
    files = [*carried_files(directory), *(code_files(directory) if code else [])]
    if directory is None:
        return files
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        if name == Path(_CONFIG) and dtype != KEEP:
            write_json(folder / name, _with_dtype(read_json(directory / name), dtype))
        else:
            shutil.copyfile(directory / name, folder / name)
    return files


def require_mergeable(directory: Path | None) -> None:
    """Check that the configuration is not that of quantised weights, which no sum makes sense of.

    **Raises:** `InputError` that names the file.
    """
    if directory is None or not (directory / _CONFIG).is_file():
        return
    config = read_json(directory / _CONFIG)
    if isinstance(config, dict) and config.get("quantization_config"):
        raise InputError(
            f"{directory / _CONFIG}: the weights are quantised "
            f"({json.dumps(config['quantization_config'])[:100]}); merge the unquantised ones."
        )


def _with_dtype(config: Any, dtype: str) -> Any:
    if not isinstance(config, dict):
        return config
    changed = {key: _with_dtype(value, dtype) for key, value in config.items()}
    for key in ("dtype", "torch_dtype"):
        if isinstance(config.get(key), str):
            changed[key] = dtype
    return changed
