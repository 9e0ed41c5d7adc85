"""Run folders of texts: fine-tuning, sweeps, reports and exports of language models."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import command, environment
from safetensors.numpy import save_file
from test_kill import files, stop
from tiny_decoder import write_decoder

from rmtllmf_jax import fusion
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data import TextFile, TextTask, beginnings
from rmtllmf_jax.data.texts import sets
from rmtllmf_jax.evaluation import BitsPerByte, NegativeLogLikelihood, Perplexity, evaluate
from rmtllmf_jax.evaluation.batches import batches_of
from rmtllmf_jax.models import export_decoder, load_decoder, load_tree, read_tokenizer
from rmtllmf_jax.report.io import read_results, read_said
from rmtllmf_jax.report.said import ALONE
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.runs import open_run
from rmtllmf_jax.sweep.needs import require_looked_at
from rmtllmf_jax.training import Recipe, import_vector
from rmtllmf_jax.training.realign import realign
from rmtllmf_jax.training.watch import read_curve

LENGTH, STEPS = 32, 6
TASKS = """
maths: {train: sums.jsonl, prompt: "{a} and {b}", template: " then {c}"}
prose: {train: prose.txt, validation: prose.txt, test: prose.txt}
words:
  train: {path: sums.jsonl, template: "the {a} {c}"}
