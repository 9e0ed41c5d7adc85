"""The command's main path: what it leaves, that it does nothing twice, and what changes what."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pytest
from conftest import TinyRun, command

from rmtllmf_jax.cli.main import main, parse
from rmtllmf_jax.cli.reproduce import QUICK, Reproduce, recipe_options
from rmtllmf_jax.cli.sweep import check
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.texts.embedded import EMBEDDED_TEXTS
from rmtllmf_jax.defences.protection import PAPER
from rmtllmf_jax.fusion.scale import SUM_SCALES
from rmtllmf_jax.runs.folder import set_aside
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.parts import CellStore, read_parts

TASKS = ("dtd", "mnist", "svhn")
SCENARIOS = ("clean", "ideal", "strongest_user", "sum_rate")
KEYS = ["combination", "scenario", "draw", "seed", "protection", "task"]
PACKAGE = "rmtllmf-jax"
HINTS = get_type_hints(Reproduce)
REQUIRED = ["--model", "m", "--data", "d", "--out", "o"]


def table(folder: Path, name: str = "results") -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


def assert_same_tables(a: Path, b: Path) -> None:
    for name in ("results", "cosines"):
        pd.testing.assert_frame_equal(table(a, name), table(b, name), check_exact=True)


def store(folder: Path) -> Path:
    """Return the folder of a run's only configuration."""
    (path,) = (folder / "sweep").iterdir()
    return path


def stamps(folder: Path, *parts: str) -> dict[str, tuple[int, bytes]]:
    """Return times and contents of the files in some sub-folders."""
    files = [path for part in parts for path in sorted((folder / part).rglob("*"))]
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in files
        if path.is_file()
    }


def finished_cells(folder: Path) -> pd.DataFrame:
    return read_parts(store(folder) / "cells")


def sweep(run: Path, finished: TinyRun, *options: str) -> None:
    cache = finished.users[finished.users.index("--cache-dir") + 1]
    main(["sweep", "--out", str(run), "--cache-dir", cache, *finished.grid, *options])


# The main path


def test_the_main_job_leaves_tables_and_report(finished: TinyRun) -> None:
    cells = Grid(choose_combinations(TASKS, None, 0), SCENARIOS, PAPER, 1, 1).cells()
    expected = [
        ("+".join(c.combination), c.scenario, c.draw, c.seed, c.protection, task)
        for c in cells
        for task in c.combination
    ]
    results = table(finished.folder)
    assert list(results[KEYS].itertuples(index=False, name=None)) == expected
    assert results["score"].between(0, 1).all()
    assert set(table(finished.folder, "cosines")["scenario"]) == set(SCENARIOS)
    report = {path.name for path in (finished.folder / "report").iterdir()}
    figures = {f"figure_{n}.{kind}" for n in (2, 3, 4, 5) for kind in ("png", "svg", "pdf")}
    assert report == figures | {"index.html", "summary.md", "summary.csv"}
    assert {path.name for path in (finished.folder / "training").iterdir()} == set()
    assert len(list((finished.folder / "finetuned").glob("*.safetensors"))) == 3


def test_run_json_says_how_the_tables_came_about(
    finished: TinyRun, shallow_model: Path, tiny_data: Path
) -> None:
    run = json.loads((finished.folder / "run.json").read_text())
    assert run["command"].startswith("rmtllmf reproduce vit-tiny --out ")
    assert run["commit"] is None or len(run["commit"].removesuffix("-dirty")) == 40
    assert run["versions"]["jax"] == version("jax")
    assert run["versions"]["rmtllmf-jax"] == version("rmtllmf-jax")
    assert run["tasks"] == list(TASKS)
    assert run["users"]["setting"] | {"model_hash": "", "tower": ""} == {
        "model": str(shallow_model),
        "model_hash": "",
        "tower": "",
        "data": str(tiny_data),
        "image_size": 16,
        "validation_fraction": 0.1,
        "seed": 0,
        "source": "folder",
        "head": "lda",
        "prompts": "ensemble",
        "fit": "crop",
        "resample": "bicubic",
        "normalise": True,
        "dtype": "float32",
        "resize_to": None,
        "reading": {},
        "skip_unreadable": 0,
        "templates": [],
    }
    assert (run["users"]["recipe"]["steps"], run["users"]["recipe"]["batch_size"]) == (120, 8)
    assert (run["settings"]["seed"], run["settings"]["shots"]) == (0, 3)
    assert run["settings"]["realign"]["steps"] == 5
    assert run["grid"]["draws"] == run["grid"]["seeds"] == 1
    scales = run["scales"]["task_arithmetic"]
    assert scales == pytest.approx({"2": 0.7176, "3": 0.5503}, abs=1e-4)
    assert set(run["scales"]) == {"task_arithmetic"}
    layout = dict.fromkeys(("devices", "cells_at_once", "image_devices", "processes"), 1)
    assert run["layout"] == layout | {"streams": 2}  # a CPU
    assert run["store"] == f"sweep/{store(finished.folder).name}"
    assert run["machine"]["devices"] >= 1


