"""The Hugging Face hub as a source: local folders with a hub set's layout, and the hub's errors."""

from __future__ import annotations

import builtins
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rmtllmf_jax
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.registry import TaskFacts, task_facts
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources.hub import HubSource

datasets = pytest.importorskip("datasets")
hub_errors = pytest.importorskip("huggingface_hub.errors")

NAMES = tuple(f"{digit}" for digit in range(10))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_set(
    folder: Path,
    names: tuple[str, ...] = NAMES,
    first: int = 0,
    without: tuple[str, ...] = (),
    **columns: Any,
) -> Path:
    """Write a data set as the hub keeps it: 12 train and 5 test images, two shards a split."""
    (folder / "data").mkdir(parents=True)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    for split, count in (("train", 12), ("test", 5)):
        offset = first + (100 if split == "test" else 0)
        values = {
            "image": [{"bytes": png(offset + row), "path": f"{row}.png"} for row in range(count)],
            "label": [row % len(names) for row in range(count)],
        }
        kinds = dict(features)
        for name, (kind, make) in columns.items():
            kinds[name], values[name] = kind, [make(row) for row in range(count)]
        for name in without:
            del kinds[name], values[name]
        whole = datasets.Dataset.from_dict(values, features=datasets.Features(kinds))
        for shard in range(2):
            path = folder / "data" / f"{split}-{shard:05d}-of-00002.parquet"
            whole.shard(2, shard, contiguous=True).to_parquet(path)
    return folder


def at(folder: Path | str) -> Callable[[str], TaskFacts]:
    """Return facts that say that every task is in `folder`."""

    def facts(task: str) -> TaskFacts:
        known = task_facts(task)
        return replace(known, hub=replace(known.hub, id=str(folder), config=None))

    return facts


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("hub") / "digits", extra=(datasets.Value("int8"), int))


@pytest.fixture
def source(digits: Path, tmp_path: Path) -> HubSource:
    return HubSource(tmp_path / "datasets", facts=at(digits))


def test_rows_come_as_stored_and_in_order(source: HubSource, digits: Path) -> None:
    assert isinstance(source, Source)
    assert "mnist" in source.tasks()
    assert source.classes("mnist") == NAMES
    assert (source.size("mnist", "train"), source.size("mnist", "test")) == (12, 5)
    examples = list(source.examples("mnist", "train"))
    assert [example.image for example in examples] == [png(row) for row in range(12)]
    assert [example.label for example in examples] == [row % 10 for row in range(12)]
    *_, last = source.examples("mnist", "test")
    assert (last.image, last.origin) == (png(104), f"{digits}: test row 4 (4.png)")


def test_rows_reach_the_cache(source: HubSource, tmp_path: Path) -> None:
    loaded = load_split(source, "mnist", "train", 9, tmp_path / "cache")
    expected = np.asarray(Image.open(io.BytesIO(png(7))).convert("RGB"))
    np.testing.assert_array_equal(loaded.images[7], expected)
    np.testing.assert_array_equal(loaded.labels, [*range(10), 0, 1])


PRINT = """
import json, sys
from pathlib import Path
from rmtllmf_jax.data.sources.hub import HubSource
from rmtllmf_jax.data.registry import task_facts
from dataclasses import replace
known = task_facts("mnist")
facts = lambda task: replace(known, hub=replace(known.hub, id=sys.argv[1], config=None))
source = HubSource(Path(sys.argv[2]), facts=facts)
print(json.dumps([source.fingerprint("mnist", split) for split in ("train", "test")]))
"""


def test_fingerprints_are_the_same_in_another_process_and_place(
    source: HubSource, digits: Path, tmp_path: Path
) -> None:
    prints = [source.fingerprint("mnist", split) for split in ("train", "test")]
    assert prints[0] != prints[1]
    copy = tmp_path / "copy"
    copy.symlink_to(digits)
    done = subprocess.run(
        [sys.executable, "-c", PRINT, str(copy), str(tmp_path / "elsewhere")],
        cwd=Path(rmtllmf_jax.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == prints
    assert "examples/s" not in done.stderr  # no progress bar where nobody looks


def test_fingerprints_follow_the_content(source: HubSource, tmp_path: Path) -> None:
    other = HubSource(tmp_path / "d", facts=at(write_set(tmp_path / "other", first=1)))
    assert other.fingerprint("mnist", "train") != source.fingerprint("mnist", "train")


def test_images_that_are_paths_are_read(tmp_path: Path) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        for name in NAMES:
            path = tmp_path / "files" / split / name / "a.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(png(seed))
    source = HubSource(tmp_path / "d", facts=at(tmp_path / "files"))
    assert source.classes("mnist") == NAMES
    examples = list(source.examples("mnist", "train"))
    assert [example.image for example in examples] == [png(1)] * 10
    before = source.fingerprint("mnist", "train")
    path.parents[2].joinpath("train", "3", "a.png").write_bytes(png(9))
    assert source.fingerprint("mnist", "train") != before
    path.parents[2].joinpath("train", "3", "a.png").unlink()
    with pytest.raises(InputError, match=r"train row 3 .*the image file cannot be read"):
        list(source.examples("mnist", "train"))


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "nine", NAMES[:9])
    source = HubSource(tmp_path / "d", facts=at(folder))
    message = "nine: column 'label' has 9 classes, task 'mnist' has 10"
    with pytest.raises(InputError, match=message):
        source.classes("mnist")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"without": ("label",), "word": (datasets.Value("string"), str)}, "no column 'label'; it"),
        ({"without": ("image",)}, "no column 'image'; it has label"),
        ({"label": (datasets.Value("string"), str)}, r"'label' must hold integers, got Value\('st"),
        ({"label": (datasets.Value("float32"), float)}, r"hold integers, got Value\('float32'\)"),
        ({"image": (datasets.Value("string"), str)}, r"hold images, got Value\('string'\)"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    folder = write_set(tmp_path / "other", **columns)
    with pytest.raises(InputError, match=f"{folder}: .*{message}"):
        HubSource(tmp_path / "d", facts=at(folder)).size("mnist", "test")


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "train_only")
    for path in (folder / "data").glob("test-*"):
        path.unlink()
    with pytest.raises(InputError, match=r"Unknown split \"test\". .*train"):
        HubSource(tmp_path / "d", facts=at(folder)).size("mnist", "test")


