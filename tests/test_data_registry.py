"""The registry, against the literature's numbers and TFDS's own label files."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.registry import (
    SINGLE_PROMPT,
    plain_name,
    prompt_classes,
    prompt_templates,
    read_templates,
    task_facts,
)
from rmtllmf_jax.data.tasks import REGISTERED, SUITES, TASK_NAMES, expand_tasks, validate_tasks

# Hub id and configuration, classes, images of train and test, prompts.
FULL_SIZE = {
    "sun397": ("tanganke/sun397", None, 397, 19_850, 19_850, 2),
    "cars": ("tanganke/stanford_cars", None, 196, 8_144, 8_041, 8),
    "resisc45": ("tanganke/resisc45", None, 45, 18_900, 6_300, 18),
    "eurosat": ("tanganke/eurosat", None, 10, 21_600, 2_700, 3),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", 10, 73_257, 26_032, 1),
    "gtsrb": ("tanganke/gtsrb", None, 43, 26_640, 12_630, 3),
    "mnist": ("ylecun/mnist", None, 10, 60_000, 10_000, 1),
    "dtd": ("tanganke/dtd", None, 47, 3_760, 1_880, 8),
    "cifar10": ("uoft-cs/cifar10", None, 10, 50_000, 10_000, 18),
    "cifar100": ("uoft-cs/cifar100", None, 100, 50_000, 10_000, 18),
    "emnist_letters": ("tanganke/emnist_letters", "emnist-letters", 26, 124_800, 20_800, 1),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None, 10, 60_000, 10_000, 2),
    "fer2013": ("clip-benchmark/wds_fer2013", None, 7, 28_709, 7_178, 6),
    "food101": ("ethz/food101", None, 101, 75_750, 25_250, 1),
    "kmnist": ("tanganke/kmnist", "kmnist", 10, 60_000, 10_000, 1),
    "oxford-iiit-pet": ("timm/oxford-iiit-pet", None, 37, 3_680, 3_669, 1),
    "oxford_flowers102": ("dpdl-benchmark/oxford_flowers102", None, 102, 1_020, 6_149, 1),
    "pcam": ("1aurent/PatchCamelyon", None, 2, 262_144, 32_768, 1),
    "rendered-sst2": ("nateraw/rendered-sst2", None, 2, 6_920, 1_821, 1),
    "stl10": ("tanganke/stl10", None, 10, 5_000, 8_000, 2),
}

# Labels that many public lists agree on.
SPOTS = {
    "cars": {0: "AM General Hummer SUV 2000", 100: "Ferrari FF Coupe 2012",
             195: "smart fortwo Convertible 2012"},
    "dtd": {0: "banded", 30: "polka-dotted", 46: "zigzagged"},
    "eurosat": {0: "annual crop land", 2: "brushland or shrubland", 9: "lake or sea"},
    "gtsrb": {0: "red and white circle 20 kph speed limit", 14: "stop",
              13: "red and white upside down triangle yield right-of-way",
              25: "red and white triangle with person digging / construction / road work warning",
              40: "blue circle with white arrows indicating a traffic circle"},
    "mnist": {0: "0", 9: "9"},
    "resisc45": {0: "airplane", 23: "medium residential", 44: "wetland"},
    "sun397": {0: "abbey", 46: "beach", 396: "youth hostel"},
    "svhn": {0: "0", 9: "9"},
    "cifar10": {0: "airplane", 1: "automobile", 9: "truck"},
    "cifar100": {0: "apple", 26: "crab", 41: "lawn mower", 99: "worm"},
    "emnist_letters": {0: "A", 25: "Z"},
    "fashion_mnist": {0: "T - shirt / top", 9: "Ankle boot"},
    "fer2013": {0: "angry", 4: "neutral", 6: "surprised"},
    "food101": {0: "apple pie", 16: "cheesecake", 17: "cheese plate", 100: "waffles"},
    "kmnist": {0: "お", 9: "を"},
    "oxford-iiit-pet": {0: "abyssinian", 12: "english cocker spaniel", 36: "yorkshire terrier"},
    "oxford_flowers102": {0: "pink primrose", 50: "petunia", 101: "blackberry lily"},
    "pcam": {1: "lymph node containing metastatic tumor tissue"},
    "rendered-sst2": {0: "negative", 1: "positive"},
    "stl10": {0: "airplane", 2: "car", 7: "monkey"},
}  # fmt: skip


@pytest.fixture(scope="module")
def tfds_files() -> Path:
    """Where tensorflow-datasets keeps its builders; found without importing it."""
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None or found.origin is None:
        pytest.skip("tensorflow-datasets is not installed")
    return Path(found.origin).parent / "image_classification"


def names_in(path: Path, variable: str) -> list[str]:
    """Return the list of strings that a Python file assigns to a variable."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == variable:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} assigns no {variable}")


