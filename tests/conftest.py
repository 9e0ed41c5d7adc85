"""A tiny Vision Transformer and tiny image tasks, made on the spot: no test needs a download."""

from __future__ import annotations

import io
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from PIL import Image
from safetensors.numpy import save_file

from rmtllmf_jax.channel import ATTACKS
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import Backbone, load_backbone

pytest_plugins = ["sweep_fixtures"]

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

# A shell's background jobs ignore Ctrl-C, and so would the commands that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

TINY_CONFIG = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}


# Compiling is most of what the tests do, and each program runs for a moment: no optimisations,
# XLA's older and quicker code generator, one piece per program. Commands that tests start inherit
# this; one that must compile as a user's does takes it out, see `plain_environment`.
QUICK_FLAGS = ("xla_cpu_use_fusion_emitters=false", "xla_cpu_parallel_codegen_split_count=1")
QUICK = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")


def known_to_xla(flags: tuple[str, ...]) -> list[str]:
    """Return the flags that this XLA has; one that it lacks would end the process.

    Their names are whole strings of the library. Those of former flags are parts of others.
    """
    library = Path(jaxlib.__file__).parent / "libjax_common.so"
    if not library.exists():
        return []
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        names = {flag: f"\0{flag.partition('=')[0]}\0".encode() for flag in flags}
        return [f"--{flag}" for flag, name in names.items() if code.find(name) >= 0]


def pytest_configure(config: pytest.Config) -> None:
    """Compile quickly, and keep programs in pytest's cache.

    They serve all workers, the commands that tests start, and the next run, until
    ``--cache-clear``.
    """
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = " ".join(known_to_xla(QUICK_FLAGS))
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    cache = getattr(config, "cache", None)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and cache is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache.mkdir("xla"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # One that another process is writing at this moment is compiled here as well.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares compiled programs or a finished run on one worker (--dist loadgroup)."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        shared = next(
            (name for name in ("finished", "demo", "demo_lm", "sweep_engine") if name in names),
            None,
        )
        item.add_marker(pytest.mark.xdist_group(shared or item.path.name))


def hugging_face_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights with the keys and layouts of `ViTForImageClassification`."""
    random = np.random.default_rng(seed)
    width, mlp, patch = (config[k] for k in ("hidden_size", "intermediate_size", "patch_size"))
    tokens = (config["image_size"] // patch) ** 2 + 1

    def normal(*shape: int, std: float = 0.2) -> np.ndarray:
        return (std * random.normal(size=shape)).astype(np.float32)

    tensors = {
        "vit.embeddings.cls_token": normal(1, 1, width),
        "vit.embeddings.position_embeddings": normal(1, tokens, width),
        "vit.embeddings.patch_embeddings.projection.weight": normal(width, 3, patch, patch),
        "vit.embeddings.patch_embeddings.projection.bias": normal(width),
        "vit.layernorm.weight": 1 + normal(width),
        "vit.layernorm.bias": normal(width),
        "classifier.weight": normal(3, width),
        "classifier.bias": normal(3),
    }
    for index in range(config["num_hidden_layers"]):
        layer = f"vit.encoder.layer.{index}"
        dense = {
            "attention.attention.query": (width, width),
            "attention.attention.key": (width, width),
            "attention.attention.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (mlp, width),
            "output.dense": (width, mlp),
        }
        for name, shape in dense.items():
            tensors[f"{layer}.{name}.weight"] = normal(*shape)
            tensors[f"{layer}.{name}.bias"] = normal(shape[0])
        for name in ("layernorm_before", "layernorm_after"):
            tensors[f"{layer}.{name}.weight"] = 1 + normal(width)
            tensors[f"{layer}.{name}.bias"] = normal(width)
    return tensors


def write_model(folder: Path, config: dict = TINY_CONFIG, seed: int = 0) -> Path:
    """Write a Hugging Face model directory with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(hugging_face_tensors(config, seed), folder / "model.safetensors")
    return folder


