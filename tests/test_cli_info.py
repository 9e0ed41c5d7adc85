"""`rmtllmf info`: what it says is so, for people and for scripts."""

from __future__ import annotations

import io
import json
import os
import platform
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import pytest
from huggingface_hub import constants
from rich.console import Console

from rmtllmf_jax.cli.info import VARIABLES, defaults, folders, size_of
from rmtllmf_jax.cli.main import main, parse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models import hub
from rmtllmf_jax.report.sheet import Sheet
from rmtllmf_jax.report.terminal import print_texts
from rmtllmf_jax.runs import environment

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder of the hub, which is not there yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def info(capsys: pytest.CaptureFixture[str], cache_dir: Path, *words: str) -> str:
    main(["info", "--cache-dir", str(cache_dir), *words])
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str], cache_dir: Path) -> dict[str, Any]:
    return json.loads(info(capsys, cache_dir, "--json"))


def test_json_says_what_is_installed(found: dict[str, Any]) -> None:
    assert found["versions"]["python"] == platform.python_version()
    for package in ("rmtllmf-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert found["versions"][package] == version(package)
    assert found["versions"]["transformers"] == version("transformers")
    assert found["extras"]["hub"]["datasets"] == version("datasets")


def test_json_says_what_it_runs_on(found: dict[str, Any], cache_dir: Path) -> None:
    backend = found["backend"]
    assert backend["platform"] == jax.default_backend()
    assert (backend["process"], backend["processes"]) == (0, 1)
    with jax.default_matmul_precision("highest"), jax.enable_x64(True):
        settings = environment.settings()
    assert backend["x64"] is jax.config.read("jax_enable_x64")
    assert (settings["x64"], settings["matmul precision"]) == (True, "highest")
    assert backend["compilation cache"] == str(cache_dir / "xla")
    assert len(found["devices"]) == jax.device_count()
    assert [device["id"] for device in found["devices"]] == list(range(jax.device_count()))
    if jax.default_backend() == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert {device["memory"] for device in found["devices"]} == {total}


def test_what_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "EXTRAS", {"some": ("jax", "no-such-package-anywhere")})
    expected = {"some": {"jax": version("jax"), "no-such-package-anywhere": None}}
    assert environment.extras() == expected


def test_the_extras_are_those_of_the_package() -> None:
    """A name that pip does not know, or an extra that is left out, would mislead."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) - set(environment.EXTRAS) <= {"test", "parity", "docs"}
    for extra, packages in environment.EXTRAS.items():
        if not extra.startswith(("cuda", "tpu")):  # those are jax's own
            assert [name for name in packages if name not in " ".join(extras[extra])] == []


def test_a_device_of_another_process_does_not_tell() -> None:
    class Device:
        platform = "tpu"
        process_index = 1

    assert environment.memory_of(Device()) is None


# Folders


def test_folders_have_their_sizes(tmp_path: Path, no_hub: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "pixels").write_bytes(bytes(1000))
    (tmp_path / "images" / "labels").write_bytes(bytes(24))
    found = folders(tmp_path)
    assert found["decoded images"] == {"path": str(tmp_path / "images"), "bytes": 1024}
    assert found["compiled programs"] == {"path": str(tmp_path / "xla"), "bytes": None}
    assert found["Hugging Face hub"] == {"path": str(no_hub), "bytes": None}


def test_links_do_not_count_twice(tmp_path: Path) -> None:
    """The hub's snapshots are links to its blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x").write_bytes(bytes(100_000))
    (tmp_path / "snapshots").symlink_to(tmp_path / "blobs")
    (tmp_path / "link").symlink_to(tmp_path / "blobs" / "x")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    assert 100_000 <= size_of(tmp_path) < 101_000


# Environment and defaults


def test_variables_are_those_of_the_process(
    capsys: pytest.CaptureFixture[str], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HOME", raising=False)
    variables = json.loads(info(capsys, cache_dir, "--json"))["variables"]
    assert list(variables) == list(VARIABLES)
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["HF_HOME"] is None


def test_the_page_explains_every_variable() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in VARIABLES if f"| `{name}` |" not in page] == []


def test_defaults_are_those_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    rows = {row["option"]: row for row in defaults("paper")}
    options = vars(parse(["reproduce", "paper", "--out", "o"]))
    assert set(rows) == {"--" + name.replace("_", "-") for name in options} - {"--recipe"}
    for row in rows.values():
        value = options[row["option"][2:].replace("-", "_")]
        assert row["value"] == (str(value) if isinstance(value, Path) else value) or (
            row["option"] == "--out"
        )
    assert rows["--model"]["from"] == "recipe paper"
    assert rows["--draws"]["from"] == "package"
    assert rows["--out"] == {"option": "--out", "value": None, "from": "command line"}
    assert rows["--cache-dir"]["from"] == "package"
    sources = {row["option"]: row["from"] for row in defaults("vit-tiny")}
    assert (sources["--model"], sources["--steps"]) == ("command line", "package")


def test_the_environment_moves_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (row,) = [row for row in defaults("paper") if row["option"] == "--cache-dir"]
    expected = {"value": str(tmp_path / "rmtllmf"), "from": "XDG_CACHE_HOME"}
    assert row == {"option": "--cache-dir", **expected}


# The embedded model


def test_it_says_where_the_embedded_model_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache_dir: Path,
) -> None:
    (tmp_path / "config.json").write_bytes(bytes(7))
    monkeypatch.setattr(hub, "embedded_directory", lambda: tmp_path)
    found = json.loads(info(capsys, cache_dir, "--json"))
    assert found["embedded_model"] == {"path": str(tmp_path), "bytes": 7, "error": None}


def test_it_says_when_the_embedded_model_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_dir: Path
) -> None:
    def missing() -> Path:
        raise InputError("nowhere to be found")

    monkeypatch.setattr(hub, "embedded_directory", missing)
    found = json.loads(info(capsys, cache_dir, "--json"))
    assert found["embedded_model"] == {"path": None, "bytes": None, "error": "nowhere to be found"}
    assert "embedded model     not there" in info(capsys, cache_dir)


# For people


def test_without_a_terminal_every_row_is_a_line(
    capsys: pytest.CaptureFixture[str], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    printed = info(capsys, cache_dir, "--recipe", "paper")
    assert not set("─\x1b") & set(printed)
    lines = [line.split() for line in printed.splitlines()]
    assert ["jax", version("jax")] in lines
    assert ["--out", "command", "line", "must", "be", "given"] in lines
    assert [*["--model", "recipe", "paper", "openai/clip-vit-base-patch16"]] in lines
    assert any(line[:2] == ["HF_HUB_OFFLINE", "1"] for line in lines)
    assert any(line[-1:] == [str(cache_dir / "xla")] for line in lines)


def test_on_a_terminal_long_texts_are_wrapped_whole() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=30, color_system=None)
    long = "/a/path/that/is/longer/than/the/terminal"
    print_texts(Sheet("Title", ["what", "path"], [["folder", long]]), console)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= 30 for line in lines)
    (rule,) = [place for place, line in enumerate(lines) if "─" in line]
    assert "".join("".join(lines[rule + 1 :]).split()) == "folder" + long