"""
GRID = ("--draws", "1", "--combinations", "1", "--sizes", "2", "--shots", "3", "--c0", "-12")
GRID += ("--scenarios", "clean", "sum_rate", "--realign-steps", "2", "--realign-batch-size", "4")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder, a cache, and texts of three tasks."""
    folder = tmp_path_factory.mktemp("texts")
    write_decoder(folder / "model")
    random = np.random.default_rng(0)
    names = ["one", "two", "three", "four", "five"]
    rows = [dict(zip("abc", map(str, random.choice(names, 3)))) for _ in range(40)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (" ".join(random.choice(["the", "and", "then", "sea"], 7)) for _ in range(30))
    (folder / "prose.txt").write_text("\n".join(lines))
    (folder / "tasks.yaml").write_text(TASKS)
    return folder


def words(place: Path, out: Path, *more: Any) -> list[str]:
    """Return the words of a fine-tuning."""
    options = ["--model", place / "model", "--texts", place / "tasks.yaml", "--length", LENGTH]
    options += ["--steps", STEPS, "--batch-size", 4, "--learning-rate", 0.01]
    options += ["--cache-dir", place / "cache", *more]
    return ["finetune", *map(str, options), "--out", str(out)]


@pytest.fixture(scope="module")
def swept(place: Path) -> Path:
    """The run folder of a fine-tuning, a sweep and a report."""
    run = place / "run"
    main(words(place, run))
    main(["sweep", "--out", str(run), *GRID, "--cache-dir", str(place / "cache")])
    main(["report", str(run)])
    return run


def opened(run: Path, place: Path) -> Any:
    return open_run(run, cache_dir=place / "cache")


def test_users_have_their_nats_and_what_they_were_made_of(swept: Path, place: Path):
    run = opened(swept, place)
    decoder, base = load_decoder(place / "model")
    assert run.names == ("maths", "prose", "words")
    assert run.heads is None
    assert (run.config.length, run.config.metric) == (LENGTH, "perplexity")
    for task in run.tasks:
        user = run.users[task.name]
        for params, said in (
            (base, user.base_nats),
            (run.finetuned(task.name), user.finetuned_nats),
        ):
            for part in ("validation", "test"):
                batches = batches_of(getattr(task, part), 3)
                own = evaluate(NegativeLogLikelihood(), decoder, params, batches)
                assert said[part] == pytest.approx(own, rel=1e-5)
        assert user.finetuned_nats["validation"] < user.base_nats["validation"]
        assert user.texts == task.fingerprints()
    assert run.nats(base) == pytest.approx(
        {name: user.base_nats["test"] for name, user in run.users.items()}, rel=1e-5
    )
    with pytest.raises(InputError, match="accuracies under heads: for models of images"):
        run.accuracies(base)


def test_the_best_step_of_texts_is_that_of_the_lowest_loss(place: Path, tmp_path: Path):
    """In parts, too; they have no accuracy."""
    more = ["--keep", "best", "--validate-every", 2, "--accumulate", 2, "--tasks", "maths"]
    more += ["--learning-rate", 0.3]  # too much: the last step is not the best
    main(words(place, tmp_path / "run", *more))
    (curve,) = (tmp_path / "run" / "curves").glob("maths-*.csv")
    rows = read_curve(curve)
    losses = {step: row["validation_loss"] for step, row in rows.items() if len(row) > 1}
    assert sorted(losses) == [2, 4, 6]
    assert not any("validation_accuracy" in row for row in rows.values())
    user = opened(tmp_path / "run", place).users["maths"]
    assert user.finetuned_nats["validation"] == pytest.approx(min(losses.values()), rel=1e-5)
    with pytest.raises(SystemExit):
        main(words(place, tmp_path / "other", "--augment", "flip"))


def test_what_is_finished_is_not_done_again(
    swept: Path, place: Path, monkeypatch: pytest.MonkeyPatch
):
    before = files(swept / "finetuned")
    monkeypatch.setattr("rmtllmf_jax.training.finetune.train_step", None)
    main(words(place, swept))
    assert files(swept / "finetuned") == before


def test_scores_are_those_of_models_that_are_merged_and_repaired_by_hand(swept: Path, place: Path):
    """Base, merged, reloaded and realigned; perplexities, and the score that is normalised."""
    run, results = opened(swept, place), pd.read_parquet(swept / "results.parquet")
    (combination,) = results["combination"].unique()
    names = combination.split("+")
    clean = results[results["scenario"] == "clean"]
    (scale,) = clean.loc[clean["protection"] == "none", "scale"].unique()
    vectors = [fusion.TaskVector.between(run.finetuned(name), run.base) for name in names]
    merged = run.base + scale * (vectors[0] + vectors[1])
    reloaded = {**merged, "model": {**merged["model"]}}
    reloaded["model"]["embed_tokens"] = run.base["model"]["embed_tokens"]
    for protection, params in (("none", merged), ("freeze", reloaded)):
        for task in (task for task in run.tasks if task.name in names):
            (row,) = clean[
                (clean["protection"] == protection) & (clean["task"] == task.name)
            ].to_dict("records")

            def score(params: Any, task: Any = task) -> float:
                return evaluate(Perplexity(), run.model, params, batches_of(task.test, 2))

            assert row["metric"] == "perplexity"
            assert row["score"] == pytest.approx(score(params), rel=1e-5)
            assert row["base_score"] == pytest.approx(score(run.base), rel=1e-5)
            tuned = score(run.finetuned(task.name))
            assert row["finetuned_score"] == pytest.approx(tuned, rel=1e-5)
            assert row["normalised"] == pytest.approx(
                math.exp(math.log(tuned) - math.log(row["score"])), rel=1e-6
            )
    assert set(results["protection"]) == {"none", "freeze", "realign", "r-mtllmf", "control"}


def test_realignment_sees_the_texts_that_are_drawn_and_no_other(swept: Path, place: Path):
    """Its loss is the mean over the tokens of three texts per task."""
    run = opened(swept, place)
    for task in run.tasks:
        few, all_of = task.few(3, 0), task.train
        assert len(few) == 3
        texts = {tuple(row[scored > 0]) for row, scored in zip(few.following, few.scored)}
        segments = [
            tuple(all_of.following[row][here])
            for row in range(len(all_of))
            for number in range(1, all_of.segments[row].max() + 1)
            if (here := (all_of.segments[row] == number) & (all_of.scored[row] > 0)).any()
        ]
        assert texts <= set(segments)
        four = task.few(4, 0)
        np.testing.assert_array_equal(four.scored[:3], few.scored)
        with pytest.raises(InputError, match=f"shots of task {task.name!r}: {len(segments) + 1} "):
            task.few(len(segments) + 1, 0)


def test_what_models_say_is_what_they_say_by_hand(swept: Path, place: Path):
    """Against greedy decoding that computes every token anew; on the page too."""
    run, said = opened(swept, place), read_said(swept / "said.parquet")
    results = pd.read_parquet(swept / "results.parquet")
    names = results["combination"].iloc[0].split("+")
    scale = results.loc[results["protection"] == "none", "scale"].iloc[0]
    vectors = [fusion.TaskVector.between(run.finetuned(name), run.base) for name in names]
    merged = run.base + scale * (vectors[0] + vectors[1])
    tokenizer, room = read_tokenizer(place / "model"), run.model.shape.positions

    @jax.jit
    def next_token(params: Any, tokens: Any, last: Any) -> Any:
        return jnp.argmax(run.model.apply({"params": params}, tokens)[0, last])

    def greedy(params: Any, given: tuple[int, ...], count: int) -> str:
        tokens = list(given)
        while len(tokens) < len(given) + count:
            padded = jnp.asarray([tokens + [0] * (room - len(tokens))])
            token = int(next_token(params, padded, len(tokens) - 1))
            if token == tokenizer.eos_token_id:
                break
            tokens.append(token)
        return tokenizer.decode(tokens[len(given) :], skip_special_tokens=True)

    prompts = {task.name: beginnings(task.test, 3) for task in run.tasks if task.name in names}
    longest = max(len(each.rest) for own in prompts.values() for each in own)
    count = min(longest + 8, room - max(len(e.given) for own in prompts.values() for e in own))
    for task, own in prompts.items():
        models = {"base": run.base, "fine-tuned": run.finetuned(task), "none": merged}
        for number, each in enumerate(own):
            here = said[(said["scenario"] == "clean") & (said["task"] == task)]
            here = here[here["number"] == number]
            rows = here.set_index("protection")["text"]
            for name, params in models.items():
                assert rows[name] == greedy(params, each.given, count)
            whole = tokenizer.decode(each.rest, skip_special_tokens=True)
            assert rows["as in the test split"] == whole
            assert set(here["given"]) == {tokenizer.decode(each.given, skip_special_tokens=True)}
    models = set(zip(said["scenario"], said["protection"]))
    swept_models = set(zip(results["scenario"], results["protection"]))
    assert models == swept_models | {("clean", name) for name in ALONE}
    page = (swept / "report" / "index.html").read_text()
    assert all(f"What the models say: {name}" in page for name in names)


def test_the_reported_table_is_read_and_averaged(swept: Path):
    table = read_results(swept / "results.parquet")
    base = cell_scores(table).query("protection == 'base'")["score"]
    alone = table.drop_duplicates("task")
    assert base.iloc[0] == pytest.approx((alone["finetuned_score"] / alone["base_score"]).mean())
    page = (swept / "report" / "index.html").read_text()
    assert "Average normalised perplexity" in page
    assert "accuracy" not in (swept / "report" / "summary.md").read_text()


@pytest.mark.parametrize("metric", ["negative_log_likelihood", "bits_per_byte", "accuracy"])
def test_other_metrics_are_swept_and_reported(
    metric: str, place: Path, swept: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(swept, run, ignore=shutil.ignore_patterns("sweep", "report"))
    some = (*GRID, "--protections", "none", "--cache-dir", str(place / "cache"))
    main(["sweep", "--out", str(run), *some, "--metric", metric])
    main(["report", str(run)])
    table = read_results(run / "results.parquet")
    assert set(table["metric"]) == {metric}
    if metric != "accuracy":
        per_nat = {"bits_per_byte": BitsPerByte()}.get(metric, NegativeLogLikelihood())
        row = table.iloc[-1]
        nats = [per_nat.nats(row[name]) for name in ("finetuned_score", "score")]
        assert row["normalised"] == pytest.approx(math.exp(nats[0] - nats[1]))


def test_models_are_evaluated_and_exported(
    swept: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = ("--cache-dir", str(place / "cache"))
    table = pd.read_parquet(swept / "results.parquet")
    attacked = table[(table["scenario"] == "sum_rate") & (table["protection"] == "r-mtllmf")]
    wanted = ["--configuration", "scenario=sum_rate", "protection=r-mtllmf"]
    main(["export", str(swept), *wanted, "--to", str(tmp_path / "out"), *cache])
    capsys.readouterr()
    main(["evaluate", str(swept), "--directory", str(tmp_path / "out"), "--json", *cache])
    found = json.loads(capsys.readouterr().out)["tasks"]
    for row in attacked.to_dict("records"):
        own = found[row["task"]]
        assert own["score"] == pytest.approx(row["score"], rel=1e-5)
        assert own["normalised"] == pytest.approx(row["normalised"], rel=1e-5)
        assert own["rows"] > 0
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = read_tokenizer(tmp_path / "out")("the sea", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > 3
    decoder, params = load_decoder(tmp_path / "out")
    logits = decoder.apply({"params": params}, jnp.asarray(ids["input_ids"].numpy()))
    with torch.inference_mode():
        np.testing.assert_allclose(model(**ids).logits.numpy(), logits, atol=1e-5)


def test_factors_are_trained_and_kept_alone(place: Path, swept: Path, tmp_path: Path):
    run = tmp_path / "run"
    main(words(place, run, "--lora-rank", 2, "--tasks", "prose"))
    lora = opened(run, place)
    (path,) = (run / "finetuned").glob("*.safetensors")
    base = lora.base
    shapes = {"model/layers/0/self_attn/q_proj/kernel", "model/layers/0/self_attn/v_proj/kernel"}
    changed = {
        name
        for name, leaf in fusion.leaves_by_path(lora.finetuned("prose")).items()
        if not np.array_equal(leaf, fusion.leaves_by_path(base)[name])
    }
    assert changed == shapes
    assert path.stat().st_size < sum(leaf.nbytes for leaf in jax.tree.leaves(base)) / 2


def test_checkpoints_made_elsewhere_are_imported(swept: Path, place: Path, tmp_path: Path):
    run = opened(swept, place)
    for name in run.names:
        export_decoder(tmp_path / name, place / "model", run.finetuned(name))
        given = [str(place / "model"), str(tmp_path / name), "--task", name]
        main(["import-task-vector", *given, "--out", str(tmp_path / "vectors")])
    main(words(place, tmp_path / "run", "--task-vectors", tmp_path / "vectors"))
    again = opened(tmp_path / "run", place)
    for name in run.names:
        for leaf, other in zip(*map(jax.tree.leaves, (run.finetuned(name), again.finetuned(name)))):
            np.testing.assert_allclose(leaf, other, atol=1e-6)
    write_decoder(tmp_path / "other", rms_norm_eps=1e-3)
    with pytest.raises(InputError, match="their configurations differ"):
        import_vector(str(place / "model"), str(tmp_path / "other"), "x", tmp_path)


def test_an_adapter_is_a_task_vector(place: Path, tmp_path: Path):
    """As PEFT saves it: alpha / r times B A, transposed, and nothing elsewhere."""
    random = np.random.default_rng(0)
    factors = {"lora_A": (2, 16), "lora_B": (16, 2)}
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{prefix}.{name}.weight": random.normal(size=shape).astype(np.float32)
        for name, shape in factors.items()
    }
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / "adapter_config.json").write_text(json.dumps(about))
    save_file(tensors, tmp_path / "prose" / "adapter_model.safetensors")
    model, adapter = str(place / "model"), str(tmp_path / "prose")
    found = import_vector(model, adapter, "prose", tmp_path / "vectors").by_leaf()
    a, b = tensors.values()
    kernel = found.pop("model/layers/0/self_attn/q_proj/kernel")
    np.testing.assert_allclose(kernel, 3 * (b @ a).T, rtol=1e-5)
    assert not any(np.asarray(leaf).any() for leaf in found.values())
    main(words(place, tmp_path / "run", "--task-vectors", tmp_path, "--tasks", "prose"))
    tuned = fusion.leaves_by_path(opened(tmp_path / "run", place).finetuned("prose"))
    base = fusion.leaves_by_path(load_decoder(place / "model")[1])
    place_of = "model/layers/0/self_attn/q_proj/kernel"
    np.testing.assert_allclose(tuned[place_of] - base[place_of], kernel, atol=1e-6)


@pytest.mark.slow
def test_a_killed_run_ends_where_the_whole_one_does(place: Path, swept: Path, tmp_path: Path):
    run = tmp_path / "run"
    start = command(*words(place, run), "--steps", "120")
    whole = command(*words(place, tmp_path / "whole"), "--steps", "120")
    subprocess.run(whole, env=environment(), check=True, stdout=subprocess.DEVNULL)
    stop(start, lambda: any((run / "training").glob("maths-*/50")))
    stop(start, lambda: any((run / "finetuned").glob("prose-*.safetensors")))
    subprocess.run(start, env=environment(), check=True, stdout=subprocess.DEVNULL)
    assert files(run / "finetuned") == files(tmp_path / "whole" / "finetuned")
    sweep = ["sweep", *GRID, "--draws", "40", "--protections", "none", "freeze"]
    sweep += ["--cache-dir", str(place / "cache")]
    stop(
        command(*sweep, "--out", run),
        lambda: any((run / "sweep").glob("*/cells/*.parquet")),
    )
    for out in (run, tmp_path / "whole"):
        subprocess.run(
            command(*sweep, "--out", out), env=environment(), check=True, stdout=subprocess.DEVNULL
        )
    tables = [pd.read_parquet(out / "results.parquet") for out in (run, tmp_path / "whole")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_set_of_tasks_is_found_by_name(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prose = TextFile(place / "prose.txt")
    monkeypatch.setitem(sets.TEXT_SETS, "ours", lambda: (TextTask("prose", prose, prose, prose),))
    given = words(place, tmp_path / "run")
    given[given.index("--texts") + 1] = "ours"
    main(given)
    run = opened(tmp_path / "run", place)
    assert (run.names, run.config.data) == (("prose",), "ours")
    assert run.inputs().fingerprint["tasks"]["prose"]["train"] == run.tasks[0].train.fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--data", "d"], "--data is for images, but --texts is given"),
        (["--head", "lda"], "--head is for images"),
        (["--texts", "none.yaml"], "no file of text tasks can be read there"),
        (["--texts", "none"], "none: no file of text tasks"),
        (["--tasks", "mnist"], "task 'mnist'"),
        (["--length", "65"], "--length must be"),
        (["--lora-targets", "query", "--lora-rank", "2"], "matches no module"),
    ],
)
def test_options_that_texts_do_not_have(
    changes: list[str], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = words(place, tmp_path / "run")
    if changes[0] in given:
        at = given.index(changes[0])
        given[at : at + 2] = changes
    else:
        given += changes
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_images_and_texts_are_not_confused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = ["--model", str(place / "model"), "--out", str(tmp_path / "run")]
    for given, said in (
        (model, "is a language model: give --texts"),
        (
            ["--model", "clip-mini", "--texts", str(place / "tasks.yaml"), *model[2:]],
            "an image model",
        ),
    ):
        with pytest.raises(SystemExit):
            main(["finetune", *given])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "expected tasks by name"),
        ("{}", "holds no task"),
        ("a: {train: a.txt}\na: {train: b.txt}", "'a' is there twice"),
        ("a: {test: a.txt}", "task 'a': names no texts to train on"),
        ("a: {train: a.txt, tests: b.txt}", "unknown key of"),
        ("a/b: {train: a.txt}", "expected a name of letters"),
        ("a: {train: [a.txt]}", "expected a file, or a mapping"),
        ("a: {train: {hub: x}}", "needs a split"),
        ("a: {train: {path: a.txt, split: test}}", "split belongs to a data set of the hub"),
        ("a: {train: a.csv}", "ends in .txt, .jsonl or .parquet"),
        ("a: {train: a.jsonl, template: 3}", "template must be a text"),
        ("a: {train: a.jsonl, template: x}", "names no field"),
    ],
)
def test_files_of_tasks_that_cannot_be_used(content: str, said: str, tmp_path: Path):
    (tmp_path / "tasks.yaml").write_text(content)
    with pytest.raises(InputError) as error:
        sets.text_tasks(tmp_path / "tasks.yaml")
    assert said in str(error.value)
    assert "tasks.yaml" in str(error.value)


