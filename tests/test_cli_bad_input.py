"""Bad input gets one clear error that names it, exit code 2, and what was finished stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinyRun, command
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.main import main, parse
from rmtllmf_jax.sweep.parts import CellStore

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command in this process; return the one error that it ends with."""

    def run(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert caught.value.code == 2
        errors = capsys.readouterr().err
        assert errors.startswith("rmtllmf: ")
        assert errors.count("rmtllmf: ") == 1
        assert "Traceback" not in errors
        return errors

    return run


@pytest.fixture
def reproduce(
    refused: Refused, shallow_model: Path, tiny_data: Path, cache_dir: Path, tmp_path: Path
) -> Refused:
    """Refuse `reproduce` with some options changed; nothing may have been finished."""

    def run(*options: object) -> str:
        out = tmp_path / "run"
        words = ["--model", shallow_model, "--data", tiny_data, "--image-size", 16]
        words += ["--tasks", "mnist", "svhn", "--cache-dir", cache_dir, "--out", out]
        error = refused("reproduce", "vit-tiny", *words, *options)
        assert not out.exists()
        return error

    return run


@pytest.fixture
def model(shallow_model: Path, tmp_path: Path) -> Path:
    """A copy of the model, to damage."""
    return Path(shutil.copytree(shallow_model, tmp_path / "model"))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the data, to damage."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture
def run(finished: TinyRun, tmp_path: Path) -> Path:
    """A copy of a finished run folder, to damage."""
    return finished.copy(tmp_path / "finished")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(path: Path, **columns: list[object]) -> None:
    table = pq.read_table(path).to_pydict() | columns
    pq.write_table(pa.table(table), path)


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--tasks minst", "unknown task 'minst'. Did you mean 'mnist'? Known: "),
        ("--preset papper", "unknown channel preset 'papper'. Did you mean 'paper'? Known: "),
        ("--scenarios sumrate", "unknown scenario 'sumrate'. Did you mean 'sum_rate'? Known: "),
        ("--protections rmtllmf", "unknown protection 'rmtllmf'. Did you mean 'r-mtllmf'? Known: "),
        ("--order weakest", "unknown receiver 'weakest'. Did you mean 'weakest_first'? Known: "),
        (
            "--error-model independant",
            "unknown error model 'independant'. Did you mean 'independent'? Known: ",
        ),
        ("--rules tie", "unknown merge method 'tie'. Did you mean 'ties'? Known: "),
        ("--axis snr", "unknown axis 'snr'. Did you mean 'snr_db'? Known: "),
        ("--scale best", "unknown scale 'best'. Known: power-law, 1/N, 1/sqrt(N), validation."),
        ("--tasks mnist svhn mnist", "'mnist' is given more than once"),
        ("--tasks a b c d e f g h i", "9 tasks need as many users; the channel preset 'paper' has"),
        ("--scale nan", "scale must be a finite number >= 0, got nan"),
        ("--scale 1e38", "scale must be at most 1e+06, got 1e+38"),
        ("--kappa -0.5", "kappa must be a finite number >= 0, got -0.5"),
        ("--kappa 1e38", "kappa must be at most 1e+06, got 1e+38"),
        ("--c0 nan", "c0 in dB must be finite and >= -120 and <= 300, got nan"),
        ("--seed -1", "seed must be at least 0, got -1"),
        ("--seed 4294967296", "seed must be at most 4294967295, got 4294967296"),
        ("--seeds 0", "seeds must be at least 1, got 0"),
        ("--seeds 4294967297", "less one, must be at most 4294967295, got 4294967296"),
        ("--draws 0", "draws must be at least 1, got 0"),
        ("--shots 0", "shots must be at least 1, got 0"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--batch-size 10000000000", "batch size must be at most 1048576, got 10000000000"),
        ("--learning-rate nan", "learning rate must be a finite number >= 0, got nan"),
        ("--weight-decay -0.1", "weight decay must be a finite number >= 0, got -0.1"),
        ("--realign-steps -3", "steps must be at least 1, got -3"),
        ("--realign-steps 1000000000", "realign steps times realign batch size must be at most"),
        ("--realign-batch-size 2000000", "batch size must be at most 1048576, got 2000000"),
        ("--realign-learning-rate inf", "learning rate must be a finite number >= 0"),
        ("--realign-learning-rate 1e30", "realign learning rate must be at most 1e+06, got"),
        ("--control-learning-rate -1", "control learning rate must be a finite number >= 0"),
        ("--frozen *(", "frozen pattern '*(': not a regular expression (nothing to repeat"),
        ("--combinations 0", "--combinations must be `all` or a whole number >= 1, got '0'"),
        ("--combinations some", "--combinations must be `all` or a whole number >= 1"),
        ("--eval-samples -1", "eval samples must be at least 0, got -1"),
        ("--eval-batch-size 0", "eval batch size must be at least 1, got 0"),
        ("--validation-fraction nan", "validation fraction must be >= 0 and < 1, got nan"),
        ("--image-size 18", "image size 18 is not a positive multiple of the patch size 4"),
        ("--image-size 0", "image size 0 is not a positive multiple of the patch size 4"),
        ("--scenarios", "the grid has no cell: scenarios is empty"),
        ("--axis mse=.1", "the scenario 'strongest_user' attacks a channel"),
        ("--error-model equicorrelated=1.5", "must lie between -1/(users - 1)"),
        ("--error-model equicorrelated", "for example equicorrelated=0.5"),
        ("--error-model lmmse", "use the error model independent, or the receiver lmmse"),
        ("--error-model lmmse --order strongest_first", "(strongest_first)"),
        ("--preset mse=.1,.2", "the attack strongest_user needs a channel"),
        ("--preset mse=.1,.2 --scenarios clean sum_mse", "the attack sum_mse needs"),
        ("--preset mse=.1,.2 --order lmmse", "the receiver lmmse needs a channel"),
        ("--preset mse=.1,.2,", "'' is not a number"),
        ("--preset snr_db=10", "2 tasks need as many users; the channel preset 'snr_db=10'"),
        ("--model /no/where", "/no/where: no such directory"),
        ("--data nowhere", "nowhere: no such folder"),
    ],
)
def test_options_that_nothing_can_be_done_with(reproduce: Refused, options: str, said: str) -> None:
    assert said in reproduce(*options.split())


def test_the_installed_command_exits_with_2(tmp_path: Path) -> None:
    words = command("report", tmp_path / "nothing")
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"rmtllmf: {tmp_path / 'nothing' / 'results.parquet'}: no such")


# The model, the data and the folders


def test_a_damaged_weight_file(reproduce: Refused, model: Path) -> None:
    weights = model / "model.safetensors"
    content, tensors = weights.read_bytes(), load_file(weights)
    weights.write_bytes(content[:-100])
    assert f"{weights}: not a readable safetensors file" in reproduce("--model", model)
    weights.unlink()
    assert f"{model}: no weights; expected one of model.safetensors" in reproduce("--model", model)
    del tensors["vit.layernorm.bias"]
    name = "vit.encoder.layer.0.intermediate.dense.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:, :3])
    save_file(tensors, weights)
    error = reproduce("--model", model)
    assert f"{weights}: the weights do not fit" in error
    assert "missing: layernorm/bias" in error
    assert "misshapen: encoder/layer/0/intermediate/dense/kernel is (3, 32), expected" in error


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", '{"model_type": "bert"}', "config.json"),
        ("config.json", '{"model_type": "vit", "num_attention_heads": 0}', "config.json"),
        (
            "processor_config.json",
            '{"image_processor": {"size": {"shortest_edge": 20}, "resample": 3}}',
            "processor_config.json: size {'shortest_edge': 20} with no do_center_crop is not",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used(
    reproduce: Refused, model: Path, name: str, content: str, said: str
) -> None:
    (model / name).write_text(content)
    assert f"{model}/{said}" in reproduce("--model", model)


def test_damaged_data(reproduce: Refused, data: Path) -> None:
    train, test = data / "mnist" / "train.parquet", data / "svhn" / "test.parquet"
    images = pq.read_table(test)["image"].to_pylist()
    images[7] = images[7][:40]
    rewrite(test, image=images)
    assert f"{test}: row 7 (id 'svhn/test/7'): not a" in reproduce("--data", data)
    labels = pq.read_table(train)["label"].to_pylist()
    labels[3] = 2
    rewrite(train, label=labels)
    said = f"{train}: row 3 (id 'mnist/train/3'): label 2 is not one of the 2 classes"
    assert said in reproduce("--data", data)
    train.write_bytes(train.read_bytes()[:-9])
    assert f"{train}: not a readable parquet file" in reproduce("--data", data)


def test_run_folders_that_cannot_be_used(
    refused: Refused, finished: TinyRun, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    error = refused("finetune", "--out", tmp_path / "file", *finished.users)
    assert f"{tmp_path / 'file'}: cannot be used as a run folder" in error
    error = refused("sweep", "--out", tmp_path / "run")
    assert f"{tmp_path / 'run' / 'finetuned.json'}: no such file" in error
    assert "rmtllmf finetune" in error


# A finished run: the error, and what stays


@pytest.fixture
def sweep(refused: Refused, run: Path, cache_dir: Path, finished: TinyRun) -> Refused:
    """Refuse `sweep` on a finished run folder; nothing in it may change."""

    def refuse(*options: object) -> str:
        before = contents(run)
        words = ["--out", run, "--cache-dir", cache_dir, *finished.grid]
        error = refused("sweep", *words, *options)
        assert before.items() <= contents(run).items()
        return error

    return refuse


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--scenarios strongest_users", "Did you mean 'strongest_user'?"),
        ("--tasks cars mnist", "unknown task 'cars'"),
        ("--error-model equicorrelated=-0.6", "3 users' errors"),
        ("--cells-at-once 0", "cells at once must be at least 1, got 0"),
        ("--image-devices 3", "--image-devices 3 must divide the number of devices, 1"),
        ("--preset mse=.1,.1,.1 --axis snr_db=1", "choose the axis mse"),
        ("--shots 19", "has 18 images, 19 are asked for"),
    ],
)
def test_options_of_a_sweep(sweep: Refused, options: str, said: str) -> None:
    assert said in sweep(*options.split())


