"""The config.json and tokenizer.json of checkpoints, and where they contradict each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.extras import needed_by
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint
from rmtllmf_jax.fusion.files.places import labels

CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
_SHOWN = 6

# Fields that no shape shows and that change what the weights compute.
_MEANING = re.compile(
    r"model_type|(?:num_|n_)?(?:attention_|key_value_)?heads?|num_key_value_heads|head_dim|d_kv"
    r"|rope_\w+|rotary_\w+|partial_rotary_factor|\w*norm_eps|\w*norm_epsilon|hidden_act\w*"
    r"|activation_function|dense_act_fn|is_gated_act|sliding_window|use_sliding_window"
    r"|max_window_layers|layer_types|position_embedding_type|relative_attention_\w+|patch_size"
    r"|num_experts_per_tok|norm_topk_prob|\w+_softcapping|query_pre_attn_scalar|\w+_multiplier"
    r"|scale_attn\w*|scale_embedding|normalize_before|do_stable_layer_norm|feat_extract_norm"
    r"|\w*parallel_residual|alibi|is_decoder|is_encoder_decoder|qk_layernorm"
)
# What says nothing of the weights, or is seen to elsewhere (vocabularies, tied heads, labels).
_ASIDE = re.compile(
    r"_name_or_path|transformers_version|\w*dtype|use_cache|_\w+|architectures|id2label|label2id"
    r"|num_labels|finetuning_task|problem_type|vocab_size|tie_word_embeddings|\w+_token_id"
    r"|gradient_checkpointing|output_\w+|return_dict|torchscript|task_specific_params"
)
_HEAD = re.compile(r"(?:.*\.)?(?:classifier|score|fc|heads?|classification_head)(?:\..*)?")
_DEFAULT_LABEL = re.compile(r"LABEL_\d+")


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's configuration as in the file; empty if there is none.

    **Raises:** `InputError` if it is not JSON.
    """
    folder = checkpoint.directory
    if folder is None or not (folder / CONFIG).is_file():
        return {}
    config = read_json(folder / CONFIG)
    return config if isinstance(config, dict) else {}


