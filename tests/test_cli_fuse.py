"""`rmtllmf fuse`: options, dry run, errors, and language models that transformers opens again."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import power_law
from rmtllmf_jax.fusion.files.checkpoint import require_no_adapter
from rmtllmf_jax.fusion.files.plan import file_methods
from rmtllmf_jax.fusion.rules import METHODS
from rmtllmf_jax.report.vector_figures import layer_weights_figure


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Base and two models: 0, and 1 and 3 in every number."""
    paths = []
    for name, value in (("base", 0.0), ("one", 1.0), ("three", 3.0)):
        tensors = {f"model.layers.{n}.weight": np.full((2, 3), value, np.float32) for n in (0, 1)}
        tensors["text.position_ids"] = np.arange(4)
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def fuse(models: list[Path], out: Path, **options: Any) -> dict[str, np.ndarray]:
    Fuse(base=models[0], models=tuple(models[1:]), out=out, **options).run()
    return {
        key: value for path in out.glob("*.safetensors") for key, value in load_file(path).items()
    }


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, 4 * power_law(2)),
        ({"scale": "0.25"}, 1.0),
        ({"scale": "-0.5"}, -2.0),
        ({"scale": "1/N"}, 2.0),
        ({"method": "average"}, 2.0),
        ({"method": "ties(density=1)"}, 2.0),
        ({"method": "ties", "scale": "power-law"}, 2.0),
        ({"method": "ties", "options": ("normalise=No", "weights=1,1")}, 4 * power_law(2)),
        ({"method": "task_arithmetic(weights=(1, -1))", "scale": "1"}, -2.0),
    ],
)
def test_scale_and_options_mean_what_they_say(
    models: list[Path], tmp_path: Path, options: dict[str, Any], value: float
):
    found = fuse(models, tmp_path / "out", **options)
    for number in (0, 1):
        np.testing.assert_allclose(found[f"model.layers.{number}.weight"], value, rtol=1e-6)


def test_one_model_at_the_default_scale_is_itself(models: list[Path], tmp_path: Path):
    found = fuse([models[0], models[2]], tmp_path / "out")
    np.testing.assert_array_equal(found["model.layers.0.weight"], np.full((2, 3), 3, np.float32))


def test_the_last_line_says_what_was_done(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fuse(models, tmp_path / "out", method="average")
    lacks, said, last = capsys.readouterr().out.splitlines()
    weights = tmp_path / "out" / "model.safetensors"
    assert last == f"Next: safetensors.numpy.load_file({str(weights)!r}) reads it."
    assert said == (
        f"{tmp_path / 'out'}: base + 1 * average(one.safetensors, three.safetensors); "
        "2 tensors merged, 1 copied, 0.000 GB in 1 file"
    )
    assert lacks == (
        "base.safetensors is a bare file: the output has no config.json and no tokenizer"
    )


def test_a_dry_run_lists_every_tensor_and_writes_nothing(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = sorted(tmp_path.iterdir())
    fuse(models, tmp_path / "out", method="ties", dtype="float16", shard_size="40", dry_run=True)
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert ["model.layers.0.weight", "2x3", "F32->F16", "12", "ties"] in lines
    assert ["text.position_ids", "4", "I64", "32", "from", "the", "base"] in lines
    assert "model-00001-of-00002.safetensors" in output
    assert "holds 96 bytes of tensors at a time" in output  # 2 x 3 floats: base, two vectors, sum
    assert f"would write {tmp_path / 'out'}: base + 1 * ties(one" in output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tise"}, r"unknown method 'tise'\. Did you mean 'ties'\? Known: task_arith"),
        ({"method": "regmean"}, r"the method regmean needs .*, computed on data"),
        ({"method": "ties(densty=1)"}, r"unknown option of method ties 'densty'\. Did you"),
        ({"method": "ties", "options": ("density",)}, r"--options: expected NAME=VALUE, got 'dens"),
        ({"method": "ties(density=2)"}, r"method ties: density must be above 0"),
        ({"method": "ties(density=[0.1, 0.2])"}, r"ties: density must be a number, got \[0.1, 0.2"),
        ({"method": "layer_wise(layers=1)"}, r"layers must be a mapping such as"),
        ({"scale": "big"}, r"unknown scale 'big'"),
        ({"scale": "nan"}, r"the scale must be a finite number"),
        ({"shard_size": "5 apples"}, r"a size must be a number with a unit"),
        ({"models": ()}, r"there are no models to merge"),
        ({"reference": Path("x")}, r"the method task_arithmetic takes no reference"),
        ({"base": Path("nowhere")}, r"nowhere: no such file or directory"),
    ],
)
def test_bad_options_are_named(
    models: list[Path], tmp_path: Path, options: dict[str, Any], message: str
):
    given = {"base": models[0], "models": tuple(models[1:]), "out": tmp_path / "out"} | options
    with pytest.raises(InputError, match=message):
        Fuse(**given).run()
    assert sorted(tmp_path.iterdir()) == sorted(models)