@pytest.mark.parametrize("task", REGISTERED)
def test_facts_are_those_of_the_literature_and_agree(task: str):
    facts = task_facts(task)
    sizes = len(facts.classes), facts.train, facts.test, len(facts.prompts)
    assert (facts.hub.id, facts.hub.config, *sizes) == FULL_SIZE[task]
    assert {label: facts.classes[label] for label in SPOTS[task]} == SPOTS[task]
    for counts, size in ((facts.train_counts, facts.train), (facts.test_counts, facts.test)):
        assert counts is None or (sum(counts), len(counts)) == (size, len(facts.classes))
    assert len(set(facts.prompts)) == len(facts.prompts)
    for prompt in (*facts.prompts, SINGLE_PROMPT):
        assert prompt.count("{}") == 1
        assert "{" not in prompt.format("x")
    without = ("cars", "gtsrb", "resisc45", "pcam", "fer2013", "emnist_letters", "rendered-sst2")
    assert (facts.tfds is None) == (task in without)
    assert facts.tfds is not None or facts.hub.id in facts.tfds_note
    assert facts.finetuned == ("stanford-cars" if task == "cars" else task)


@pytest.mark.parametrize("task", REGISTERED)
def test_a_name_means_one_label_in_every_spelling(task: str):
    facts = task_facts(task)
    meant: dict[str, set[int]] = {}
    for spelling in (facts.classes, facts.dataset_classes, *facts.other_classes):
        assert len(spelling) == len(facts.classes)
        for label, name in enumerate(spelling):
            meant.setdefault(plain_name(name), set()).add(label)
            assert name == name.strip() != ""
    assert {name: labels for name, labels in meant.items() if len(labels) > 1} == {}


@pytest.mark.parametrize("task", REGISTERED)
def test_other_sizes_are_other_and_a_leak_is_an_error(task: str):
    facts = task_facts(task)
    levels = {(other.split, other.size): other.level for other in facts.other_sizes}
    assert len(levels) == len(facts.other_sizes)
    assert not {("train", facts.train), ("test", facts.test)} & set(levels)
    assert set(levels.values()) <= {"error", "warning"}
    if task in ("cars", "dtd", "mnist", "svhn", "gtsrb"):
        assert levels["train", facts.train + facts.test] == "error"


def test_eurosat_slices_of_tfds_do_not_overlap():
    facts = task_facts("eurosat")
    assert facts.tfds is not None
    rows = range(27_000)
    train = rows[: int(facts.tfds.train.removeprefix("train[:").removesuffix("]"))]
    test = rows[int(facts.tfds.test.removeprefix("train[").removesuffix(":]")) :]
    assert (len(train), len(test)) == (facts.train, facts.test)
    assert not set(train) & set(test)
    assert "not comparable" in facts.tfds_note


def test_sun397_differs_from_tfds_in_one_pair_alone(tfds_files: Path):
    labels = task_facts("sun397").labels_of((tfds_files / "sun397_labels.txt").read_text().split())
    moved = [(place, label) for place, label in enumerate(labels) if place != label]
    assert moved == [(206, 207), (207, 206)]


@pytest.mark.parametrize(
    ("task", "file", "variable"),
    [("eurosat", "eurosat.py", "_LABELS"), ("cars", "cars196.py", "_NAMES")],
)
def test_names_are_those_of_tfds_builders(task: str, file: str, variable: str, tfds_files: Path):
    names = names_in(tfds_files / file, variable)
    assert task_facts(task).labels_of(names) == tuple(range(len(task_facts(task).classes)))