def test_numbers_without_names_take_the_registrys_and_nulls_are_named(tmp_path: Path) -> None:
    number = (datasets.Value("int64"), lambda row: None if row == 3 else row % 10)
    folder = write_set(tmp_path / "numbers", label=number)
    source = HubSource(tmp_path, facts=at(folder))
    assert source.classes("mnist") == task_facts("mnist").dataset_classes
    with pytest.raises(InputError, match=r"train row 3 \(3\.png\): column 'label' is null"):
        list(source.examples("mnist", "train"))


def test_plain_bytes_are_images_too_and_missing_ones_are_named(tmp_path: Path) -> None:
    raw = (datasets.Value("binary"), lambda row: None if row == 9 else png(7 + row))
    source = HubSource(tmp_path / "d", facts=at(write_set(tmp_path / "raw", image=raw)))
    examples = list(source.examples("mnist", "test"))
    assert [example.image for example in examples] == [png(7 + row) for row in range(5)]
    assert source.fingerprint("mnist", "test")
    with pytest.raises(InputError, match="train row 9: column 'image' holds no image"):
        list(source.examples("mnist", "train"))


def test_another_configuration_is_refused(digits: Path, tmp_path: Path) -> None:
    def facts(task: str) -> TaskFacts:
        known = at(digits)(task)
        return replace(known, hub=replace(known.hub, config="full_numbers"))

    with pytest.raises(InputError, match=r"'full_numbers' not found\. Available: \['default'\]"):
        HubSource(tmp_path, facts=facts).size("svhn", "train")


def test_a_truncated_shard_is_found(digits: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "cut")
    path = folder / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut: its files cannot be read \(.*[Pp]arquet"):
        HubSource(tmp_path / "d", facts=at(folder)).size("mnist", "train")


def http_error(kind: type[Exception], status: int) -> Exception:
    """Return an error of the hub as its library makes it from an answer."""
    import huggingface_hub.utils._http as http

    library = getattr(http, "httpx2", None) or http.httpx
    request = library.Request("GET", "https://huggingface.co/datasets/x")
    return kind("server said no", response=library.Response(status, request=request))


def chained(error: Exception, cause: Exception) -> Exception:
    error.__context__ = cause
    return error


def not_found(message: str) -> Exception:
    return datasets.exceptions.DatasetNotFoundError(message)


def transport_error() -> Exception:
    import huggingface_hub.utils._http as http

    library = getattr(http, "httpx2", None) or http.httpx
    return library.ConnectError("connection refused")


ERRORS = {
    "wrong id": (
        lambda: chained(
            not_found("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
            http_error(hub_errors.RepositoryNotFoundError, 404),
        ),
        "no such data set on the Hugging Face hub, or a private one. Check the id",
    ),
    "gated": (
        lambda: chained(
            not_found("Dataset 'x' is a gated dataset on the Hub. You must be authenticated."),
            http_error(hub_errors.GatedRepoError, 401),
        ),
        r"gated; .*Accept the terms .*`hf auth login` or HF_TOKEN",
    ),
    "gated, raw": (lambda: http_error(hub_errors.GatedRepoError, 403), "gated; "),
    "revision": (
        lambda: chained(
            not_found("Revision 'v9' doesn't exist"),
            http_error(hub_errors.RevisionNotFoundError, 404),
        ),
        "has no revision 'v9' on the Hugging Face hub",
    ),
    "no network": (
        lambda: ConnectionError("Couldn't reach 'x' on the Hub (LocalEntryNotFoundError)"),
        r"neither in the cache .* \(no connection\)\. Download it .*--source folder",
    ),
    "no transport": (transport_error, r"neither in the cache .* \(no connection\)"),
    "offline": (lambda: hub_errors.OfflineModeIsEnabled("offline"), "neither in the cache"),
    "refused": (
        lambda: http_error(hub_errors.HfHubHTTPError, 503),
        "the Hugging Face hub refused .*said no",
    ),
    "disk": (lambda: OSError(28, "No space left on device"), "cannot be loaded .*No space left"),
}


@pytest.mark.parametrize(("make", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_of_the_hub_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception], message: str
) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        assert (args, options["split"]) == (("ylecun/mnist", None), "train")
        assert options["revision"] == "v9"
        raise make()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(InputError, match=f"^ylecun/mnist: {message}"):
        HubSource(revision="v9").size("mnist", "train")


def test_offline_without_a_cached_set_names_the_setting(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from rmtllmf_jax.data.sources.hub import HubSource; import sys\n"
        "try: HubSource(Path(sys.argv[1])).size('svhn', 'train')\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(rmtllmf_jax.__file__).parents[1],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    expected = (
        "InputError ufldl-stanford/svhn: neither in the cache of `datasets` nor to be reached"
    )
    assert done.stdout.startswith(expected), done.stderr
    assert "(HF_HUB_OFFLINE is set)" in done.stdout


def test_without_the_extra_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    for use in (lambda: HubSource().size("dtd", "train"), lambda: HubSource().classes("dtd")):
        with pytest.raises(InputError, match=r"tanganke/dtd: .*pip install 'rmtllmf-jax\[hub\]'"):
            use()