def test_other_texts_weights_and_tokenizers_are_refused(place: Path, swept: Path, tmp_path: Path):
    run = opened(swept, place)
    shutil.copytree(place / "model", tmp_path / "model")
    for name in ("sums.jsonl", "prose.txt", "tasks.yaml"):
        shutil.copy(place / name, tmp_path / name)

    def moved() -> Any:
        there = {"model": str(tmp_path / "model"), "data": tmp_path / "tasks.yaml"}
        return open_run(swept, cache_dir=place / "cache", **there)

    assert moved().inputs().fingerprint == run.inputs().fingerprint
    (tmp_path / "prose.txt").write_text("and the end\n" * 30)
    with pytest.raises(InputError, match="task 'prose': these are other texts"):
        _ = moved().tasks
    (tmp_path / "tasks.yaml").unlink()
    with pytest.raises(InputError, match="give the new place with --data"):
        _ = moved().tasks
    about = tmp_path / "model" / "tokenizer_config.json"
    about.write_text(about.read_text().replace("</s>", "<s>"))
    with pytest.raises(InputError, match="its configuration or its tokenizer is another"):
        _ = moved().base
    write_decoder(tmp_path / "model", seed=1)
    with pytest.raises(InputError, match="not the weights that the run was fine-tuned from"):
        _ = moved().base


