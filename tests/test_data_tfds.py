"""TensorFlow Datasets as a source: TFDS's own mock, and array_record sets written on the spot."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import decoded, encoded, noise

import rmtllmf_jax
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.extras import MissingExtra
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.reading import Reading
from rmtllmf_jax.data.registry import TaskFacts, task_facts
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources.tfds import TfdsSource
from rmtllmf_jax.data.tasks import REGISTERED

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")


def png(seed: int) -> bytes:
    return encoded(noise(seed, 28, 28))


@pytest.fixture(autouse=True)
def quiet() -> None:
    """TFDS tells its log about every folder that is not there."""
    logging.getLogger("absl").setLevel(logging.ERROR)


def prepare(
    folder: Path, name: str, sizes: dict[str, int], image: Callable[[int], bytes] = png
) -> Path:
    """Write a set as `download_and_prepare` does, which would need TensorFlow; return its folder.

    Labels count up; every split has two shards, and its images a seed of their own.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import naming, splits
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    place = Path(builder.data_dir)
    place.mkdir(parents=True)
    infos = []
    for number, (split, count) in enumerate(sizes.items()):
        template = naming.ShardedFileTemplate(
            data_dir=place,
            dataset_name=builder.name,
            split=split,
            filetype_suffix="array_record",
        )
        lengths = [count // 2, count - count // 2]
        row = 0
        for shard, length in enumerate(lengths):
            path = template.sharded_filepath(shard_index=shard, num_shards=2)
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for _ in range(length):
                stored = {
                    "image": tf_feature_pb2.Feature(
                        bytes_list=tf_feature_pb2.BytesList(value=[image(100 * number + row)])
                    ),
                    "label": tf_feature_pb2.Feature(
                        int64_list=tf_feature_pb2.Int64List(value=[row])
                    ),
                }
                features = tf_feature_pb2.Features(feature=stored)
                writer.write(tf_example_pb2.Example(features=features).SerializeToString())
                row += 1
            writer.close()
        infos.append(
            splits.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=1, filename_template=template
            )
        )
    builder.info.set_splits(splits.SplitDict(infos))
    builder.info.write_to_directory(place)
    return place


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The folder of TFDS with a small MNIST."""
    prepare(tmp_path / "tfds", "mnist", {"train": 9, "test": 5})
    return tmp_path / "tfds"


def with_tfds(**changed: Any) -> Callable[[str], TaskFacts]:
    def facts(task: str) -> TaskFacts:
        known = task_facts(task)
        assert known.tfds is not None
        return replace(known, tfds=replace(known.tfds, **changed))

    return facts


def test_prepared_sets_are_read_as_stored(prepared: Path, tmp_path: Path) -> None:
    source = TfdsSource(prepared)
    assert isinstance(source, Source)
    assert "mnist" in source.tasks()
    assert source.classes("mnist") == tuple("0123456789")
    assert (source.size("mnist", "train"), source.size("mnist", "test")) == (9, 5)
    examples = list(source.examples("mnist", "train"))
    assert [example.image for example in examples] == [png(row) for row in range(9)]
    assert [example.label for example in examples] == list(range(9))
    *_, example = source.examples("mnist", "test")
    assert (example.image, example.origin) == (png(104), "tfds mnist: test row 4")
    loaded = load_split(source, "mnist", "train", 28, tmp_path / "cache")
    expected = decoded(png(7))
    np.testing.assert_array_equal(loaded.images[7], expected)


def test_split_strings_are_tfdss(prepared: Path) -> None:
    source = TfdsSource(prepared, facts=with_tfds(train="train[4:]+test", test="train[:4]"))
    examples = list(source.examples("mnist", "train"))
    seeds = [*range(4, 9), *range(100, 105)]
    assert [example.image for example in examples] == [png(seed) for seed in seeds]
    assert examples[0].origin == "tfds mnist: train[4:]+test row 0"
    assert source.size("mnist", "test") == 4


def test_any_other_set_that_is_prepared(prepared: Path) -> None:
    prepare(prepared, "beans", {"train": 3, "validation": 2, "test": 3})
    source = TfdsSource(prepared)
    assert source.tasks() == (*REGISTERED, "beans")
    assert source.classes("beans") == ("angular_leaf_spot", "bean_rust", "healthy")
    assert source.splits("beans") == ("train", "validation", "test")
    assert source.splits("mnist") == ("train", "test")
    examples = list(source.examples("beans", "validation"))
    assert [(example.image, example.label) for example in examples] == [
        (png(100), 0),
        (png(101), 1),
    ]
    told = Reading(train_split="train+validation", test_split="test[1:]")
    joint = TfdsSource(prepared, reading=told)
    assert joint.splits("beans") == ("train", "test")
    assert (joint.size("beans", "train"), joint.size("beans", "test")) == (5, 2)
    with pytest.raises(InputError, match=r"tfds beans: no split 'dev', .*train, validation, test"):
        TfdsSource(prepared, reading=Reading(test_split="dev")).size("beans", "test")
    with pytest.raises(InputError, match=r"unknown task 'bean'\. Did you mean 'beans'"):
        source.size("bean", "train")


def test_nothing_needs_tensorflow(prepared: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from rmtllmf_jax.data.sources.tfds import TfdsSource\n"
        "source = TfdsSource(Path(sys.argv[1]))\n"
        "print(len(list(source.examples('mnist', 'train'))), source.fingerprint('mnist', 'test'))\n"
        "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(prepared)],
        cwd=Path(rmtllmf_jax.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    here = TfdsSource(prepared).fingerprint("mnist", "test")
    assert done.stdout.split() == ["9", here, "False", "False"]


def test_fingerprints_follow_images_labels_and_splits(prepared: Path, tmp_path: Path) -> None:
    source = TfdsSource(prepared)
    first = source.fingerprint("mnist", "train")
    prepare(tmp_path / "same", "mnist", {"train": 9, "test": 5})
    assert TfdsSource(tmp_path / "same").fingerprint("mnist", "train") == first
    prepare(tmp_path / "other", "mnist", {"train": 9, "test": 5}, lambda seed: png(seed % 8))
    others = [
        source.fingerprint("mnist", "test"),
        TfdsSource(tmp_path / "other").fingerprint("mnist", "train"),
        TfdsSource(prepared, facts=with_tfds(train="train[:8]")).fingerprint("mnist", "train"),
    ]
    assert len({first, *others}) == 4


def test_tfdss_own_mock(tmp_path: Path) -> None:
    with tfds.testing.mock_data(num_examples=7):
        source = TfdsSource(encoded=False)
        assert source.size("mnist", "train") == 7
        examples = list(source.examples("mnist", "train"))
        assert all(example.image.shape == (28, 28, 1) for example in examples)
        loaded = load_split(source, "mnist", "train", 28, tmp_path / "cache")
        rgb = np.stack([np.repeat(example.image, 3, axis=2) for example in examples])
        np.testing.assert_array_equal(loaded.images, rgb)
        np.testing.assert_array_equal(loaded.labels, [example.label for example in examples])
        assert loaded.images.std() > 10


@pytest.mark.parametrize(
    "task",
    [
        *("mnist", "svhn", "eurosat", "dtd", "sun397", "oxford_flowers102"),
        *("oxford-iiit-pet", "food101", "fashion_mnist", "kmnist"),
    ],
)
def test_the_mock_of_every_builder_of_the_registry(task: str) -> None:
    with tfds.testing.mock_data(num_examples=3):
        source = TfdsSource(encoded=False)
        assert source.classes(task) == task_facts(task).dataset_classes
        for split in ("train", "test"):
            assert source.size(task, split) == 3
            labels = [example.label for example in source.examples(task, split)]
            assert all(0 <= label < len(source.classes(task)) for label in labels)


def test_labels_in_another_order_are_renumbered_by_name(tmp_path: Path) -> None:
    facts = task_facts("sun397")
    assert facts.tfds is not None
    builder = tfds.builder(facts.tfds.builder, data_dir=str(tmp_path))
    names = builder.info.features["label"].names
    place = prepare(tmp_path, facts.tfds.builder, {"train": 397, "test": 2})
    assert place.is_relative_to(tmp_path)
    source = TfdsSource(tmp_path)
    labels = [example.label for example in source.examples("sun397", "train")]
    assert labels != list(range(397))  # TFDS has jail/indoor before jail_cell
    assert sorted(labels) == list(range(397))
    for name, label in zip(names, labels, strict=True):
        registry_name = facts.dataset_classes[label].replace("/", " ").replace("_", " ")
        assert name[3:].replace("/", " ").replace("_", " ") == registry_name


def test_other_class_names_are_refused(prepared: Path) -> None:
    def facts(task: str) -> TaskFacts:
        return replace(task_facts(task), dataset_classes=(*"012345678", "ten"))

    message = r"10 classes that are not the registry's 10; unknown \['9'\], lacking \['ten'\]"
    for use in (
        lambda source: source.classes("mnist"),
        lambda source: list(source.examples("mnist", "train")),
    ):
        with pytest.raises(InputError, match=f"tfds mnist: {message}"):
            use(TfdsSource(prepared, facts=facts))


@pytest.mark.parametrize("task", ["cars", "gtsrb", "resisc45"])
def test_tasks_without_a_builder_name_the_hub_set(task: str) -> None:
    source = TfdsSource()
    for use in (source.classes, lambda task: source.size(task, "train")):
        with pytest.raises(InputError, match=f"'{task}' cannot come from .*tanganke/") as caught:
            use(task)
        assert task_facts(task).hub.id in str(caught.value)


def test_a_set_that_is_not_prepared_says_how(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tfds dtd: not prepared as array_record in ") as caught:
        TfdsSource(tmp_path / "none").size("dtd", "train")
    message = str(caught.value)
    assert f"tfds.builder('dtd', data_dir='{tmp_path / 'none'}', file_format=" in message
    assert "download_and_prepare()" in message
    assert "--source hub (tanganke/dtd)" in message


def test_a_set_prepared_in_another_format_says_how(tmp_path: Path) -> None:
    place = prepare(tmp_path, "mnist", {"train": 2, "test": 2})
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for path in place.glob("*.array_record-*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(InputError, match="not prepared as array_record"):
        TfdsSource(tmp_path).size("mnist", "train")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": "validation"}, r"split 'validation': cannot be opened \(Unknown split"),
        ({"train": "train[:3"}, r"split 'train\[:3': cannot be opened"),
        ({"builder": "mnits"}, "tfds mnits: no such builder"),
        ({"builder": "clic"}, "tfds clic: no column 'label'; it has image"),
    ],
)
def test_other_splits_and_builders(
    prepared: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    source = TfdsSource(prepared, facts=with_tfds(**changed))
    with pytest.raises(InputError, match=message):
        load_split(source, "mnist", "train", 8, tmp_path / "cache")


@pytest.mark.parametrize("keep", [None, 0, 1000, -40])
def test_a_truncated_or_missing_shard_is_found(prepared: Path, keep: int | None) -> None:
    (path,) = prepared.rglob("mnist-train.array_record-00001-of-00002")
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[:keep])
    with pytest.raises(InputError, match=r"tfds mnist.*(cannot be|[Pp]repare)"):
        list(TfdsSource(prepared).examples("mnist", "train"))


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record"])
def test_without_the_extra_it_is_asked_for(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def no_reader(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'array_record'", name="array_record")

    if package == "array_record":
        builder = type(tfds.builder("mnist", data_dir=str(prepared)))
        monkeypatch.setattr(builder, "as_data_source", no_reader)
    else:
        monkeypatch.setitem(sys.modules, package, None)
    said = rf"'tfds' needs the package {package}, .*pip install 'rmtllmf-jax\[tfds\]'"
    with pytest.raises(MissingExtra, match=said):
        TfdsSource(prepared).size("mnist", "train")