def test_code_of_the_base_is_carried_where_that_is_asked_for(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "base.safetensors").rename(base / "model.safetensors")
    (base / "modeling_x.py").write_text("print()")
    Fuse(base=base, models=(models[1],), out=tmp_path / "out", carry_code=True).run()
    printed = capsys.readouterr().out
    assert printed.count("Code of the base is taken along: `modeling_x.py`.") == 1
    assert (tmp_path / "out/modeling_x.py").exists()


FACTOR = "base_model.model.layers.0.q_proj.lora_A.weight"


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """Two adapters as PEFT saves them, one without its configuration, and a full model."""
    for name, file, key in (
        ("full", "model", "layers.0.q_proj.weight"),
        ("one", "adapter_model", FACTOR),
        ("two", "adapter_model", FACTOR),
        ("bare", "model", FACTOR),
        ("prompt", "adapter_model", "prompt_embeddings"),
    ):
        (tmp_path / name).mkdir()
        if file == "adapter_model":
            (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        save_file({key: np.ones((2, 3), np.float32)}, tmp_path / name / f"{file}.safetensors")
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("base", "models", "named", "sign"),
    [
        ("one", ["one", "two"], "one", "adapter_config.json"),
        ("one/adapter_model.safetensors", ["one"], "one/adapter_model.saf", "adapter_model"),
        ("full", ["bare"], "bare", FACTOR),
        ("bare", ["bare"], "bare", FACTOR),
    ],
)
def test_a_base_is_no_adapter_and_an_adapter_has_its_configuration(
    adapters: dict[str, Path], tmp_path: Path, base: str, models: list[str], named: str, sign: str
):
    says = rf"^\S*/{named}\S*: an adapter \(LoRA or similar: {sign}.*\), whose factors .* merge it"
    words = ["--base", tmp_path / base, "--models", *(tmp_path / model for model in models)]
    words += ["--out", tmp_path / "out"]
    with pytest.raises(InputError, match=says) as caught:
        tyro.cli(Fuse, args=[str(word) for word in words]).run()
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == set(adapters)


@pytest.mark.parametrize(
    ("key", "refused"),
    [
        ("layers/0/q/lora_a", True),
        ("lora_unet_down_blocks_0.lora_down.weight", True),
        ("unet.attn.to_q.lora.down.weight", True),
        ("layers.0.attn.lora_embedding_A.default", True),
        ("layers.0.hada_w1_a", True),
        ("blocks.0.attn.w_lora.lora.0.weight", False),  # RWKV-7's own
        ("model.layers.0.self_attn.q_a_proj.weight", False),
        ("adapter.weight", False),
    ],
)
def test_an_adapter_is_known_by_its_keys(key: str, refused: bool):
    try:
        require_no_adapter("model", ["model.embed.weight", key])
    except InputError:
        assert refused
    else:
        assert not refused


