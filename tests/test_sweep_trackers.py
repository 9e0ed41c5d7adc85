"""Trackers write what they are told, are closed whatever happens, and say which extra they need."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.sweep.trackers import TRACKERS, get_tracker

CONFIGURATION = {"preset": "paper", "seeds": 2, "root": Path("runs")}
real_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)


class FakeWandb(SimpleNamespace):
    """The part of wandb that is used, recording its calls."""

    class Error(Exception):
        """As in wandb, the class of all that it raises."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def init(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("init", options))
        return SimpleNamespace(
            log=lambda values, step: self.calls.append(("log", values, step)),
            finish=lambda: self.calls.append(("finish",)),
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_nothing_is_imported_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for package in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it would raise
    with get_tracker((), tmp_path, CONFIGURATION) as tracker:
        tracker.log(0, {"x": 1.0})


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs .* {package}, .*rmtllmf-jax\[{name}\]"):
        get_tracker([name], tmp_path, CONFIGURATION).__enter__()


def test_an_unknown_tracker_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"unknown tracker 'wandbb'\. Did you mean 'wandb'"):
        get_tracker(["wandbb"], tmp_path, CONFIGURATION).__enter__()


def test_trackers_need_a_local_folder(wandb: FakeWandb):
    with pytest.raises(InputError, match=r"gs://b/run: trackers \(wandb\) write to a local folder"):
        get_tracker(["wandb"], "gs://b/run", CONFIGURATION).__enter__()
    assert wandb.calls == []


def test_wandb_gets_every_step_once(tmp_path: Path, wandb: FakeWandb):
    folder = tmp_path / "new" / "run"
    with get_tracker(["wandb", "wandb"], folder, CONFIGURATION) as tracker:
        tracker.log(3, {"cells/s": 1.5, "accuracy": 0.25})
        tracker.log(9, {"cells/s": 2.5})
    options = {"project": "rmtllmf", "dir": str(folder), "config": CONFIGURATION}
    assert wandb.calls == [
        ("init", options),
        ("log", {"cells/s": 1.5, "accuracy": 0.25}, 3),
        ("log", {"cells/s": 2.5}, 9),
        ("finish",),
    ]
    assert folder.is_dir()


def test_wandb_s_own_variable_names_the_project(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with get_tracker(["wandb"], tmp_path, {}):
        assert wandb.calls[0][1]["project"] == "mine"


def test_what_wandb_refuses_is_said_with_the_way_out(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
):
    def init(**options: Any) -> None:
        raise wandb.Error("no API key configured\nsee our page")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(InputError, match=r"\(no API key configured\).*WANDB_MODE=offline"):
        get_tracker(["wandb"], tmp_path, {}).__enter__()


def run(*names: str, folder: Path, error: BaseException | None = None) -> None:
    with get_tracker(names, folder, CONFIGURATION) as tracker:
        tracker.log(1, {"x": 1.0})
        if error:
            raise error


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_all_are_closed_when_the_run_ends_badly(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    other = SimpleNamespace(log=lambda step, values: None, close=lambda: closed.append(1))
    closed: list[int] = []
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda folder, configuration: other)
    with pytest.raises(type(error)):
        run("tensorboard", "wandb", folder=tmp_path, error=error)
    assert wandb.calls[-1] == ("finish",)
    assert closed == [1]


def test_one_that_cannot_start_closes_those_before(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match="needs the package tensorboardX"):
        run("wandb", "tensorboard", folder=tmp_path)
    assert wandb.calls[-1] == ("finish",)


def events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Return curves and texts of the event files in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    curves: dict[str, list[tuple[int, float]]] = {}
    texts: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, event, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("tensor"):
                    texts[value.tag] = value.tensor.string_val[0].decode()
                else:
                    curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves, texts


@real_tensorboard
def test_tensorboard_s_event_files_hold_curves_and_configuration(tmp_path: Path):
    with get_tracker(["tensorboard"], tmp_path / "run", CONFIGURATION) as tracker:
        tracker.log(1, {"cells/s": 1.5, "accuracy": 0.25})
        tracker.log(7, {"cells/s": 2.5})
    curves, texts = events(tmp_path / "run" / "tensorboard")
    assert curves == {"cells/s": [(1, 1.5), (7, 2.5)], "accuracy": [(1, 0.25)]}
    (text,) = texts.values()
    found = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert found == CONFIGURATION | {"root": "runs"}


@real_tensorboard
def test_tensorboard_in_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match=r"run/tensorboard: cannot be written"):
        run("tensorboard", folder=tmp_path / "run")
