"""`rmtllmf fuse RECIPE`: recipes, the one in fusion.json, and what varies by model and by name."""

from __future__ import annotations

import json
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
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import Dare, TaskArithmetic, Ties
from rmtllmf_jax.fusion.rules import ModelStock, MultiSlerp, Slerp
from rmtllmf_jax.fusion.rules.per_model import PerModel

SHAPES = {
    "model.embed.weight": (12, 4),
    "model.layers.0.attn.weight": (4, 6),
    "model.layers.0.mlp.weight": (4, 6),
    "model.layers.1.mlp.weight": (4, 6),
    "lm_head.weight": (12, 4),
}
Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `models/base` and three models, and nothing else."""
    random = np.random.default_rng(0)
    base = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    (tmp_path / "models").mkdir()
    for name in ("base", "a", "b", "c"):
        size = 0.1 * (name != "base")
        changed = {key: base[key] + size * random.normal(size=SHAPES[key]) for key in base}
        content = {key: value.astype(np.float32) for key, value in changed.items()}
        save_file(content, tmp_path / "models" / f"{name}.safetensors")
    return tmp_path


def fuse(folder: Path, recipe: dict[str, Any], out: str = "out", **options: Any) -> Tensors:
    """Write a recipe in which names are those of `models/`, and return what it makes."""
    path = folder / "recipes" / "recipe.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    Fuse(recipe=path, out=folder / out, **options).run()
    return read(folder / out)


def read(out: Path) -> Tensors:
    return {
        key: value for path in out.glob("*.safetensors") for key, value in load_file(path).items()
    }


def place(name: str) -> str:
    return f"../models/{name}.safetensors"


def recipe(*models: Any, **options: Any) -> dict[str, Any]:
    """Return a recipe; a model is a name, or a pair of a name and parameters."""
    listed = [
        place(each) if isinstance(each, str) else {"model": place(each[0]), "parameters": each[1]}
        for each in models
    ]
    return {"base": place("base"), "models": listed, "scale": 0.4} | options


def expected(folder: Path, names: str, method: Any, scale: float = 0.4, key: Any = None) -> Tensors:
    """Return the merge in memory."""
    base, *others = (
        jax.tree.map(jnp.asarray, load_file(folder / "models" / f"{name}.safetensors"))
        for name in ("base", *names)
    )
    stacked = fusion.stack([jax.tree.map(jnp.subtract, other, base) for other in others])
    given = {"base": base} if "base" in getattr(method, "needs", ()) else {}
    return fusion.add_to_base(base, method(stacked, key, **given), scale)


def assert_same(found: Tensors, wanted: Tensors, *names: str) -> None:
    for name in names or SHAPES:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6, err_msg=name)


def test_a_recipe_is_the_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    found = fuse(folder, recipe("a", "b", method="ties(density=0.5)", dtype="float32"))
    assert_same(found, expected(folder, "ab", Ties(0.5)))
    assert "0.4 * ties(density=0.5)(a.safetensors, b.safetensors)" in capsys.readouterr().out


def test_weights_and_densities_by_model(folder: Path):
    models = (("a", {"weight": 2, "density": 0.25}), ("b", {"density": 0.5}), ("c", {"density": 1}))
    found = fuse(folder, recipe(*models, method="ties(normalise=false)"))
    method = PerModel((Ties(0.25, False), Ties(0.5, False), Ties(1.0, False)), (2.0, 1.0, 1.0))
    assert_same(found, expected(folder, "abc", method))


def test_random_masks_by_model_are_those_of_the_method(folder: Path):
    models = (("a", {"drop": 0.5}), ("b", {"drop": 0.9}))
    found = fuse(folder, recipe(*models, method="dare", seed=3))
    method = PerModel((Dare(0.5), Dare(0.9)))
    assert_same(found, expected(folder, "ab", method, key=jax.random.key(3)))
    alike = fuse(folder, recipe("a", "b", method="dare", parameters={"drop": 0.5}, seed=3), "alike")
    assert_same(alike, expected(folder, "ab", Dare(0.5), key=jax.random.key(3)))


def test_values_by_name_and_their_fallbacks(folder: Path):
    by_name = [{"names": ".*mlp.*", "value": 0.5}, {"names": "lm_head.*", "value": -1}]
    scale = [{"names": "model.embed.*", "value": 0.0}, {"value": 0.4}]
    models = (("a", {"weight": by_name}), "b")
    found = fuse(folder, recipe(*models, parameters={"weight": 2.0}, scale=scale))
    for names, weights in {
        ("model.layers.0.mlp.weight", "model.layers.1.mlp.weight"): (0.5, 2.0),
        ("lm_head.weight",): (-1.0, 2.0),
        ("model.layers.0.attn.weight",): (2.0, 2.0),
    }.items():
        assert_same(found, expected(folder, "ab", TaskArithmetic(weights)), *names)
    base = load_file(folder / "models/base.safetensors")
    np.testing.assert_array_equal(found["model.embed.weight"], base["model.embed.weight"])


def test_an_option_for_all_models_by_name(folder: Path):
    t = [{"names": ".*attn.*", "value": 0.1}, {"value": 0.7}]
    found = fuse(folder, recipe("a", "b", method="slerp", scale=1, parameters={"t": t}))
    assert_same(found, expected(folder, "ab", Slerp(0.1), 1.0), "model.layers.0.attn.weight")
    assert_same(found, expected(folder, "ab", Slerp(0.7), 1.0), "lm_head.weight")


def test_a_gradient_over_the_blocks(folder: Path):
    by_name = [{"names": ".*mlp.*", "value": [0.2, 1.0]}, {"value": 0.5}]
    found = fuse(folder, recipe(("a", {"weight": by_name}), ("b", {"weight": [2, 1, 0]})))
    for name, weights in {
        "model.layers.0.mlp.weight": (0.2, 2.0),
        "model.layers.1.mlp.weight": (1.0, 0.0),
        "model.layers.0.attn.weight": (0.5, 2.0),
        "lm_head.weight": (0.5, 2.0),
    }.items():
        assert_same(found, expected(folder, "ab", TaskArithmetic(weights)), name)


LINK = {"link": "sum_rate", "preset": "paper(users=3)", "c0": -3, "draw": 2, "seed": 4}
CASES = {
    "plain": recipe("a", "b", method="average"),
    "named": recipe("a", "b", method="ties(density=0.5, weights=(1, 0.3))", only=["model.*"]),
    "random": recipe("a", "b", method="dare_ties(drop=0.4)", seed=5, dtype="bfloat16"),
    "lata": recipe("a", "b", method="lata", reference=place("c")),
    "varies": recipe(
        ("a", {"weight": [{"names": ".*mlp.*", "value": 0.3}, {"value": 1}], "density": 0.3}),
        ("b", {"density": [0.9, 0.4]}),
        method="ties",
        scale=[{"names": ".*mlp.*", "value": 0.123456789012345}, {"value": 1}],
    ),
    "linked": recipe("a", "b", **LINK, protection="repeat(times=2)+shrink"),
    "factors": recipe("a", "b", **LINK, protection="adapter(rank=2, targets=('.*mlp',))"),
}


@pytest.mark.parametrize("name", CASES)
def test_fusion_json_is_a_recipe_that_makes_the_same_bytes(folder: Path, name: str):
    fuse(folder, CASES[name])
    Fuse(recipe=folder / "out/fusion.json", out=folder / "elsewhere" / "again").run()
    for path in (folder / "out").glob("*.safetensors"):
        assert path.read_bytes() == (folder / "elsewhere/again" / path.name).read_bytes()
    first, again = (
        json.loads((folder / out / "fusion.json").read_text()) for out in ("out", "elsewhere/again")
    )
    first["recipe"] = json.loads(json.dumps(first["recipe"]).replace("../", "../../"))
    assert again == first


def test_the_command_line_writes_one_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    words = "fuse --base models/base.safetensors --models models/a.safetensors models/b.safetensors"
    main([*words.split(), "--out", "one", "--method", "ties", "--options", "density=0.3"])
    main(["fuse", "one/fusion.json", "--out", "two"])
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()
    record = json.loads(Path("one/fusion.json").read_text())["recipe"]
    assert record["models"] == ["../models/a.safetensors", "../models/b.safetensors"]
    assert (record["method"], record["scale"]) == ("ties(density=0.3)", 1.0)


def test_a_name_that_is_of_no_tensor_is_noted(folder: Path):
    fuse(folder, recipe(("a", {"weight": [{"names": "encoder.*", "value": 2}, {"value": 1}]})))
    notes = json.loads((folder / "out/fusion.json").read_text())["notes"]
    assert "weight: no tensor that is merged matches 'encoder.*'" in notes


def pair(first: dict[str, Any], second: dict[str, Any] | None = None) -> list[Any]:
    """Return two models with these parameters."""
    return recipe(("a", first), ("b", second) if second else "b")["models"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scal": 1}, r"unknown key of .*recipe.yaml 'scal'\. Did you mean 'scale'"),
        ({"models": "a"}, r"models must be a list of at least one, got 'a'"),
        ({"models": [{"modl": "a"}]}, r"models: expected a name, or `model: NAME`"),
        ({"models": [{"model": "a", "wieght": 1}]}, r"unknown key of a model in .* 'wieght'"),
        ({"parameters": {"densty": 0.5}}, r"unknown option of method ties 'densty'\. Did you mean"),
        ({"parameters": {"density": "half"}}, r"density of ties must be a number, got 'half'"),
        ({"parameters": {"density": 2}}, r"density must be above 0 and at most 1"),
        ({"parameters": {"density": [0.1, {"value": 1}]}}, r"a list of values such as \{names"),
        ({"parameters": {"density": ["a", "b"]}}, r"density must be a number each"),
        ({"parameters": {"density": []}}, r"density: expected a number, a word"),
        ({"parameters": {"density": [{"name": 1, "value": 1}]}}, r"key of a value .*'name'"),
        ({"parameters": {"density": [{"names": "(", "value": 1}]}}, r"'\(' is not a regular"),
        (
            {"parameters": {"density": [{"names": "l.*", "value": 1}]}},
            r"density: no value",
        ),
        ({"parameters": [1]}, r"expected options of the method by name"),
        ({"scale": "big"}, r"unknown scale 'big'"),
        ({"seed": "one"}, r"seed must be a whole number, got 'one'"),
        ({"only": "model.*"}, r"only must be a text each, in brackets"),
        (
            {"dtype": "float8"},
            r"dtype must be keep or float32 or .*, got 'float8'",
        ),
        ({"base": 5}, r"base must be a text"),
        ({"base": "../models/nowhere.safetensors"}, r"nowhere.safetensors: no such file"),
        (
            {"method": "lata", "parameters": {"weight": 1}},
            r"weight: lata sets its own weights by layer",
        ),
        ({"models": pair({"density": 1})}, r"density is given for some models"),
        (
            {"models": pair({"normalise": True}, {"normalise": False})},
            r"ties: models may differ in what is kept of them",
        ),
        (
            {"method": "slerp", "models": pair({"t": 0.1}, {"t": 0.2})},
            r"t of slerp is one for all models",
        ),
        ({"models": pair({"scale": 1})}, r"scale is one for all"),
        ({"c0": -3.0}, r"--c0 needs a link"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused(folder: Path, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        fuse(folder, recipe("a", "b", method="ties") | changes)
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"neither YAML nor JSON"),
        ("- a", r"expected options by name"),
        ("base: x\nbase: y\n", r"neither YAML nor JSON .*'base' is there twice"),
        ("\x00", r"neither YAML nor JSON"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"x.yaml: {message}"):
        Fuse(recipe=path, out=tmp_path / "out").run()
    with pytest.raises(InputError, match=r"no.yaml: no recipe can be read there \(No such file"):
        Fuse(recipe=tmp_path / "no.yaml").run()


def test_what_is_in_the_recipe_is_not_given_beside_it(folder: Path):
    with pytest.raises(InputError, match=r"--scale: the other options are in the recipe; change"):
        fuse(folder, recipe("a"), scale="1")
    with pytest.raises(InputError, match=r"fuse needs --out, or a recipe"):
        Fuse(base=folder / "models/base.safetensors", models=(folder / "a",)).run()


def test_numbers_that_yaml_takes_for_texts(folder: Path):
    path = folder / "recipe.yaml"
    path.write_text(
        "base: models/base.safetensors\nmodels: [models/a.safetensors]\nscale: 1e-1\n"
        "parameters: {weight: 5e-1}\nout: here\n"
    )
    Fuse(recipe=path).run()
    assert_same(read(folder / "here"), expected(folder, "a", TaskArithmetic(), 0.05))


# Files of mergekit's; tests/parity/test_mergekit.py runs mergekit on such files.


def mergekit(method: str = "ties", **changes: Any) -> dict[str, Any]:
    models = [{"model": place(name), "parameters": {"weight": 1.0}} for name in "ab"]
    return {"merge_method": method, "base_model": place("base"), "models": models} | changes


def test_means_of_directions_of_mergekits(folder: Path):
    found = fuse(folder, mergekit("multislerp"))
    assert_same(found, expected(folder, "ab", MultiSlerp(), 1.0))
    models = [{"model": place(name)} for name in "ab"]
    found = fuse(folder, mergekit("model_stock", models=models), "stock")
    assert_same(found, expected(folder, "ab", ModelStock(), 1.0))


def test_a_file_of_mergekits_is_read(folder: Path):
    parameters = {"density": [{"filter": "mlp", "value": 0.3}, {"value": 0.9}], "lambda": "5e-1"}
    found = fuse(folder, mergekit(parameters=parameters, out_dtype="float32"))
    assert_same(found, expected(folder, "ab", Ties(0.3), 0.5), "model.layers.0.mlp.weight")
    assert_same(found, expected(folder, "ab", Ties(0.9), 0.5), "lm_head.weight")
    record = json.loads((folder / "out/fusion.json").read_text())["recipe"]
    assert (record["method"], record["scale"], record["dtype"]) == ("ties", 0.5, "float32")


SLICES = [{"sources": [{"model": "a", "layer_range": [0, 2]}]}]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"merge_method": "passthrough", "slices": SLICES},
            r"`slices` of mergekit is not done",
        ),
        (mergekit("passthrough"), r"merge_method 'passthrough' of mergekit is not read .*: linear"),
        (mergekit("nuslerp"), r"merge_method 'nuslerp' of mergekit is not read here"),
        (mergekit(modules={"text": {}}), r"`modules` of mergekit is not done"),
        (mergekit(tokenizer={"source": "base", "tokens": {}}), r"`tokenizer` of mergekit .*source"),
        (mergekit(tokenizer_source="org/model"), r"tokenizer_source must be base or union, got"),
        (mergekit(chat_template="auto"), r"`chat_template` of mergekit is not done"),
        (mergekit(base_modl="x"), r"unknown key of .*mergekit's, 'base_modl'\. Did you mean"),
        (mergekit(base_model=None), r"ties needs a `base_model`"),
        (mergekit(models=[]), r"expected a list `models`, got none"),
        (
            mergekit(models=[{"model": "a", "parameters": {}}]),
            r"a has no weight; mergekit",
        ),
        (mergekit(models=["a"]), r"expected `model: NAME` under `models`, got 'a'"),
        (mergekit(models=[{"model": "a+lora"}]), r"'a\+lora' is a model and an adapter"),
        (
            mergekit(parameters={"densty": 1}),
            r"unknown parameter of ties .*'densty'\. Did",
        ),
        (mergekit(parameters={"density": [0.1, "x"]}), r"expected a number, got 'x'"),
        (mergekit(parameters={"density": [0.1, {"value": 1}]}), r"expected `value` and `filter`"),
        (mergekit(parameters={"density": "half"}), r"expected a number, got 'half'"),
        (mergekit(parameters={"normalize": 1}), r"normalize must be true or false, got 1"),
        (mergekit(parameters={"rescale": True}), r"ties with rescale is not done here"),
        (mergekit("dare_ties", parameters={"rescale": False}), r"dare_ties without rescale is not"),
        (mergekit("linear", parameters={"normalize": False}), r"linear without normalize adds"),
        (mergekit("slerp", parameters={"s": 1}), r"one other, got 2"),
        (
            mergekit("multislerp", parameters={"normalize_weights": False}),
            r"of multislerp, normalize_weights is its default here",
        ),
        (mergekit("model_stock"), r"unknown parameter of model_stock .* 'weight'"),
        (mergekit("slerp", models=[{"model": place("a")}]), r"slerp needs the parameter t"),
        (mergekit("slerp", models=[{"model": "a"}, {"model": "b"}]), r"one other, got 2"),
        (mergekit(dtype="float8"), r"dtype must be keep or float32"),
    ],
)
def test_what_mergekit_does_otherwise_is_refused_by_name(
    folder: Path, config: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        fuse(folder, config)
    assert not list(folder.glob("*out*"))
