"""Merge rules against mergekit's command on the same files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from rmtllmf_jax import fusion
from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.fusion import rules
from rmtllmf_jax.fusion.rules.sparsifiers import _leaf_key, _uniform, keep_mask

pytest.importorskip("torch", reason="mergekit needs torch: pip install 'rmtllmf-jax[parity]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs
    pytest.importorskip("mergekit", reason="mergekit is not installed: pip install mergekit")
    import mergekit.sparsify
    import torch
    from click.testing import CliRunner
    from mergekit.scripts.merge_raw_pytorch import main as mergekit_pytorch

TOLERANCE = 1e-6
SHAPES = {
    "embeddings.token.weight": (50, 16),
    "layers.0.attention.weight": (16, 16),
    "layers.0.attention.bias": (16,),
    "layers.10.mlp.weight": (64, 16),
    "norm.weight": (16,),
}
WEIGHTS = (1.0, 0.5, 0.75)
DROP = 0.4
OF_A_MODEL = ("density", "gamma", "epsilon")
"""Parameters that a recipe of mergekit has for each model."""

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models fine-tuned from it: weights of .05, changes of .01."""
    folder = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)

    def normal(std: float) -> Tensors:
        return {k: (std * random.normal(size=s)).astype(np.float32) for k, s in SHAPES.items()}

    base = normal(0.05)
    models = [base]
    for _ in WEIGHTS:
        change = normal(0.01)
        models.append({name: base[name] + change[name] for name in SHAPES})
    paths = [folder / f"{name}.safetensors" for name in ("base", "a", "b", "c")]
    for path, tensors in zip(paths, models, strict=True):
        save_file(tensors, path)
    return paths


def theirs(
    files: list[Path], folder: Path, method: str, weights: tuple[float, ...], **parameters: Any
) -> Tensors:
    """Return what mergekit's command for arbitrary checkpoints writes."""
    of_model = {name: parameters.pop(name) for name in OF_A_MODEL if name in parameters}
    models = [
        {"model": str(path), "parameters": {"weight": weight, **of_model}}
        for path, weight in zip(files[1:], weights, strict=True)
    ]
    config = {
        "merge_method": method,
        "base_model": str(files[0]),
        "models": models,
        "parameters": parameters,
    }
    return of_recipe(config, folder)


def of_recipe(config: dict[str, Any], folder: Path) -> Tensors:
    """Return what mergekit's command writes for a recipe."""
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = [str(folder / "config.yml"), str(folder / "out")]
        done = CliRunner().invoke(mergekit_pytorch, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return load_file(folder / "out" / "model.safetensors")


def ours(files: list[Path], merge: Callable[[dict], dict]) -> Tensors:
    """Return the base plus the merged task vectors of the same files."""
    base, *models = (jax.tree.map(jnp.asarray, load_file(path)) for path in files)
    taus = [fusion.TaskVector.between(model, base).tree for model in models]
    return jax.tree.map(np.asarray, fusion.add_to_base(base, merge(fusion.stack(taus)), 1.0))


def assert_same(ours: Tensors, theirs: Tensors, base: Path) -> None:
    assert set(ours) == set(theirs)
    before = load_file(base)
    for name, tensor in ours.items():
        assert np.abs(tensor - before[name]).max() > 1e-3, f"{name}: nothing was merged"
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS, (0.3, -0.2, 0.0)])
def test_task_arithmetic(files: list[Path], tmp_path: Path, weights: tuple[float, ...]):
    expected = theirs(files, tmp_path, "task_arithmetic", weights)
    assert_same(ours(files, rules.TaskArithmetic(weights)), expected, files[0])