def test_nothing_but_text_where_there_is_no_terminal(finished: TinyRun) -> None:
    assert finished.stderr == ""
    assert not {"\r", "\x1b", "\b"} & set(finished.stdout)
    for task in TASKS:
        assert f"{task}: validation accuracy" in finished.stdout
    assert "Task vectors: norm, root mean square, cosines" in finished.stdout
    assert "Average normalised accuracy (%)" in finished.stdout


def test_the_same_command_again_does_nothing_twice(
    finished: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    for work in (
        "rmtllmf_jax.data.cache.decode_split",
        "rmtllmf_jax.runs.users.extract_features",
        "rmtllmf_jax.training.task_models.finetune",
        "rmtllmf_jax.sweep.engine.Engine.models",
        "rmtllmf_jax.sweep.cosines._receive",
    ):
        monkeypatch.setattr(work, refuse)
    run = finished.copy(tmp_path / "run")
    parts = ("heads", "finetuned", "sweep")
    before = stamps(run, *parts)
    main(["reproduce", "vit-tiny", "--out", str(run), *finished.users, *finished.grid])
    assert stamps(run, *parts) == before
    assert_same_tables(run, finished.folder)


@pytest.mark.slow
def test_separate_commands_give_the_same_tables(
    finished: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["finetune", "--out", str(run), *finished.users])
    sweep(run, finished)
    main(["report", str(run)])
    assert_same_tables(run, finished.folder)
    pd.testing.assert_frame_equal(finished_cells(run), finished_cells(finished.folder))
    for part in ("heads", "finetuned", "report"):
        here = {name: content for name, (_, content) in stamps(run, part).items()}
        there = {name: content for name, (_, content) in stamps(finished.folder, part).items()}
        if part == "report":  # these name the run folder and the time
            for page in ("summary.md", "index.html"):
                del here[f"report/{page}"], there[f"report/{page}"]
        assert here == there
    assert capsys.readouterr().err == ""


# What changes what


def test_more_draws_keep_the_old_cells(finished: TinyRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    before = stamps(run, "sweep")
    sweep(run, finished, "--draws", "2")
    assert before.items() <= stamps(run, "sweep").items()
    larger = table(run)
    assert len(larger) == len(table(run).drop_duplicates(KEYS))
    assert set(larger["draw"]) == {0, 1}
    old = larger[larger["draw"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, table(finished.folder), check_exact=True)
    after = stamps(run, "sweep")
    sweep(run, finished)
    assert stamps(run, "sweep") == after
    assert_same_tables(run, finished.folder)


def test_other_settings_have_another_store(finished: TinyRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    old, before = store(run), stamps(run, "sweep")
    sweep(run, finished, "--shots", "2", "--scenarios", "clean", "--protections", "none", "realign")
    stores = set((run / "sweep").iterdir())
    assert len(stores) == 2
    assert before.items() <= stamps(run, "sweep").items()
    results, whole = table(run), table(finished.folder)
    assert set(results["protection"]) == {"none", "realign", "control"}
    both = results.merge(whole, on=KEYS, suffixes=("", "_before"))
    unlike = both[both["score"] != both["score_before"]]
    assert "realign" in set(unlike["protection"]) <= {"realign", "control"}
    used = json.loads((run / "run.json").read_text())["store"]
    assert {run / used, old} == stores


def test_another_configuration_does_not_cost_the_tables_before(
    finished: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished.copy(tmp_path / "run")
    names = ("results.parquet", "cosines.parquet", "run.json", "report")
    before = stamps(run, "report")
    levels = ("--axis", "snr_db=0,10", "--scenarios", "ideal", "--protections", "none")
    sweep(run, finished, *levels)
    said = capsys.readouterr().out
    (earlier,) = (run / "earlier").iterdir()
    assert f"{earlier}: tables and report of the sweep before" in said
    assert f"{run / 'results.parquet'}: {len(table(run))} rows\n" in said
    assert f"rmtllmf report {run}" in said
    assert {path.name for path in earlier.iterdir()} == set(names)
    assert_same_tables(earlier, finished.folder)
    moved = stamps(earlier, "report")
    assert {name: content for name, (_, content) in moved.items()} == {
        name: content for name, (_, content) in before.items()
    }
    main(["report", str(run)])
    assert (run / "report" / "axis_snr_db.png").exists()
    assert (earlier / "report" / "figure_2.png").exists()
    sweep(run, finished)  # back, with its report; nothing is computed
    assert_same_tables(run, finished.folder)
    assert stamps(run, "report") == before
    (other,) = (run / "earlier").iterdir()
    assert set(table(other)["axis"]) == {"snr_db"}
    assert not (run / "sweeping.json").exists()


def test_a_kill_in_the_middle_of_setting_aside_loses_nothing(
    finished: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    other = {"store": "sweep/other", "grid": {}}
    for calls in range(4):
        run = finished.copy(tmp_path / str(calls))

        def dying(*places: Path, left: list[int] = list(range(calls))) -> None:  # noqa: B006
            if not left:
                raise KeyboardInterrupt
            left.pop()
            replace(*places)

        monkeypatch.setattr("os.replace", dying)
        with pytest.raises(KeyboardInterrupt):
            set_aside(run, other)
        monkeypatch.setattr("os.replace", replace)
        set_aside(run, other)
        (earlier,) = (run / "earlier").iterdir()
        assert_same_tables(earlier, finished.folder)
        assert (earlier / "report" / "index.html").exists()


def test_a_report_before_the_end_of_a_sweep(
    finished: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a sweep under way leaves its folder, when a third of its cells is not there yet."""
    run = finished.copy(tmp_path / "run")
    (run / "run.json").rename(run / "sweeping.json")
    before = stamps(run, "report")
    cells, folder = finished_cells(run), store(run) / "cells"
    shutil.rmtree(folder)
    with CellStore(folder) as parts:
        for number, (cell, rows) in enumerate(cells.groupby("cell", sort=False)):
            if number % 3 or (rows["kind"] != "merged").all():
                parts.add(cell, rows.drop(columns="cell").to_dict("records"))
    main(["report", str(run), "--so-far"])
    whole, part = table(finished.folder), table(run / "so_far")
    both = part.merge(whole, on=KEYS)
    assert 0 < len(both) == len(part) < len(whole)
    for name in ("score", "base_score", "finetuned_score", "normalised"):
        assert (both[f"{name}_x"] == both[f"{name}_y"]).all()
    page = (run / "so_far" / "report" / "summary.md").read_text()
    total = len(whole.drop_duplicates(KEYS[:-1]))
    done = len(part.drop_duplicates(KEYS[:-1]))
    assert f"The sweep is not finished: everything below covers {done} of {total} cells." in page
    assert stamps(run, "report") == before
    (run / "sweeping.json").unlink()
    with pytest.raises(SystemExit):
        main(["report", str(run), "--so-far"])
    assert "no sweep is under way here" in capsys.readouterr().err


def test_the_store_may_be_elsewhere(finished: TinyRun, tmp_path: Path) -> None:
    """Several run folders of one configuration then share their cells."""
    few = ("--scenarios", "clean", "--protections", "none", "--store", str(tmp_path / "store"))
    runs = [finished.copy(tmp_path / name, sweep=False) for name in ("one", "two")]
    sweep(runs[0], finished, *few)
    before = stamps(tmp_path, "store")
    sweep(runs[1], finished, *few)
    assert stamps(tmp_path, "store") == before  # the second computed nothing
    assert not any((run / "sweep").exists() for run in runs)
    (here,) = (tmp_path / "store").iterdir()
    assert here.name == store(finished.folder).name
    assert json.loads((runs[0] / "run.json").read_text())["store"] == str(here)
    assert_same_tables(*runs)


def test_an_evaluation_in_other_batches_is_the_same_sweep(
    finished: TinyRun, tmp_path: Path
) -> None:
    run = finished.copy(tmp_path / "run")
    before = stamps(run, "sweep")
    sweep(run, finished, "--eval-batch-size", "999", "--cells-at-once", "3")
    assert stamps(run, "sweep") == before
    layout = json.loads((run / "run.json").read_text())["layout"]
    assert (layout["cells_at_once"], layout["streams"]) == (3, 1)


def test_a_changed_recipe_trains_anew_beside_the_old(
    finished: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def base_itself(backbone: Any, base: Any, *_: object, **__: object) -> Any:
        return base

    monkeypatch.setattr("rmtllmf_jax.training.task_models.finetune", base_itself)
    run = finished.copy(tmp_path / "run")
    before = stamps(run, "heads", "finetuned")
    main(["finetune", "--out", str(run), *finished.users, "--learning-rate", "0.01"])
    after = stamps(run, "heads", "finetuned")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2 * 3
    recipes = json.loads((run / "finetuned.json").read_text())["users"].values()
    assert {user["recipe"]["learning_rate"] for user in recipes} == {0.01}


def test_noise_on_the_weights_is_recorded_and_makes_models_of_its_own(
    finished: TinyRun, tmp_path: Path
) -> None:
    run = finished.copy(tmp_path / "run", sweep=False)
    before = stamps(run, "finetuned")
    recipe = json.loads((run / "finetuned.json").read_text())["users"]["mnist"]["recipe"]
    assert "weight_noise" not in recipe  # names of models are made of it, and must not move
    words = ("finetune", "--out", run, *finished.users, "--tasks", "mnist", "--steps", "3")
    done = subprocess.run(command(*words, "--weight-noise", "0.01"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(stamps(run, "finetuned")) == len(before) + 2
    users = json.loads((run / "finetuned.json").read_text())["users"]
    assert users["mnist"]["recipe"] == recipe | {"steps": 3, "weight_noise": 0.01}
    assert "weight_noise" not in users["svhn"]["recipe"]
    for wrong, said in (
        (("-1",), "--weight-noise must be a finite number >= 0, got -1.0"),
        (("0.01", "--task-vectors", "elsewhere"), "leave out one of them"),
    ):
        done = subprocess.run(command(*words, "--weight-noise", *wrong), capture_output=True)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.decode().split())


def test_scale_on_validation_leaves_its_curve(finished: TinyRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    few = ("--scenarios", "clean", "--protections", "none", "--combinations", "1")
    sweep(run, finished, "--scale", "validation", *few)
    curve, results = table(run, "scales"), table(run)
    assert sorted(curve["scale"].unique()) == list(SUM_SCALES)
    best = curve.groupby(["size", "scale"])["normalised"].mean()
    for size, chosen in results.groupby("size")["scale"].unique().items():
        (scale,) = chosen
        assert best[size][scale] == pytest.approx(best[size].max(), rel=1e-12)
    sweep(run, finished, "--scale", "0.3", *few)
    assert set(table(run)["scale"]) == {0.3}
    assert not (run / "scales.parquet").exists()  # of the other rule


# The command line


def test_quick_changes_the_defaults() -> None:
    quick = parse(["reproduce", "vit-tiny", *REQUIRED, "--quick"])
    plain = parse(["reproduce", "vit-tiny", *REQUIRED])
    assert {name: getattr(quick, name) for name in QUICK} == QUICK
    unlike = {name for name in vars(plain) if getattr(plain, name) != getattr(quick, name)}
    assert unlike == {*QUICK, "quick"}
    for words in (["--steps", "7", "--quick"], ["--quick", "--steps", "7"]):  # an option wins
        options = parse(["reproduce", "vit-tiny", *REQUIRED, *words])
        assert vars(options).items() >= {**QUICK, "steps": 7}.items()


@pytest.mark.parametrize(
    "before",
    [
        *[[f"--{name.replace('_', '-')}"] for name, hint in HINTS.items() if hint is bool],
        ["--no-normalise"],
        ["--seed", "3"],
        ["--out=p"],
        ["--tasks", "mnist", "dtd", "--remat"],
    ],
    ids=" ".join,
)
def test_a_recipe_sets_its_defaults_wherever_it_stands(before: list[str]) -> None:
    options = vars(parse(["reproduce", *before, "peta", "--out", "o"]))
    for name, value in recipe_options("peta").items():
        given = {"tasks": ("mnist", "dtd")} if "--tasks" in before else {}
        given |= {word[2:]: True for word in before if word == "--normalise"}
        if not (name == "steps" and "--quick" in before) and name not in QUICK:
            assert options[name] == given.get(name, value), name


def test_the_demo_of_language_models_sets_texts_and_no_option_of_images() -> None:
    options = parse(["reproduce", "demo-lm", "--out", "o", "--steps", "7"])
    assert (options.model, options.texts, options.length) == ("llama-mini", "embedded", 128)
    assert (options.steps, options.realign_steps, options.shots) == (7, 20, 16)
    assert options.tasks == tuple(EMBEDDED_TEXTS)
    images = {"source", "prompts", "image_size", "fit", "normalise", "head"}
    assert not images & set(recipe_options("demo-lm"))


def test_a_dry_run_counts_the_rows_of_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path), "--dry-run", "--json"]
    main(["reproduce", "demo-lm", *words])
    found = json.loads(capsys.readouterr().out)
    work = {part["what"]: part for part in found["work"]}
    assert found["parameters"] == 480_096
    assert work["fine-tuning"]["count"] == 4 * 60 * 8
    assert work["fine-tuning"]["units"] == "rows"
    assert "heads" not in work
    assert found["cells"]["sum_rate"] == {
        "none": 18,
        "realign": 15,
        "r-mtllmf": 15,
        "phy": 18,
        "holistic": 15,
    }
    assert {file["what"] for file in found["files"]} == {
        *(f"rows {name}" for name in EMBEDDED_TEXTS),
        *("fine-tuned models", "training state, while it runs"),
    }
    assert [item["present"] for item in found["needed"]] == [True]
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_seen_is_no_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmtllmf_jax.cli.main.recipe_in", lambda words: None)
    with pytest.raises(InputError, match="the recipe is 'demo' or None"):
        parse(["reproduce", "demo", "--out", "o"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reproduce", "dmeo"], "unknown recipe 'dmeo'. Did you mean 'demo'?"),
        (["sweeep", "--out", "o"], "unknown command 'sweeep'. Did you mean 'sweep'?"),
        (["--quiet", "reprt", "o"], "unknown command 'reprt'. Did you mean 'report'?"),
    ],
)
def test_misspelt_names_are_answered_before_anything_else(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        parse(words)


def test_alone_it_prints_help_and_it_knows_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words, start in ([[], "usage: rmtllmf"], [["--version"], f"rmtllmf {version(PACKAGE)}"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code
        assert capsys.readouterr().out.startswith(start)


def test_a_scenario_given_twice_counts_once() -> None:
    options = parse(["sweep", "--out", "o", "--scenarios", "ideal", "clean", "ideal"])
    assert check(options, TASKS)[1].scenarios == ("ideal", "clean")


@pytest.mark.parametrize(
    "words", [["sweep", "--help"], ["doctor", "--data", "data"], ["sweeep"], ["report", "--no"]]
)
def test_it_ends_quietly_when_nobody_reads(words: list[str], tmp_path: Path) -> None:
    """As `| head` leaves it: what is printed may be long, short, or an error."""
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert "BrokenPipeError" not in errors
    assert process.wait() == (141 if "--help" in words else 2)
    process.stderr.close()


def test_another_broken_pipe_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("rmtllmf_jax.cli.report.Report.run", broken)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main(["report", "run"])