def test_the_help_names_every_method_and_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        tyro.cli(Fuse, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for method in file_methods():
        assert method in text
        for field in fields(METHODS[method]):
            assert f"{field.name}=" in text, (method, field.name)
            if isinstance(field.default, bool | float | str):
                assert f"{field.name}={str(field.default).lower()}" in text, (method, field.name)


def test_the_command_line_takes_lists_and_negative_scales(models: list[Path], tmp_path: Path):
    words = ["--base", models[0], "--models", *models[1:], "--out", tmp_path / "out"]
    words += ["--options", "weights=1,1", "--scale", "-0.5", "--dtype", "float16"]
    tyro.cli(Fuse, args=[str(word) for word in words]).run()
    (file,) = (tmp_path / "out").glob("*.safetensors")
    found = load_file(file)["model.layers.0.weight"]
    assert (found.dtype, found[0, 0]) == (np.float16, -2)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny Llama-format models with a tokenizer: pretrained, instruct, two fine-tuned."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("llamas")
    words = {word: number for number, word in enumerate(["<unk>", "a", "b", "c", "d"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    pretrained = LlamaForCausalLM(config).to(torch.bfloat16)
    start = {key: value.clone() for key, value in pretrained.state_dict().items()}
    folders = {}
    for name in ("pretrained", "instruct", "math", "code"):
        folders[name] = root / name
        if name != "pretrained":
            moved = {k: v + (0.05 * torch.randn(v.shape)).to(v.dtype) for k, v in start.items()}
            moved["lm_head.weight"] = moved["model.embed_tokens.weight"]
            pretrained.load_state_dict(moved)
        pretrained.save_pretrained(folders[name], max_shard_size="4KB" if name == "math" else "5GB")
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("granularity", ["block", "tensor"])
@pytest.mark.slow
def test_lata_of_language_models_opens_and_generates(
    llamas: dict[str, Path],
    tmp_path: Path,
    granularity: str,
    capsys: pytest.CaptureFixture[str],
):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    Fuse(
        base=llamas["pretrained"],
        models=(llamas["math"], llamas["code"]),
        reference=llamas["instruct"],
        method=f"lata(granularity={granularity})",
        scale="0.5",
        shard_size="4KB",
        out=out,
    ).run()
    printed = capsys.readouterr().out
    record = json.loads((out / "fusion.json").read_text())
    layers = record["layer_weights"]["layers"]
    assert len(layers) == (5 if granularity == "block" else 29)
    assert record["layer_weights"]["models"] == ["math", "code"]
    states = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for name, folder in llamas.items()
    }
    weights = plain_lata(states, granularity)
    for layer, row in layers.items():
        np.testing.assert_allclose(row, weights[layer], atol=1e-6)
        assert f"{row[0]:.3f}" in printed
    assert "Weights by layer: lata" in printed
    assert (out / "layer_weights.png").read_bytes().startswith(b"\x89PNG")
    assert "![Weights by layer](layer_weights.png)" in (out / "README.md").read_text()

    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.bfloat16
    base = states["pretrained"]
    for key, value in merged.state_dict().items():
        if key == "lm_head.weight":  # tied
            continue
        expected = base[key].double()
        for number, name in enumerate(("math", "code")):
            weight = layers[layer_name(key, granularity)][number]
            expected = expected + 0.5 * weight * (states[name][key] - base[key]).double()
        step = 2**-8 * expected.abs() + 1e-6
        assert bool(((value.double() - expected).abs() <= step).all()), key
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    tokens = AutoTokenizer.from_pretrained(out)("a b c", return_tensors="pt")
    text = merged.generate(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
    )
    assert text.shape == (1, 7)


def layer_name(key: str, granularity: str) -> str:
    parts = key.split(".")
    if granularity == "tensor":
        return key
    return ".".join(parts[:3]) if parts[1] == "layers" else ".".join(parts[:-1])


def test_the_figure_of_the_weights_has_a_line_a_model(tmp_path: Path):
    weights = {f"model.layers.{n}": [n / 99, 1 - n / 99] for n in range(100)}
    figure = layer_weights_figure(weights, ["math", "code"], "a title")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["math", "code"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [row[1] for row in weights.values()])
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [f"model.layers.{n}" for n in range(0, 100, 3)]


def plain_lata(states: dict[str, Any], granularity: str) -> dict[str, list[float]]:
    """Return linear LATA weights, written out plainly in float64."""
    base = states["pretrained"]
    layers: dict[str, list[str]] = {}
    for key in base:
        if key != "lm_head.weight":
            layers.setdefault(layer_name(key, granularity), []).append(key)

    def flat(name: str, keys: list[str]) -> np.ndarray:
        parts = [(states[name][k] - base[k]).double().numpy().ravel() for k in keys]
        return np.concatenate(parts)

    weights: dict[str, list[float]] = {layer: [] for layer in layers}
    for name in ("math", "code"):
        cosines = {}
        for layer, keys in layers.items():
            tau, iota = flat(name, keys), flat("instruct", keys)
            cosines[layer] = tau @ iota / np.linalg.norm(tau) / np.linalg.norm(iota)
        falling = sorted(cosines, key=lambda layer: -cosines[layer])
        for rank, layer in enumerate(falling):
            weights[layer].append(rank / (len(falling) - 1))
    return weights


def test_a_language_model_without_the_tied_head_merges(llamas: dict[str, Path], tmp_path: Path):
    found = fuse([llamas[n] for n in ("pretrained", "math", "code")], tmp_path / "out")
    assert "lm_head.weight" not in found
    untied = tmp_path / "untied"
    untied.mkdir()
    tensors = load_file(llamas["code"] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, untied / "model.safetensors")
    fuse([llamas["pretrained"], untied], tmp_path / "same")  # a copy of the embeddings
    said = "untied: lm_head.weight left out, which is model.embed_tokens.weight (tied)"
    assert f"- {said}\n" in (tmp_path / "same/README.md").read_text()
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, untied / "model.safetensors")
    with pytest.raises(InputError, match=r"untied: 1 unexpected(.|\n)*--from-base 'lm_head.\*'$"):
        fuse([llamas["pretrained"], untied], tmp_path / "other")