def test_average(files: list[Path], tmp_path: Path):
    expected = theirs(files, tmp_path, "task_arithmetic", WEIGHTS, normalize=True)
    assert_same(ours(files, rules.Average(WEIGHTS)), expected, files[0])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS, (1.0, -0.5, 0.0)])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(
    files: list[Path], tmp_path: Path, density: float, normalise: bool, weights: tuple[float, ...]
):
    expected = theirs(files, tmp_path, "ties", weights, density=density, normalize=normalise)
    assert_same(ours(files, rules.Ties(density, normalise, weights)), expected, files[0])


@pytest.fixture
def fixed_masks(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> jax.Array:
    """Let mergekit drop the entries that our key drops; the rest of it is its own."""
    key = jax.random.key(3)
    base, *models = (load_file(path) for path in files)
    masks = {
        (model[name] - base[name]).tobytes(): keep_mask(key, user, name, shape, DROP)
        for user, model in enumerate(models)
        for name, shape in SHAPES.items()
    }

    def drop(delta: Any, density: float, rescale_norm: Any = None) -> Any:
        assert density == pytest.approx(1 - DROP)
        mask = torch.from_numpy(np.array(masks[delta.numpy().tobytes()], np.float32))
        return mergekit.sparsify.rescaled_masked_tensor(delta, mask, rescale_norm)

    monkeypatch.setattr(mergekit.sparsify, "bernoulli", drop)
    return key


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_dare_with_the_same_masks(
    files: list[Path], tmp_path: Path, fixed_masks: jax.Array, method: str
):
    """Mergekit rescales to the norm of the tensor before; DARE's 1 / (1 - p) goes in as weights."""
    rescaled = tuple(weight / (1 - DROP) for weight in WEIGHTS)
    name = {"dare": "dare_linear", "dare_ties": "dare_ties"}[method]
    density = {"density": 1 - DROP, "rescale": False, "normalize": False}
    expected = theirs(files, tmp_path, name, rescaled, **density)
    dropping = rules.METHODS[method](drop=DROP, weights=WEIGHTS)
    assert_same(ours(files, lambda tree: dropping(tree, fixed_masks)), expected, files[0])


def test_dare_ties_as_a_mean_with_the_same_masks(
    files: list[Path], tmp_path: Path, fixed_masks: jax.Array
):
    density = {"density": 1 - DROP, "rescale": False, "normalize": True}
    expected = theirs(files, tmp_path, "dare_ties", WEIGHTS, **density)
    method = rules.DareTies(DROP, True, WEIGHTS)

    def merge(tree: dict) -> dict:  # theirs without the rescaling, which weights cannot give a mean
        rescaled = method(tree, fixed_masks)
        return jax.tree.map(lambda leaf: leaf * (1 - DROP), rescaled)

    assert_same(ours(files, merge), expected, files[0])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS, (1.0, -0.5, 0.0)])
@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.5, 0.1), (0.9, 0.3), (1.0, 0.1)])
def test_breadcrumbs(
    files: list[Path], tmp_path: Path, density: float, gamma: float, weights: tuple[float, ...]
):
    expected = theirs(files, tmp_path, "breadcrumbs", weights, density=density, gamma=gamma)
    assert_same(ours(files, rules.Breadcrumbs(density, gamma, weights)), expected, files[0])


@pytest.fixture
def fixed_draws(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> jax.Array:
    """Let mergekit compare its probabilities to our key's draws; the rest of it is its own."""
    key = jax.random.key(3)
    base, *models = (load_file(path) for path in files)
    draws = {
        (model[name] - base[name]).tobytes(): _uniform(_leaf_key(key, name), user, shape)
        for user, model in enumerate(models)
        for name, shape in SHAPES.items()
    }
    plain, now = mergekit.sparsify.della_magprune, [b""]

    def prune(tensor: Any, *rest: Any, **more: Any) -> Any:
        now[0] = tensor.numpy().tobytes()
        return plain(tensor, *rest, **more)

    def bernoulli(probabilities: Any) -> Any:
        drawn = torch.from_numpy(np.array(draws[now[0]])).reshape(probabilities.shape)
        return (drawn >= 1 - probabilities).to(probabilities.dtype)

    monkeypatch.setattr(mergekit.sparsify, "della_magprune", prune)
    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return key


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_with_the_same_draws(
    files: list[Path], tmp_path: Path, fixed_draws: jax.Array, method: str, rescale: bool
):
    options: dict[str, Any] = {"density": 0.6, "epsilon": 0.2}
    expected = theirs(files, tmp_path, method, WEIGHTS, rescale=rescale, **options)
    how = "l1" if rescale else None
    pruning = rules.METHODS[method](**options, rescale=how, weights=WEIGHTS)
    assert_same(ours(files, lambda tree: pruning(tree, fixed_draws)), expected, files[0])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS])
