"""Translation of mergekit configurations into our options, where the meaning is the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rmtllmf_jax.common.errors import InputError, require_known

_WITH_RESCALE = {"rescale": True, "int8_mask": False}


class _Kind(NamedTuple):
    """A method of mergekit."""

    ours: str
    shared: Mapping[str, Any]
    """Its parameters for all models, with mergekit's defaults."""
    by_model: Mapping[str, float] = MappingProxyType({})
    """Its parameters of single models besides the weight, with mergekit's defaults."""
    weighs: bool = True


_DENSITY = {"density": 1.0}
_SUM = {"normalize": False, "lambda": 1.0, **_WITH_RESCALE}
_MEAN = _SUM | {"normalize": True}
_KINDS = {
    "linear": _Kind("average", {"normalize": True}),
    "task_arithmetic": _Kind("task_arithmetic", _SUM | {"rescale": False}, _DENSITY),
    "ties": _Kind("ties", _MEAN | {"rescale": False}, _DENSITY),
    "dare_linear": _Kind("dare", _SUM, _DENSITY),
    "dare_ties": _Kind("dare_ties", _SUM, _DENSITY),
    "della": _Kind("della", _MEAN, _DENSITY | {"epsilon": 0.15}),
    "della_linear": _Kind("della_linear", _SUM, _DENSITY | {"epsilon": 0.15}),
    "breadcrumbs": _Kind("breadcrumbs", _SUM | {"rescale": False}, _DENSITY | {"gamma": 0.01}),
    "slerp": _Kind("slerp", {"t": None}, weighs=False),
    "multislerp": _Kind("multi_slerp", {"normalize_weights": True}),
    "model_stock": _Kind("model_stock", {"filter_wise": False}, weighs=False),
}
_KEYS = ("merge_method", "base_model", "models", "dtype", "out_dtype", "parameters")
_NOT_DONE = {
    "slices": "layers of several models are not put together; name whole models under `models`",
    "modules": "modules are not merged apart; name whole models under `models`",
    "chat_template": "templates are those of the base; change chat_template.jinja in the output",
}
_TOKENIZERS, _TOKENS = ("base", "union"), ("tokenizer_source", "tokenizer")


def from_mergekit(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration of mergekit as a recipe: the options of `rmtllmf fuse`.

    The meaning is that of mergekit: `filter` is a part of a name, weights must be given, and both
    programs draw the masks of DARE and DELLA at random. To compensate for dropped entries in DARE,
    this package rescales by the probability, as published, and mergekit by the tensor's norm.

    **Raises:** `InputError` that names what is not supported, or not known.
    """
    for key, why in _NOT_DONE.items():
        if content.get(key) is not None:
            raise InputError(f"{where}: `{key}` of mergekit is not done here: {why}.")
    for key in content:
        require_known(f"key of {where}, a file of mergekit's,", key, (*_KEYS, *_TOKENS))
    name = content["merge_method"]
    if name not in _KINDS:
        raise InputError(
            f"{where}: merge_method {name!r} of mergekit is not read here; these are: "
            f"{', '.join(_KINDS)}."
        )
    kind, shared = _KINDS[name], dict(content.get("parameters") or {})
    models = [_Model.of(each, where) for each in content.get("models") or []]
    if not models:
        raise InputError(f"{where}: expected a list `models`, got none.")
    base, models = _base(name, content.get("base_model"), models, where)
    for parameters in (shared, *(each.parameters for each in models)):
        for key in parameters:
            weight = ("weight",) if kind.weighs else ()
            known = (*kind.shared, *kind.by_model, *weight)
            require_known(f"parameter of {name} in {where}", key, known)
    recipe = {
        "base": base,
        "models": [each.recipe(kind, shared, where) for each in models],
        **_method(name, kind, shared, where),
        "tokenizer": _tokenizer(content, where),
        "dtype": content.get("out_dtype") or content.get("dtype"),
    }
    return {key: value for key, value in recipe.items() if value is not None}


class _Model(NamedTuple):
    model: str
    parameters: dict[str, Any]

    @classmethod
    def of(cls, given: Any, where: str) -> _Model:
        if not isinstance(given, Mapping) or not isinstance(given.get("model"), str):
            raise InputError(f"{where}: expected `model: NAME` under `models`, got {given!r}.")
        for key in given:
            require_known(f"key of a model in {where}", key, ("model", "parameters"))
        return cls(_name(given["model"], where), dict(given.get("parameters") or {}))

    def recipe(self, kind: _Kind, shared: Mapping[str, Any], where: str) -> Any:
        found = {}
        for key in (*(("weight",) if kind.weighs else ()), *kind.by_model):
            settings = (self.parameters.get(key), shared.get(key), kind.by_model.get(key))
            cases = [case for setting in settings for case in _cases(setting, where)]
            if cases:
                option, cases = _option(kind, key, cases)
                found[option] = cases
        if kind.weighs and "weight" not in found:
            raise InputError(f"{where}: {self.model} has no weight; mergekit needs one.")
        if kind.ours == "task_arithmetic":
            found.pop("density", None)  # nothing is sparsified
        return {"model": self.model, "parameters": found} if found else self.model


def _base(name: str, base: Any, models: list[_Model], where: str) -> tuple[str, list[_Model]]:
    """Return the base, and the models other than it."""
    if name == "linear":  # a mean of models is the same from whichever of them one starts
        return (_name(base, where) if base else models[0].model), models
    if not isinstance(base, str):
        raise InputError(f"{where}: {name} needs a `base_model`.")
    base = _name(base, where)
    others = [each for each in models if each.model != base]
    if name != "slerp":
        return base, others
    if len(others) != 1:
        raise InputError(f"{where}: slerp is between base_model and one other, got {len(others)}.")
    return base, [_Model(base, {}), *others]


def _name(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: expected a model as text, got {text!r}.")
    if "+" in text:
        raise InputError(
            f"{where}: {text!r} is a model and an adapter: name the adapter's directory as the "
            "model, and the model as base_model."
        )
    return text


def _method(name: str, kind: _Kind, shared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return method and scale."""
    given = {key: shared.get(key, default) for key, default in kind.shared.items()}
    for key in ("normalize", "rescale", "normalize_weights", "filter_wise"):
        if key in given and not isinstance(given[key], bool):
            raise InputError(f"{where}: {key} must be true or false, got {given[key]!r}.")
    method = kind.ours
    mean = given.get("normalize")
    if name == "linear":
        if not mean:
            raise InputError(
                f"{where}: linear without normalize adds whole models up, which is not done here: "
                "give weights whose sum is 1, with normalize: true."
            )
        return {"method": method, "scale": 1.0}
    if name == "slerp":
        t = _cases(given["t"], where)
        if not t:
            raise InputError(f"{where}: slerp needs the parameter t.")
        return {"method": method, "scale": 1.0, "parameters": {"t": t}}
    if name in ("multislerp", "model_stock"):
        if given != dict(kind.shared):
            raise InputError(f"{where}: of {name}, {', '.join(given)} is its default here.")
        return {"method": method, "scale": 1.0}
    if name.startswith("dare") and not given["rescale"]:
        raise InputError(f"{where}: {name} without rescale is not done here: leave it out.")
    if name in ("ties", "breadcrumbs") and given["rescale"]:
        raise InputError(f"{where}: {name} with rescale is not done here: leave it out.")
    if name == "task_arithmetic" and mean:
        method = "average"
    elif name in ("ties", "dare_ties"):
        method = f"{method}(normalise={str(mean).lower()})"
    elif name.startswith("della"):
        rescale = "l1" if given["rescale"] else "none"
        options = f"normalise={str(mean).lower()}, " if name == "della" else ""
        method = f"{method}({options}rescale={rescale})"
    if mean and name in ("dare_linear", "della_linear", "breadcrumbs"):
        raise InputError(f"{where}: {name} with normalize is not done here: leave it out.")
    scale = _cases(given["lambda"], where)
    return {"method": method, "scale": scale[0]["value"] if _plain(scale) else scale}


def _plain(cases: list[dict[str, Any]]) -> bool:
    return len(cases) == 1 and set(cases[0]) == {"value"} and isinstance(cases[0]["value"], float)


def _cases(setting: Any, where: str) -> list[dict[str, Any]]:
    """Return a setting of mergekit as values by name: `filter` is a part of the name."""
    if setting is None:
        return []
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return [{"value": _number(setting, where)}]
    if not any(isinstance(each, Mapping) for each in setting):
        return [{"value": _value(setting, where)}]
    found = []
    for each in setting:
        if not isinstance(each, Mapping):
            raise InputError(f"{where}: expected `value` and `filter` by name, got {each!r}.")
        for key in each:
            require_known(f"key of a value in {where}", key, ("filter", "value"))
        part = each.get("filter")
        names = {} if part in (None, "*") else {"names": f".*{re.escape(str(part))}.*"}
        found.append(names | {"value": _value(each.get("value"), where)})
    return found


def _value(value: Any, where: str) -> float | list[float]:
    """Return a number, or the numbers of a gradient over the layers."""
    if isinstance(value, list):
        return [_number(each, where) for each in value]
    return _number(value, where)


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)  # YAML takes 1e-3 for a text
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected a number, got {value!r}.") from None


def _option(kind: _Kind, key: str, cases: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return a parameter as our option: that of DARE is the share dropped."""
    if key == "density" and kind.ours.startswith("dare"):
        return "drop", [each | {"value": _dropped(each["value"])} for each in cases]
    return key, cases


def _dropped(density: float | list[float]) -> float | list[float]:
    return [1 - each for each in density] if isinstance(density, list) else 1 - density


def _tokenizer(content: Mapping[str, Any], where: str) -> str | None:
    source, own = content.get("tokenizer_source"), content.get("tokenizer")
    if own is not None:
        if not isinstance(own, Mapping) or set(own) != {"source"}:
            raise InputError(
                f"{where}: `tokenizer` of mergekit is read here with nothing but a `source`, base "
                f"or union: tokens are not given embeddings one by one. Got {own!r}."
            )
        source = own["source"]
    if source is not None and source not in _TOKENIZERS:
        raise InputError(
            f"{where}: tokenizer_source must be {' or '.join(_TOKENIZERS)}, got {source!r}; for "
            "that of a model, write a recipe of our own with `tokenizer: NAME`."
        )
    return source
