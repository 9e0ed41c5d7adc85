"""The Hugging Face hub as a source: local folders with a hub set's layout, and the hub's errors."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import decoded, encoded, noise

import rmtllmf_jax
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.registry import HubSet, task_facts
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources.hub import HubSource

datasets = pytest.importorskip("datasets")
hub_errors = pytest.importorskip("huggingface_hub.errors")

NAMES = tuple(f"{digit}" for digit in range(10))


def png(seed: int) -> bytes:
    return encoded(noise(seed, 9, 9))


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


def at(folder: Path | str, task: str = "mnist", **options: Any) -> dict[str, HubSet]:
    """Return what says that a task is in `folder`."""
    return {task: HubSet(str(folder), **options)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("hub") / "digits", extra=(datasets.Value("int8"), int))


@pytest.fixture
def source(digits: Path, tmp_path: Path) -> HubSource:
    return HubSource(tmp_path / "datasets", sets=at(digits))


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
    np.testing.assert_array_equal(loaded.images[7], decoded(png(7)))
    np.testing.assert_array_equal(loaded.labels, [*range(10), 0, 1])


def test_fingerprints_follow_the_content_and_not_the_place(
    source: HubSource, digits: Path, tmp_path: Path
) -> None:
    prints = [source.fingerprint("mnist", split) for split in ("train", "test")]
    (tmp_path / "copy").symlink_to(digits)
    copy = HubSource(tmp_path / "elsewhere", sets=at(tmp_path / "copy"))
    assert [copy.fingerprint("mnist", split) for split in ("train", "test")] == prints
    other = HubSource(tmp_path / "d", sets=at(write_set(tmp_path / "other", first=1)))
    assert len({*prints, other.fingerprint("mnist", "train")}) == 3


def test_images_that_are_paths_are_read(tmp_path: Path) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        for name in NAMES:
            path = tmp_path / "files" / split / name / "a.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(png(seed))
    source = HubSource(tmp_path / "d", sets=at(tmp_path / "files"))
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
    source = HubSource(tmp_path / "d", sets=at(folder))
    message = "nine: column 'label' has 9 classes, task 'mnist' has 10"
    with pytest.raises(InputError, match=message):
        source.classes("mnist")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"without": ("label",), "word": (datasets.Value("string"), str)}, "no column 'label'; it"),
        ({"without": ("image",)}, "no column 'image'; it has label. Name it with --image-column"),
        (
            {"label": (datasets.Value("float32"), float)},
            r"hold integers or names, got Value\('float32'\)",
        ),
        (
            {"image": (datasets.Value("string"), str)},
            r"hold images, as files, got Value\('string'\)",
        ),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    folder = write_set(tmp_path / "other", **columns)
    with pytest.raises(InputError, match=f"{folder}: .*{message}"):
        HubSource(tmp_path / "d", sets=at(folder)).classes("mnist")


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "train_only")
    for path in (folder / "data").glob("test-*"):
        path.unlink()
    with pytest.raises(
        InputError, match=r"train_only: no test split; it has train\..* --test-split"
    ):
        HubSource(tmp_path / "d", sets=at(folder)).size("mnist", "test")


def test_numbers_without_names_take_the_registrys_and_nulls_are_named(tmp_path: Path) -> None:
    number = (datasets.Value("int64"), lambda row: None if row == 3 else row % 10)
    folder = write_set(tmp_path / "numbers", label=number)
    source = HubSource(tmp_path, sets=at(folder))
    assert source.classes("mnist") == task_facts("mnist").dataset_classes
    with pytest.raises(InputError, match=r"train row 3 \(3\.png\): column 'label' is null"):
        list(source.examples("mnist", "train"))


def test_plain_bytes_are_images_too_and_missing_ones_are_named(tmp_path: Path) -> None:
    raw = (datasets.Value("binary"), lambda row: None if row == 9 else png(7 + row))
    source = HubSource(tmp_path / "d", sets=at(write_set(tmp_path / "raw", image=raw)))
    examples = list(source.examples("mnist", "test"))
    assert [example.image for example in examples] == [png(7 + row) for row in range(5)]
    assert source.fingerprint("mnist", "test")
    with pytest.raises(InputError, match="train row 9: column 'image' holds no image"):
        list(source.examples("mnist", "train"))


def test_another_configuration_is_refused(digits: Path, tmp_path: Path) -> None:
    sets = at(digits, "svhn", config="full_numbers")
    with pytest.raises(InputError, match=r"'full_numbers' not found\. Available: \['default'\]"):
        HubSource(tmp_path, sets).size("svhn", "train")


def test_a_truncated_shard_is_found(digits: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "cut")
    path = folder / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut: its files cannot be read \(.*[Pp]arquet"):
        HubSource(tmp_path / "d", sets=at(folder)).size("mnist", "train")


library = importlib.import_module("huggingface_hub.utils._http")
http = getattr(library, "httpx2", None) or library.httpx


def hub_error(name: str, status: int, around: str = "") -> Exception:
    """Return an error of the hub as its library makes it, perhaps inside one of `datasets`."""
    request = http.Request("GET", "https://huggingface.co/datasets/x")
    answer = http.Response(status, request=request)
    error = getattr(hub_errors, name)("server said no", response=answer)
    if not around:
        return error
    outer = datasets.exceptions.DatasetNotFoundError(around)
    outer.__context__ = error
    return outer


ERRORS = {
    "wrong id": (
        hub_error("RepositoryNotFoundError", 404, "Dataset 'x' doesn't exist on the Hub"),
        "no such data set on the Hugging Face hub, or a private one. Check the id",
    ),
    "gated": (
        hub_error("GatedRepoError", 401, "Dataset 'x' is a gated dataset on the Hub."),
        r"gated; .*Accept the terms .*`hf auth login` or HF_TOKEN",
    ),
    "gated, raw": (hub_error("GatedRepoError", 403), "gated; "),
    "revision": (
        hub_error("RevisionNotFoundError", 404, "Revision 'v9' doesn't exist"),
        "has no revision 'v9' on the Hugging Face hub",
    ),
    "no network": (
        ConnectionError("Couldn't reach 'x' on the Hub (LocalEntryNotFoundError)"),
        r"neither in the cache .* \(no connection\)\. Download it .*--source folder",
    ),
    "no transport": (http.ConnectError("refused"), r"neither in the cache .* \(no connection\)"),
    "offline": (hub_errors.OfflineModeIsEnabled("offline"), "neither in the cache"),
    "refused": (hub_error("HfHubHTTPError", 503), "the Hugging Face hub refused .*said no"),
    "disk": (OSError(28, "No space left on device"), "cannot be loaded .*No space left"),
}


@pytest.mark.parametrize(("error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_of_the_hub_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        assert (args, options["split"]) == (("ylecun/mnist", None), None)
        assert options["revision"] == "v9"
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(InputError, match=f"^ylecun/mnist: {message}"):
        HubSource(sets=at("ylecun/mnist", revision="v9")).size("mnist", "train")


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
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"tanganke/dtd: .*pip install 'rmtllmf-jax\[hub\]'"):
        HubSource().classes("dtd")