def png(pixels: np.ndarray) -> bytes:
    """Return an image as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_task(
    folder: Path, classes: int, train: int, test: int, seed: int, size: int = 16
) -> None:
    """Write a task whose classes are noisy colour gradients: learnable, not trivial."""
    random = np.random.default_rng(seed)
    prototypes = random.integers(0, 256, size=(classes, 4, 4, 3))
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class {index}" for index in range(classes)]
    (folder / "classes.json").write_text(json.dumps({"classes": names}))
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        images = []
        for label in labels:
            clean = np.kron(prototypes[label], np.ones((size // 4, size // 4, 1)))
            noisy = clean + random.normal(scale=60, size=clean.shape)
            images.append(png(np.clip(noisy, 0, 255).astype(np.uint8)))
        ids = [f"{folder.name}/{split}/{row}" for row in range(count)]
        table = pa.table({"image": images, "label": labels.astype(np.int32), "id": ids})
        pq.write_table(table, folder / f"{split}.parquet")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a ViT with width 16, depth 2, patch 4 and 16 x 16 pixels."""
    return write_model(tmp_path_factory.mktemp("model") / "tiny-vit")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small tasks (mnist, svhn, dtd by name) with 2, 3 and 4 classes."""
    root = tmp_path_factory.mktemp("data")
    for seed, (task, classes) in enumerate((("mnist", 2), ("svhn", 3), ("dtd", 4))):
        write_task(root / task, classes, train=20 * classes, test=10 * classes, seed=seed)
    return root


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> tuple[Backbone, dict]:
    """The tiny backbone and its parameters."""
    return load_backbone(tiny_model)


@pytest.fixture(scope="module")
def x64() -> Iterator[None]:
    """Double precision for a module: `pytestmark = pytest.mark.usefixtures("x64")`."""
    with jax.enable_x64(True):
        yield


KEYLESS = tuple(name for name, kind in ATTACKS.items() if not getattr(kind, "random", False))
"""The attacks that draw nothing: functions of the channel."""


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return circular complex Gaussians of variance 1."""
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def assert_trees_equal(a: object, b: object) -> None:
    """Check that two trees are bitwise equal."""
    left, right = leaves_by_path(a), leaves_by_path(b)
    assert list(left) == list(right)
    for path in left:
        np.testing.assert_array_equal(
            np.asarray(jax.device_get(left[path])), np.asarray(right[path]), err_msg=path
        )


@dataclass(frozen=True)
class TinyRun:
    """A run folder that the installed command finished, with what the command printed."""

    folder: Path
    users: tuple[str, ...]
    """Options of `finetune` (and `reproduce`) without --out."""
    grid: tuple[str, ...]
    """Options of `sweep` (and `reproduce`) without --out."""
    stdout: str
    stderr: str

    def copy(self, to: Path, *, sweep: bool = True) -> Path:
        """Copy the run folder; without `sweep`, what `finetune` made of it alone."""
        left_out = () if sweep else ("sweep", "report", "run.json", "*.parquet")
        return Path(shutil.copytree(self.folder, to, ignore=shutil.ignore_patterns(*left_out)))


def command(*words: object) -> list[str]:
    """Return the installed command with its arguments."""
    return [str(Path(sys.executable).with_name("rmtllmf")), *map(str, words)]


def environment() -> dict[str, str]:
    """Return the environment of a command."""
    return dict(os.environ)


def plain_environment() -> dict[str, str]:
    """Return the environment of a command that compiles as a user's does."""
    return {name: value for name, value in os.environ.items() if name not in QUICK}


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded images and compiled programs, for `--cache-dir`."""
    folder = tmp_path_factory.mktemp("cache")
    programs = jax.config.jax_compilation_cache_dir
    if programs is not None:
        (folder / "xla").symlink_to(programs)
    return folder


@pytest.fixture(scope="session")
def shallow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a single layer: half the leaves to compile for."""
    folder = tmp_path_factory.mktemp("model") / "shallow-vit"
    return write_model(folder, TINY_CONFIG | {"num_hidden_layers": 1})


@pytest.fixture(scope="session")
def finished(
    shallow_model: Path, tiny_data: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> TinyRun:
    """The main job on the tiny model and tasks, through the installed command, undisturbed.

    Long enough for two checkpoints a task (every 50 steps). Copy the folder to change it.
    """
    folder = tmp_path_factory.mktemp("finished") / "run"
    users = ["--model", shallow_model, "--data", tiny_data, "--image-size", 16, "--steps", 120]
    users += ["--batch-size", 8, "--cache-dir", cache_dir, "--tasks", "mnist", "svhn", "dtd"]
    grid = ["--realign-steps", 5, "--realign-batch-size", 8, "--shots", 3]
    grid += ["--realign-learning-rate", 0.003, "--eval-batch-size", 16]
    words = command("reproduce", "vit-tiny", "--out", folder, *users, *grid)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return TinyRun(folder, tuple(map(str, users)), tuple(map(str, grid)), done.stdout, done.stderr)


@pytest.fixture(scope="session")
def demo(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as the README has it: the run folder `runs/demo` of a folder of its own."""
    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    words = command("reproduce", "demo", "--out", folder, "--cache-dir", cache_dir)
    done = subprocess.run(words, env=plain_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def demo_lm(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo of language models as the docs have it: its run folder."""
    folder = tmp_path_factory.mktemp("demo-lm") / "runs" / "demo-lm"
    words = command("reproduce", "demo-lm", "--out", folder, "--cache-dir", cache_dir)
    environment = plain_environment() | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder
