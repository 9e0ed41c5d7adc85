"""What `pip install rmtllmf-jax` brings is enough for channel, uplink, fusion and gradients."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.extras import EXTRAS, MissingExtra, needed_by

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# As if the extra were not installed, nor what comes with it.
_WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "flax", "orbax", "tensorstore", "transformers", "tokenizers", "huggingface_hub", "PIL",
            "sklearn", "skimage", "pyarrow", "pandas", "fsspec", "matplotlib", "tqdm", "datasets",
        }:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
"""
_WITH_MODELS = ("models", "data", "training", "runs", "sweep", "report")
_COMMAND = "from rmtllmf_jax.cli.main import main\nmain(sys.argv[1:])"


def light(script: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that has none of the extra's packages."""
    command = [sys.executable, "-c", _WITHOUT + script, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)


def distribution(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0]


def test_the_requirements_are_light():
    required = {distribution(each) for each in PROJECT["dependencies"]}
    extra = {distribution(each) for each in PROJECT["optional-dependencies"]["pipeline"]}
    assert extra == set(EXTRAS["pipeline"])
    assert not required & extra
    assert required == {
        *("jax", "optax", "safetensors", "numpy", "scipy", "threadpoolctl", "pyyaml"),
        *("jaxtyping", "tyro", "lazy-loader", "rich"),
    }


def test_extras_for_experiments_bring_the_pipeline():
    for extra in ("hub", "tfds", "tensorboard", "wandb", "gcs", "s3", "test"):
        listed = PROJECT["optional-dependencies"][extra]
        assert re.match(r"rmtllmf-jax\[(pipeline|hub,)", listed[0]), extra


def test_a_channel_a_merge_and_a_gradient_need_no_more():
    done = light("""
import jax, jax.numpy as jnp
from rmtllmf_jax import channel, fusion, gradients, uplink

for room in (channel, fusion, fusion.rules, gradients, uplink):
    for name in room.__all__:
        getattr(room, name)
import rmtllmf_jax.fusion.files.fusing, rmtllmf_jax.fusion.files.low_rank

vectors = {"w": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}
mse = channel.Link(channel.get_preset("paper(users=2)"), channel.SumRate()).mse(jax.random.key(0))

def merged(kappa):
    received = uplink.deliver(vectors, mse, kappa * jnp.ones(2), jax.random.key(1))
    base = {"w": jnp.zeros(3), "b": jnp.zeros(4)}
    return fusion.add_to_base(base, fusion.TaskArithmetic()(received), 0.5)["w"]

print(merged(0.0), jax.grad(lambda kappa: merged(kappa).sum())(0.1) != 0)
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1. 1. 1.] True\n"


def test_the_others_name_the_extra():
    done = light("""
import importlib
from rmtllmf_jax.common.extras import MissingExtra

for room in ("models", "data", "training", "runs", "sweep", "report"):
    face = importlib.import_module(f"rmtllmf_jax.{room}")
    lacking = 0
    for name in face.__all__:
        try:
            getattr(face, name)
        except MissingExtra as error:
            assert f"{room}.{name} needs the package" in str(error), error
            assert "pip install 'rmtllmf-jax[pipeline]'" in str(error), error
            lacking += 1
    print(room, lacking > 0)
try:
    from rmtllmf_jax import open_run
except ImportError as error:
    print(type(error).__name__)
""")
    assert done.returncode == 0, done.stderr
    *rooms, last = done.stdout.splitlines()
    assert rooms == [f"{room} True" for room in _WITH_MODELS]
    assert last == "MissingExtra"


def test_a_channel_is_drawn_without_its_figures(tmp_path: Path):
    done = light(_COMMAND, "channel", "--draws", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mean MSE" in done.stdout
    assert done.stdout.startswith("no figures: drawing figures needs the package ")
    assert list(tmp_path.iterdir()) == []
    done = light(_COMMAND, "channel", "--draws", "50", "--out", "here", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'rmtllmf-jax[pipeline]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_info_says_what_is_there(tmp_path: Path):
    done = light(_COMMAND, "info", "--json", "--cache-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["folders"]) == ["decoded images", "compiled programs"]


def checkpoint(folder: Path, value: float, **config: object) -> Path:
    folder.mkdir()
    save_file({"model.w": np.full((4, 3), value, np.float32)}, folder / "model.safetensors")
    about = {"model_type": "llama", "tie_word_embeddings": False, **config}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def test_checkpoints_are_fused(tmp_path: Path):
    models = [checkpoint(tmp_path / name, value) for name, value in zip("bst", (0.0, 1.0, 3.0))]
    words = ("fuse", "--base", models[0], "--scale", "0.5", "--out", tmp_path / "out", "--models")
    done = light(_COMMAND, *map(str, (*words, *models[1:])))
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["model.w"], 2.0)


def test_configurations_that_differ_are_compared_by_their_defaults(tmp_path: Path):
    """Which only transformers knows, so that nothing is taken for equal that is not known to be."""
    checkpoint(tmp_path / "base", 0.0)
    checkpoint(tmp_path / "other", 1.0, rope_theta=5.0)
    words = ("fuse", "--base", "base", "--models", "other", "--out", "out")
    done = light(_COMMAND, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "rmtllmf: what a config.json of llama leaves to its defaults needs the package "
        "huggingface_hub, which is not installed: pip install 'rmtllmf-jax[pipeline]'."
    ]


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (("reproduce", "demo", "--out", "out"), "PIL"),
        (("report", "run"), "pandas"),
        (("fuse", "--base", "an/id", "--models", "an/other", "--out", "out"), "huggingface_hub"),
    ],
)
def test_commands_name_the_extra(tmp_path: Path, words: tuple[str, ...], package: str):
    done = light(_COMMAND, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"rmtllmf: {words[0]} needs the package {package}, which is not installed: "
        "pip install 'rmtllmf-jax[pipeline]'."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "extra"), [("google", "siglip"), ("skimage.data", "pipeline")])
def test_what_a_library_makes_of_a_missing_module_is_seen_through(name: str, extra: str):
    missing = ModuleNotFoundError(f"No module named {name!r}", name=name)
    said = rf"this needs .*'rmtllmf-jax\[{extra}\]'"
    with pytest.raises(MissingExtra, match=said), needed_by("this"):
        raise ImportError("please install something") from missing
    with pytest.raises(ImportError, match="cannot import name") as found, needed_by("this"):
        from flax import no_such_name  # noqa: F401
    assert not isinstance(found.value, MissingExtra)


def test_other_modules_are_missed_as_they_are():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), needed_by("this"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert issubclass(MissingExtra, InputError)
    assert issubclass(MissingExtra, ImportError)