def test_multi_slerp(files: list[Path], tmp_path: Path, weights: tuple[float, ...]):
    expected = theirs(files, tmp_path, "multislerp", weights)
    assert_same(ours(files, rules.MultiSlerp(weights)), expected, files[0])


def test_model_stock(files: list[Path], tmp_path: Path):
    """Vectors at nearly right angles are drawn back to the base: changes are small."""
    expected = theirs(files, tmp_path, "model_stock", (1.0, 1.0, 1.0))
    found, base = ours(files, rules.ModelStock()), load_file(files[0])
    for name in SHAPES:
        assert np.abs(found[name] - base[name]).max() > 1e-6, f"{name}: nothing was merged"
        np.testing.assert_allclose(found[name], expected[name], atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(files: list[Path], tmp_path: Path, t: float):
    """Of two models; mergekit has no base besides, and ours is of no consequence."""
    config = {
        "merge_method": "slerp",
        "base_model": str(files[1]),
        "models": [{"model": str(path)} for path in files[1:3]],
        "parameters": {"t": t},
    }
    expected = of_recipe(config, tmp_path)
    base = {"base": jax.tree.map(jnp.asarray, load_file(files[0]))}
    found = ours([files[0], *files[1:3]], lambda tree: rules.Slerp(t)(tree, **base))
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], atol=TOLERANCE, err_msg=name)


# mergekit's own files through `rmtllmf fuse`


