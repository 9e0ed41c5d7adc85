"""What an output contains besides weights: configuration, tokenizer, modules, code."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json, write_json
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint
from rmtllmf_jax.fusion.files.configuration import CONFIG
from rmtllmf_jax.fusion.files.vocabulary import Tokenizer

KEEP = "keep"
"""Every tensor in the type that it has in the base."""
MODULES = "modules.json"
"""Folders of sentence-transformers (1_Pooling, 2_Dense) beside the weights."""

_TOKENIZER = (
    *("tokenizer*", "vocab*", "*vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "*.jinja", "*chat_templates/*.jinja", "chat_template.json"),
    *("*.model", "*.spm", "*.tiktoken", "*.tokenizer", "*.codes", "*.bpe", "dict.txt"),
    *("emoji.json", "word_*.json", "normalizer.json", "byte_maps.json"),
)
_REST = ("*.json", "*.txt", "LICENSE*", "NOTICE*", "USE_POLICY*")
_WRONG = (
    *("*.index.json", "adapter_*", "fusion.json", "trainer_state.json", "training_args*"),
    *("all_results.json", "train_results.json", "eval_results.json", "requirements*.txt"),
)
_CODE = "*.py"
WANTED = (*_TOKENIZER, *_REST, _CODE, "[0-9]_*/*")
"""Patterns of all files that an output may take along."""


def code_files(directory: Path | None) -> list[Path]:
    """Return the code files, which go into an output only on request.

    Opening a model with `trust_remote_code=True` runs them.
    """
    return _found(directory, (_CODE,))


def tokenizer_files(directory: Path | None) -> list[Path]:
    """Return the files of a tokenizer, by the names that transformers reads them from."""
    return [name for name in _found(directory, _TOKENIZER) if not _any(name, _WRONG)]


def _found(directory: Path | None, patterns: tuple[str, ...]) -> list[Path]:
    if directory is None:
        return []
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(directory) for path in found)


def _any(name: Path, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.as_posix(), pattern) for pattern in patterns)


def _module_files(directory: Path | None) -> list[Path]:
    """Return the files of the folders that modules.json names, weights among them."""
    if directory is None or not (directory / MODULES).is_file():
        return []
    listed = read_json(directory / MODULES)
    try:
        folders = [str(each["path"]) for each in listed if each["path"]]
    except (TypeError, KeyError) as error:
        raise InputError(f"{directory / MODULES}: expected a list of modules.") from error
    if wrong := [name for name in folders if Path(name).name != name]:
        raise InputError(f"{directory / MODULES}: {wrong[0]} is not a folder next to it.")
    paths = (path for name in folders for path in (directory / name).rglob("*"))
    found = sorted(path.relative_to(directory) for path in paths if path.is_file())
    return [name for name in found if not _any(name, (f"*/{_CODE}",))]


def copy_carried(
    base: Checkpoint, folder: Path, dtype: str, tokenizer: Tokenizer, *, code: bool
) -> list[Path]:
    """Copy the base's files and the tokenizer's; the configuration is adapted to the output.

    `code` includes the code files. Returns the files, relative to the directory.

    **Raises:** `InputError` if the configuration is not JSON.
    """
    directory, of_tokenizer = base.directory, tokenizer.source.directory
    files = [name for name in _found(directory, _REST) if not _any(name, (*_WRONG, *_TOKENIZER))]
    files += _module_files(directory) + (code_files(directory) if code else [])
    for place, names in ((directory, files), (of_tokenizer, tokenizer_files(of_tokenizer))):
        for name in names:
            assert place is not None  # or there would be no file
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(place / name, folder / name)
    files += tokenizer_files(of_tokenizer)
    _follow(folder, dtype, base, tokenizer)
    return sorted(set(files))


def _follow(folder: Path, dtype: str, base: Checkpoint, tokenizer: Tokenizer) -> None:
    """Make the copied files describe the output."""
    for name in (CONFIG, "generation_config.json"):
        if not (folder / name).is_file():
            continue
        before = content = read_json(folder / name)
        if dtype != KEEP and name == CONFIG:
            content = _with_dtype(content, dtype)
        if tokenizer.size is not None and name == CONFIG:
            content = _with_size(content, tokenizer.size)
        if tokenizer.source.directory != base.directory:
            content = _with_special(content, tokenizer.source.directory, name)
        if content != before:
            write_json(folder / name, content)
    if tokenizer.new:
        _add_tokens(folder, tokenizer.new)


def _with_dtype(config: Any, dtype: str) -> Any:
    if not isinstance(config, dict):
        return config
    changed = {key: _with_dtype(value, dtype) for key, value in config.items()}
    for key in ("dtype", "torch_dtype"):
        if isinstance(config.get(key), str):
            changed[key] = dtype
    return changed


def _with_size(config: Any, size: int) -> Any:
    changed = dict(config)
    if "vocab_size" in config or not isinstance(config.get("text_config"), dict):
        changed["vocab_size"] = size
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = _with_size(config["text_config"], size)
    return changed


def _with_special(config: Any, directory: Path | None, name: str) -> Any:
    """Return a configuration with another tokenizer's IDs of special tokens."""
    if directory is None or not (directory / name).is_file():
        return config
    return _with_ids(config, read_json(directory / name))


def _with_ids(config: dict[str, Any], of_model: dict[str, Any]) -> dict[str, Any]:
    changed = config | {k: each for k, each in of_model.items() if k.endswith("_token_id")}
    inner = config.get("text_config"), of_model.get("text_config")
    if isinstance(inner[0], dict) and isinstance(inner[1], dict):
        changed["text_config"] = _with_ids(inner[0], inner[1])
    return changed


def _add_tokens(folder: Path, new: tuple[dict[str, Any], ...]) -> None:
    path = folder / "tokenizer.json"
    content = read_json(path)
    tokens = [*content.get("added_tokens", ()), *new]
    write_json(path, content | {"added_tokens": sorted(tokens, key=lambda token: token["id"])})
    path = folder / "tokenizer_config.json"
    if path.is_file() and "added_tokens_decoder" in (content := read_json(path)):
        details = {str(each["id"]): {k: v for k, v in each.items() if k != "id"} for each in new}
        decoder = content["added_tokens_decoder"] | details
        write_json(path, content | {"added_tokens_decoder": decoder})
    path = folder / "added_tokens.json"
    if path.is_file():
        write_json(path, read_json(path) | {each["content"]: each["id"] for each in new})