def test_a_damaged_fine_tuned_model(
    refused: Refused, sweep: Refused, run: Path, finished: TinyRun
) -> None:
    (path,) = run.glob("finetuned/svhn-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: not a readable safetensors file" in sweep()
    before = contents(run)
    words = ["--out", run, *finished.users, *finished.grid]
    assert f"{path}: not a readable safetensors file" in refused("reproduce", "vit-tiny", *words)
    assert before.items() <= contents(run).items()


def flip(path: Path) -> None:
    """Change a low bit, so that every number stays a number."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    tensors["layernorm/bias"][3] = np.nan
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("artefact", "damage", "said"),
    [
        ("finetuned/svhn-*.safetensors", flip, "damaged, its checksum is another"),
        ("heads/svhn-*", flip, "damaged, its checksum is another"),
        ("heads/mnist-*", Path.unlink, "no such file"),
        ("finetuned/svhn-*.safetensors", not_finite, "NaN or infinite values in layernorm/bias"),
        ("finetuned.json", lambda path: path.write_text("[]"), "not a manifest"),
        ("finetuned.json", lambda path: path.write_text(""), ""),
        ("finetuned.json", lambda path: path.write_text('{"users": {}}'), "not a manifest"),
    ],
)
def test_damaged_artefacts(
    sweep: Refused, run: Path, artefact: str, damage: Callable[[Path], object], said: str
) -> None:
    (path,) = run.glob(artefact)
    damage(path)
    assert f"{path}: {said}" in sweep()


def test_a_moved_model_and_moved_images(
    sweep: Refused, run: Path, finished: TinyRun, model: Path, tmp_path: Path
) -> None:
    manifest = json.loads((run / "finetuned.json").read_text())
    assert Path(manifest["setting"]["model"]).is_absolute()
    assert Path(manifest["setting"]["data"]).is_absolute()
    for name, option in (("model", "--model"), ("data", "--data")):
        error = sweep(option, tmp_path / "gone")
        assert f"{tmp_path / 'gone'}: no such" in error
        assert f"new place with {option}" in error
        manifest["setting"][name] = str(tmp_path / "gone")
    for user in manifest["users"].values():
        user["images"]["data"] = str(tmp_path / "gone")
    (run / "finetuned.json").write_text(json.dumps(manifest))
    assert "with --data" in sweep()
    data = finished.users[finished.users.index("--data") + 1]
    assert "with --model" in sweep("--data", data)
    # Found again: what is refused now is another thing.
    assert "unknown scenario" in sweep("--data", data, "--model", model, "--scenarios", "no")


def test_images_of_other_classes(sweep: Refused, data: Path) -> None:
    path = data / "svhn" / "classes.json"
    path.write_text(json.dumps({"classes": ["a", "b", "c", "d"]}))
    assert "task 'svhn' has 4 classes, and the run was fine-tuned on 3" in sweep("--data", data)


def test_an_image_processor_that_changed(sweep: Refused, model: Path) -> None:
    assert "damaged" not in sweep("--model", model, "--shots", "19")
    (model / "preprocessor_config.json").write_text('{"do_normalize": false}')
    error = sweep("--model", model)
    assert f"{model}: its configuration or its image processor says" in error


def test_a_part_of_another_program_in_the_store(sweep: Refused, run: Path, tmp_path: Path) -> None:
    with CellStore(tmp_path / "other") as parts:
        parts.add("0123", [{"another": 1}])
    (part,) = (tmp_path / "other").iterdir()
    (folder,) = run.glob("sweep/*/cells")
    shutil.copy(part, folder)
    assert f"{folder}/{part.name}: column kind is missing" in sweep()


def test_a_model_that_changed_after_fine_tuning(sweep: Refused, run: Path, model: Path) -> None:
    manifest = json.loads((run / "finetuned.json").read_text())
    manifest["setting"]["model"] = str(model)
    (run / "finetuned.json").write_text(json.dumps(manifest))
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    tensors["vit.layernorm.bias"][0] += 1
    save_file(tensors, weights)
    assert f"{model}: not the weights that the run was fine-tuned from" in sweep()


def test_a_damaged_results_table(refused: Refused, run: Path) -> None:
    path = run / "results.parquet"
    for damaged in (path.read_bytes()[:-20], b"PAR1", b""):
        path.write_bytes(damaged)
        before = contents(run)
        assert f"{path}: not a whole parquet file" in refused("report", run)
        assert contents(run) == before


def test_a_task_that_cannot_be_read_leaves_the_others(
    refused: Refused, run: Path, data: Path, finished: TinyRun
) -> None:
    """Another task is added to a finished run; its data are damaged."""
    before = contents(run)
    (data / "cars").mkdir()
    (data / "cars" / "train.parquet").write_bytes(b"nothing")
    words = ["--out", run, *finished.users, "--data", data, "--tasks", "mnist", "cars"]
    error = refused("reproduce", "vit-tiny", *words, *finished.grid)
    assert str(data / "cars") in error
    assert before.items() <= contents(run).items()


def test_a_loss_that_is_not_finite_keeps_the_finished_tasks(
    refused: Refused, run: Path, finished: TinyRun
) -> None:
    before = contents(run)
    words = ["--out", run, *finished.users, "--learning-rate", "1e30"]
    error = refused("finetune", *words)
    assert "fine-tuning mnist: the loss is nan" in error
    assert "--learning-rate" in error
    assert before.items() <= contents(run).items()


# The machine: devices, homes, streams, disks


@pytest.fixture
def done(finished: TinyRun, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command in a shell, in an empty folder, with changed variables."""

    def run(line: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
        changed = {**os.environ, "RUN": str(finished.folder), "R": command()[0], **variables}
        environment = {name: value for name, value in changed.items() if value is not None}
        return subprocess.run(
            ["bash", "-c", line],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_what_the_machine_lacks_is_one_line(
    done: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for line, variables, named in (
        ('"$R" info', {"JAX_PLATFORMS": "foo"}, "JAX_PLATFORMS=foo: JAX cannot start on it"),
        ('"$R" info >/dev/full', {}, "No space left on device"),
        ('"$R" --help >/dev/full', {}, "No space left on device"),
        ('ulimit -f 1; "$R" report "$RUN" --out o', {}, "o/figure_2.png: File too large. Make"),
        ('"$R" report "$RUN" --out ""', {}, 'a folder is given as ""'),
        ('"$R" report "$RUN" --out /proc/o', {}, "/proc/o"),
    ):
        found = done(line, **variables)
        assert found.returncode == 2, line
        assert found.stderr.startswith("rmtllmf: "), line
        assert found.stderr.count("\n") == 1, line
        assert named in found.stderr, line


def test_streams_may_be_closed_cut_or_of_ascii(
    done: Callable[..., subprocess.CompletedProcess[str]], finished: TinyRun, tmp_path: Path
) -> None:
    assert done('"$R" --help >&-').returncode == 0
    cut = done('"$R" info | true; exit ${PIPESTATUS[0]}')  # its reader is gone before it writes
    assert (cut.returncode, cut.stderr) == (141, "")  # rich would say 1
    ascii_alone = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    found = done('"$R" report "$RUN" --out o±', **ascii_alone)
    assert found.returncode == 0
    assert "o??/index.html" in found.stdout  # what ASCII cannot say, without a traceback
    assert (tmp_path / "o±" / "index.html").read_bytes()


def test_without_a_home_only_the_cache_has_no_place(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)  # nobody, as in a container
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "--help"])
    assert not ended.value.code
    assert "~/.cache/rmtllmf" in capsys.readouterr().out
    assert "there is no home folder: give --cache-dir" in refused("channel", "--draws", 2, "--json")


def test_a_home_is_found_where_no_shell_sees_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = vars(parse(["sweep", "--out=~/a", "--store=~/b"]))
    assert (options["out"], options["store"]) == (tmp_path / "a", str(tmp_path / "b"))
    url = vars(parse(["sweep", "--out=a", "--store=s3://~/b"]))["store"]
    assert url == "s3://~/b"