def test_textures_are_those_of_tfds(tfds_files: Path):
    names = (tfds_files / "dtd_key_attributes.txt").read_text().split()
    assert list(task_facts("dtd").classes) == names


@pytest.mark.parametrize(
    ("task", "name", "label"),
    [
        ("eurosat", "SeaLake", 9),
        ("eurosat", "Lake or Sea", 9),
        ("eurosat", "HERBACEOUS_VEGETATION", 2),
        ("sun397", "/f/field/wild", 152),
        ("sun397", "field wild", 152),
        ("mnist", "7 - seven", 7),
        ("svhn", "seven", 7),
        ("gtsrb", "00014", 14),
        ("gtsrb", "stop", 14),
        ("resisc45", "medium_residential", 23),
        ("resisc45", "residential", None),
        ("gtsrb", "43", None),
        ("dtd", "", None),
    ],
)
def test_labels_are_found_by_any_spelling(task: str, name: str, label: int | None):
    assert task_facts(task).labels_of([name]) == (label,)


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown task 'sun39'.*Did you mean 'sun397'"):
        task_facts("sun39")


def test_an_ensemble_has_the_tasks_own_templates():
    assert len(prompt_templates("resisc45", "ensemble")) == 18
    assert prompt_templates("resisc45", "single") == ("a photo of a {}",)
    assert prompt_templates("flowers", "ensemble") == ("a photo of a {}",)
    with pytest.raises(InputError, match=r"unknown prompts 'ensembel'. Did you mean 'ensemble'"):
        prompt_templates("mnist", "ensembel")


@pytest.mark.parametrize(
    ("task", "name", "prompt"),
    [
        ("eurosat", "SeaLake", "lake or sea"),
        ("eurosat", "annual crop land", "annual crop land"),
        ("resisc45", "two_merged", "two merged"),
        ("flowers", "red_rose", "red rose"),
    ],
)
def test_classes_are_spelt_as_clips_users_do(task: str, name: str, prompt: str):
    assert prompt_classes(task, [name]) == (prompt,)


def test_the_eight_tasks() -> None:
    assert len(TASK_NAMES) == 8
    assert list(TASK_NAMES) == sorted(set(TASK_NAMES))
    assert validate_tasks(["svhn", "cars"], TASK_NAMES) == ("svhn", "cars")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dtd", "eurosta"], r"'eurosta'.*'eurosat'.*Known: dtd, eurosat"),
        (["cars"], "unknown task 'cars'"),  # known, but not available
        (["dtd", "eurosat", "dtd"], r"'dtd' is given more than once: dtd, eurosat, dtd"),
        ([], r"at least one.*eurosat"),
    ],
)
def test_tasks_that_a_run_cannot_use_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate_tasks(names, ("dtd", "eurosat"))


def test_suites_are_spelt_out_and_the_default_is_the_eight():
    assert [len(names) for names in SUITES.values()] == [8, 14, 20]
    assert set(FULL_SIZE) == set(REGISTERED) == set(SUITES["tall20"])
    assert expand_tasks((), REGISTERED) == TASK_NAMES
    assert expand_tasks((), ("b", "a")) == ("b", "a")
    assert expand_tasks(("tall14", "x"), REGISTERED) == (*SUITES["tall14"], "x")
    assert expand_tasks(("tall8",), ("tall8",)) == ("tall8",)  # a folder of that name


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a photo of a {}.\n\n  {}, up close\n", ("a photo of a {}.", "{}, up close")),
        ('["a {} thing"]', ("a {} thing",)),
    ],
)
def test_templates_of_a_file(tmp_path: Path, content: str, expected: tuple[str, ...]):
    path = tmp_path / "templates.txt"
    path.write_text(content)
    assert read_templates(path) == expected


@pytest.mark.parametrize("content", ["a photo", "{} and {}", "a {} {x}", '["a {}", 3]', "", "[]"])
def test_templates_that_cannot_be_used(tmp_path: Path, content: str):
    path = tmp_path / "templates.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"{path}: (template \d needs|holds no template)"):
        read_templates(path)