def full_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the defaults and names of the installed transformers.

    A configuration that this version does not know, or refuses, is returned unchanged.

    **Raises:** `MissingExtra` without transformers, for a configuration that names its kind.
    """
    if (kind := config.get("model_type")) is None:
        return config
    with needed_by(f"what a {CONFIG} of {kind} leaves to its defaults"):
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        return config
    try:
        return dict(CONFIG_MAPPING[kind].from_dict(config).to_dict())
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError):
        return config  # from a version with other fields, or written by hand


def is_tied(checkpoint: Checkpoint) -> bool:
    """Return whether input and output embeddings are one tensor, according to the configuration."""
    config = config_of(checkpoint)
    said = _tie(config)
    if said is None and config:
        said = _tie(full_config(config))
    return bool(said)


def _tie(config: dict[str, Any]) -> bool | None:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(said := part.get("tie_word_embeddings"), bool):
            return said
    return None


def compare(
    base: Checkpoint,
    others: Sequence[Checkpoint],
    merged: Iterable[str],
    accepted: Sequence[str] = (),
    tokenizer: str | None = None,
) -> list[str]:
    """Compare configurations and tokenizers; return the harmless differences, one per line.

    **Arguments:**

    - `merged`: names of the tensors that are merged.
    - `accepted`: fields that may differ; the output has those of the base.
    - `tokenizer`: the choice of a vocabulary, if there is one; tokenisation may differ then.

    **Raises:** `InputError` that lists the fields that change the meaning of the same weights.
    """
    heads = [key for key in merged if _HEAD.fullmatch(key)]
    width = {base.entries[key].shape[0] for key in heads if base.entries[key].shape}
    problems: list[str] = []
    notes: list[str] = []
    fields: set[str] = set()
    for name, other in zip(labels([base, *others])[1:], others, strict=True):
        wrong, others_differ = _configs(config_of(base), config_of(other), width)
        cut, told = _tokenizers(base.directory, other.directory)
        wrong |= {} if tokenizer else cut
        fields |= wrong.keys()
        left = {field: text for field, text in wrong.items() if field not in accepted}
        problems += [f"{name}: {field} is {text}" for field, text in left.items()]
        kept = {field: text for field, text in wrong.items() if field in accepted}
        differ = [f"{field} is {text}" for field, text in (kept | others_differ).items()]
        if more := differ[_SHOWN:]:
            differ = [*differ[:_SHOWN], f"and {len(more)} more"]
        if differ:
            notes.append(
                f"{name}: {CONFIG} differs ({'; '.join(differ)}); the output has the base's"
            )
        notes += [f"{name}: {line}" for line in told]
    if problems:
        raise InputError(
            "the same weights mean something else in these:\n  "
            + "\n  ".join(problems)
            + f"\n  To merge nonetheless, with the base's: --accept {' '.join(sorted(fields))}"
        )
    for field in accepted:
        require_known("field to accept", field, sorted(fields) or ["(none differs)"])
    return notes


def _configs(
    base: dict[str, Any], other: dict[str, Any], width: set[int]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fields that change the meaning, and the others that differ, with both values."""
    if not base or not other or base == other:
        return {}, {}
    labels_differ, unnamed = _labels(base, other, width)
    kinds = base.get("model_type"), other.get("model_type")
    if all(kinds) and kinds[0] != kinds[1]:
        return labels_differ | {"model_type": f"{kinds[1]}, {kinds[0]} in the base"}, {}
    one, two = (dict(_flat(config)) for config in (base, other))
    whole = True
    if one != two:  # transformers takes seconds to import
        filled = [full_config(config) for config in (base, other)]
        one, two = (dict(_flat(config)) for config in filled)
        # Without defaults a field that one lacks is not known to differ.
        whole = filled[0] is not base and filled[1] is not other
    wrong, rest = labels_differ, unnamed
    for field in sorted(one.keys() | two.keys() if whole else one.keys() & two.keys()):
        values = one.get(field), two.get(field)
        if values[0] == values[1]:
            continue
        if any(_MEANING.fullmatch(part) for part in field.split(".")):
            wrong[field] = f"{values[1]}, {values[0]} in the base"
        else:
            rest[field] = f"{values[1]}, not {values[0]}"
    if base.get("architectures") != other.get("architectures") and other.get("architectures"):
        rest["architectures"] = f"{other['architectures']}, not {base.get('architectures')}"
    return wrong, rest


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the fields that may concern the weights, with dotted names for nested ones."""
    for key, value in config.items():
        if _ASIDE.fullmatch(key):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _labels(
    base: dict[str, Any], other: dict[str, Any], width: set[int]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return whether the rows of a merged head belong, or may belong, to different classes."""
    given = (each.get("id2label") or {} for each in (base, other))
    texts = [[str(text) for text in each.values()] for each in given]
    if not all(texts) or texts[0] == texts[1] or len(texts[0]) not in width:
        return {}, {}
    names = [", ".join(each[:4]) for each in texts]
    if any(all(_DEFAULT_LABEL.fullmatch(text) for text in each) for each in texts):
        return {}, {"id2label": f"{names[1]}, not {names[0]}"}
    return {"id2label": f"{names[1]}, in the base {names[0]}"}, {}


def _tokenizers(base: Path | None, other: Path | None) -> tuple[dict[str, str], list[str]]:
    """Return differences in tokenisation, and other differences, line by line."""
    if base is None or other is None:
        return {}, []
    notes = []
    templates = [_text(folder / _TEMPLATE) for folder in (base, other)]
    if all(templates) and templates[0] != templates[1]:
        notes.append("its chat template is another one; the output has the base's")
    texts = [_text(folder / _TOKENIZER) for folder in (base, other)]
    if not all(texts) or texts[0] == texts[1]:
        return {}, notes
    parts = [_cutting(folder / _TOKENIZER) for folder in (base, other)]
    differ = [part for part, how in parts[0].items() if how != parts[1][part]]
    wrong = {f"tokenizer.{part}": "another one" for part in differ if part != "vocab"}
    if not differ:
        notes.append(f"{_TOKENIZER} is another file, which cuts text into words alike")
    return wrong, notes


def _text(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _cutting(path: Path) -> dict[str, Any]:
    """Return how a tokenizer splits text, whatever version of tokenizers wrote it."""
    with needed_by(f"{path}, which differs from the other's and may cut text alike,"):
        from tokenizers import Tokenizer
    try:
        content = json.loads(Tokenizer.from_file(str(path)).to_str())
    except Exception:  # tokenizers raises Exception itself; what it cannot read goes as it stands
        content = read_json(path)
    model = content.get("model") or {}
    found = {part: content.get(part) for part in ("normalizer", "pre_tokenizer")}
    found |= {"model": model.get("type"), "merges": model.get("merges")}
    return found | {"vocab": [model.get("vocab"), content.get("added_tokens")]}