def test_methods_and_metrics_that_look_at_images_are_refused(
    swept: Path, place: Path, capsys: pytest.CaptureFixture[str]
):
    run = opened(swept, place)
    for method in (fusion.Fisher(), fusion.RegMean(), fusion.AdaMerging()):
        with pytest.raises(InputError, match="for models of images; this run's is a language"):
            require_looked_at([method], run.model)
    require_looked_at([fusion.Ties()], run.model)
    sweep = ("sweep", "--out", str(swept), *GRID)
    for given, said in (
        ((*sweep, "--metric", "answer_accuracy"), "looks at next, counts of a sample"),
        ((*sweep, "--rules", "fisher"), "the merge method fisher: for models of images"),
        (("statistics", str(swept)), "merge methods fisher and regmean: for models of images"),
    ):
        with pytest.raises(SystemExit):
            main([*given, "--cache-dir", str(place / "cache")])
        assert said in capsys.readouterr().err


def test_a_dry_run_counts_rows(swept: Path, place: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--out", str(swept), *GRID, "--dry-run", "--json", "--cache-dir", str(place / "cache")]
    main(["sweep", *given])
    plan = json.loads(capsys.readouterr().out)
    run = opened(swept, place)
    assert plan["samples"] == "rows"
    assert plan["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(run.base))
    assert {part["units"] for part in plan["work"]} <= {"rows", "models"}
    assert plan["sweep"]["test rows"] > 0
    assert "what merge methods need" not in plan["sweep"]
    main(["sweep", *given, "--rules", "multi_slerp"])  # needs the base model, and no images
    parts = json.loads(capsys.readouterr().out)["sweep"]
    models = next(size for name, size in parts.items() if "merged model" in name)
    assert parts["what merge methods need"] == models  # a vector for each


def test_realignment_is_the_mean_over_tokens(swept: Path, place: Path):
    """The loss before the first step, beside one that is computed token by token."""
    run = opened(swept, place)
    few = run.tasks[0].few(2, 0)
    (batch,) = batches_of(few, 2)
    flags = jax.tree.map(lambda _: jnp.array(True), run.base)
    recipe = Recipe(1, 2, 1e-3, 0.0)
    _, losses = realign(
        run.base, flags, None, batch, jnp.array([[0, 1]]), model=run.model, recipe=recipe
    )
    own = evaluate(NegativeLogLikelihood(), run.model, run.base, [batch])
    assert float(losses[0]) == pytest.approx(own, rel=1e-5)
    assert load_tree(run.path / run.users["maths"].finetuned, run.base)