def run_both(folder: Path, config: dict[str, Any]) -> tuple[Tensors, Tensors]:
    """Return what `rmtllmf fuse` and mergekit's command make of the same file."""
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config))
    Fuse(recipe=path, out=folder / "ours").run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = [str(path), str(folder / "theirs")]
        done = CliRunner().invoke(mergekit_pytorch, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return load_file(folder / "ours/model.safetensors"), load_file(
        folder / "theirs/model.safetensors"
    )


def model(path: Path, **parameters: Any) -> dict[str, Any]:
    return {"model": str(path), "parameters": parameters}


def by_filter(**values: float) -> list[dict[str, Any]]:
    """Return values by part of a name; `rest` is for all others."""
    return [
        {"value": value} if part == "rest" else {"filter": part, "value": value}
        for part, value in values.items()
    ]


FILES = {
    "linear": lambda base, a, b, c: {
        "merge_method": "linear",
        "models": [model(a, weight=1), model(b, weight=0.3), model(c, weight="5e-1")],
    },
    "linear_with_base": lambda base, a, b, c: {
        "merge_method": "linear",
        "base_model": str(base),
        "models": [model(base, weight=0.4), model(a, weight=by_filter(mlp=2, rest=1))],
    },
    "task_arithmetic": lambda base, a, b, c: {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [
            {"model": str(base)},
            model(a, weight=by_filter(attention=0.7, norm=-0.2)),
            model(b),
        ],
        "parameters": {"weight": 0.4, "lambda": by_filter(mlp=0.5, rest=1.1), "int8_mask": True},
    },
    "normalised": lambda base, a, b, c: {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [model(a, weight=1), model(b, weight=0.3)],
        "parameters": {"normalize": True},
    },
    "ties": lambda base, a, b, c: {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [
            model(a, weight=1, density=by_filter(mlp=0.3, rest=0.9)),
            model(b, weight=by_filter(bias=0.2, rest=0.6), density=0.25),
            model(c, weight=0.5),
        ],
        "parameters": {"normalize": True, "lambda": 0.8, "density": 0.5},
        "dtype": "float32",
    },
    "ties_sum": lambda base, a, b, c: {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [model(a), model(b)],
        "parameters": {"normalize": False, "weight": 0.5},
    },
    "dare_linear_dense": lambda base, a, b, c: {
        "merge_method": "dare_linear",
        "base_model": str(base),
        "models": [model(a, weight=0.5, density=1), model(b, weight=0.25)],
    },
    "dare_ties_dense": lambda base, a, b, c: {
        "merge_method": "dare_ties",
        "base_model": str(base),
        "models": [model(a, weight=0.5), model(b, weight=0.25), model(c, weight=1)],
        "parameters": {"density": 1.0, "normalize": True},
    },
    "della_dense": lambda base, a, b, c: {
        "merge_method": "della_linear",
        "base_model": str(base),
        "models": [model(a, weight=0.5), model(b, weight=0.25)],
        "parameters": {"density": 1.0, "epsilon": 0.0},
    },
    "breadcrumbs": lambda base, a, b, c: {
        "merge_method": "breadcrumbs",
        "base_model": str(base),
        "models": [model(a, weight=0.5, density=0.6), model(b, weight=0.25, gamma=0.1)],
        "parameters": {"density": 0.8, "gamma": 0.05},
    },
    "slerp": lambda base, a, b, c: {
        "merge_method": "slerp",
        "base_model": str(a),
        "models": [{"model": str(a)}, {"model": str(b)}],
        "parameters": {"t": by_filter(mlp=0.3, rest=0.6)},
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_mergekits_means_the_same(files: list[Path], tmp_path: Path, name: str):
    base, *models = files
    config = FILES[name](base, *models)
    ours, expected = run_both(tmp_path, config)
    assert_same(ours, expected, models[0] if name == "slerp" else base)


def test_dare_of_a_file_keeps_what_mergekit_keeps_in_the_mean(files: list[Path], tmp_path: Path):
    """The masks are random: shares kept and the sum's size agree, entries do not."""
    base, *models = files
    each = [model(path, weight=1.0) for path in models]
    config = {"merge_method": "dare_linear", "base_model": str(base), "models": each}
    ours, expected = run_both(tmp_path, config | {"parameters": {"density": 0.7}})
    before = load_file(base)
    for name in ("layers.10.mlp.weight", "embeddings.token.weight"):
        sizes = [np.abs(found[name] - before[name]).mean() for found in (ours, expected)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.1), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "slerp"])
def test_gradients_over_layers_of_a_llama(tmp_path: Path, method: str):
    """As mergekit spreads them over the layers that it knows of an architecture."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 40}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 4}
    places = [tmp_path / name for name in ("base", "a", "b")]
    for seed, place in enumerate(places):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(place)
    base, a, b = map(str, places)
    models = [{"model": a, "parameters": {"weight": [0, 1.0, 0.2]}}, {"model": b}]
    gradient = [{"filter": "mlp", "value": [0.3, 0.9]}, {"value": 0.5}]
    config: dict[str, Any] = {
        "merge_method": method,
        "base_model": base,
        "models": models,
        "parameters": {"weight": 0.6, "density": gradient},
        "dtype": "float32",
    }
    if method == "slerp":
        given = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"value": 0.4}]
        config |= {"models": [{"model": base}, {"model": a}], "parameters": {"t": given}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    Fuse(recipe=tmp_path / "config.yml", out=tmp_path / "ours").run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = MergeConfiguration.model_validate(config)
        run_merge(parsed, out_path=str(tmp_path / "theirs"), options=MergeOptions())
    ours, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs")
    )
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
