"""What the command line says, and how much: help, examples, colours, `--quiet`, exit codes."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import command
from cost_fixtures import TINY, backbone_of
from huggingface_hub import constants

from rmtllmf_jax.channel import AIR, ATTACKS, RECEIVERS
from rmtllmf_jax.channel import PRESETS as CHANNELS
from rmtllmf_jax.cli import main as entry
from rmtllmf_jax.cli.main import COMMANDS, main, parse
from rmtllmf_jax.cli.options import default_of
from rmtllmf_jax.cli.plan import print_json
from rmtllmf_jax.cli.reproduce import Reproduce
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.interrupts import Stopped
from rmtllmf_jax.common.progress import note, progress_bar, silenced
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.defences import PROTECTIONS, REPAIRS
from rmtllmf_jax.evaluation import METRICS
from rmtllmf_jax.sweep.devices import Devices, Speed
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.plan import plan
from rmtllmf_jax.sweep.plan_parts import TaskSize
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.recipes import RUN_RECIPES
from rmtllmf_jax.uplink import ESTIMATORS, POISONS, TRANSPORTS

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
UNITS = re.compile(
    r"\bdB\b|steps?|images?|pixels|epochs|share|relative|rms\(tau\)|learning rate|decay|norm\b"
    r"|samples|realisations|channels|draws|repetitions|cells|devices|processes|bits|coefficient"
    r"|tokens?|temperature|probability|tasks|rank|standard deviation|TFLOP/s|GB|divides|which one",
    re.IGNORECASE,
)
"""Words that say what a number counts or measures."""
NAMES = pytest.mark.parametrize("name", COMMANDS)


def printed_help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def helps(text: str) -> dict[str, str]:
    """Return the texts of a help page by option or positional argument; `--help` is left out."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if not line.startswith("   "):  # an option, a title, or nothing
            entry = re.match(r"  (\S+?),?(?: \S+)*(?:  +|$)", line)
            name, line = (entry[1], line[entry.end() :]) if entry else ("", "")
        if name not in ("", "-h"):
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


# Help


@NAMES
def test_every_option_says_what_it_is_and_its_default(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = helps(printed_help(capsys, name))
    kind: typing.Any = COMMANDS[name]
    assert len(texts) == len(fields(kind)) + 1  # and --quiet
    for option, text in texts.items():
        what, ending = re.fullmatch(
            r"(.*?) ?(\(required\)|\(optional\)|\(default: .*\))", text
        ).groups()
        assert what.endswith("."), option
        assert len(what.split()) >= 2, option
        assert ending not in ("(default: )", "(default: '')", "(default: None)"), option
    nothing = [each for each in fields(kind) if default_of(each) in (None, (), "")]
    assert sum(text.endswith(" (optional)") for text in texts.values()) == len(nothing)


def test_help_is_within_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], *([name] for name in COMMANDS)):
        page = printed_help(capsys, *words)
        assert [line for line in page.splitlines() if len(line) > 80 or line != line.rstrip()] == []
        assert "\n\n\n" not in page
        assert "{None" not in page


def test_options_are_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed_help(capsys, "reproduce")
    titles = re.findall(r"^ (\S.*) (?:options|arguments)$|^ (options)$", page, re.MULTILINE)
    assert ["".join(title) for title in titles] == [
        *("positional", "options", "model and images", "columns and splits", "texts"),
        *("fine-tuning", "LoRA"),
        "speed and memory",
        *("grid", "channel", "merging", "realignment", "evaluation", "dry run"),
    ]


@NAMES
def test_every_number_has_a_unit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = helps(printed_help(capsys, name))
    for option, hint in typing.get_type_hints(COMMANDS[name]).items():
        numeric = {int, float} & {hint, *typing.get_args(hint)}
        if numeric and option not in ("seed", "scale"):
            text = texts[f"--{option}".replace("_", "-")].partition("(default")[0]
            assert UNITS.search(text), f"--{option}: {text}"


@NAMES
def test_the_examples_are_commands_that_can_be_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = printed_help(capsys, name).replace(" \\\n", " ")
    (block,) = re.findall(r"^ Examples?:\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    for example in block.splitlines():
        words = shlex.split(re.sub(r'^ *eval "\$\((.*)\)"$', r"\1", example))
        assert words[:2] == ["rmtllmf", name]
        assert isinstance(parse(words[1:]), COMMANDS[name])


def test_the_overview_has_a_line_a_command_and_the_exit_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed_help(capsys)
    for name, kind in COMMANDS.items():
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
        assert kind.__doc__.partition("\n")[0].split()[0] in text
    assert text.count("Example:") == 1
    assert "--quiet" in text
    assert set(re.findall(r"\b\d+\b", text.partition("Exit codes: ")[2])) == {
        *("0", "1", "2", "129", "130", "141", "143")
    }


def test_lines_run_on_and_arguments_have_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (text,) = [
        text for name, text in helps(printed_help(capsys, "sweep")).items() if "axis" in name
    ]
    assert text.endswith("The noise of a draw is the same at every level. (optional)")
    lines = [line.strip() for line in printed_help(capsys, "sweep").splitlines()]
    assert "white," not in [line.split()[-1] for line in lines if line]
    usage = printed_help(capsys, "import-task-vector").splitlines()[0]
    assert usage.startswith("usage: rmtllmf import-task-vector [-h] BASE FINETUNED ")


def test_what_channel_names_is_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    texts = helps(printed_help(capsys, "channel"))
    assert [each for each in ATTACKS if each not in texts["--attack"]] == []
    assert [each for each in CHANNELS if each not in texts["--preset"]] == []


def test_what_sweep_names_is_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    texts = helps(printed_help(capsys, "sweep"))
    named = {
        "--scenarios": {**ATTACKS, **POISONS},
        "--protections": {**PROTECTIONS, **AIR, **ESTIMATORS, **REPAIRS},
        "--order": RECEIVERS,
        "--transport": TRANSPORTS,
    }
    for option, known in named.items():
        assert [each for each in known if each not in (texts[option] + " none")] == [], option


def test_metrics_named_are_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    texts = helps(printed_help(capsys, "evaluate"))
    assert [each for each in METRICS if each not in texts["--metric"]] == []


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from rmtllmf_jax.cli.main import COMMANDS, main
for words in ([], *([name] for name in COMMANDS)):
    try:
        main([*words, "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
heavy = "jax numpy flax optax orbax transformers huggingface_hub pandas pyarrow matplotlib sklearn"
print({module for module in heavy.split() if module in sys.modules}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert done.stdout.count("usage: rmtllmf") == 1 + len(COMMANDS)


# Colours and lines


def on_terminal(*words: str, **variables: str) -> str:
    """Return what a command prints on a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", **variables}
    process = subprocess.Popen(command(*words), stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    printed = b""
    try:
        while block := os.read(ours, 65536):
            printed += block
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return printed.decode()


def test_colours_and_boxes_are_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    looks = on_terminal("report", "--help", NO_COLOR="")
    assert "╭" in looks
    assert "\x1b[" in looks
    for plain in (on_terminal("report", "--help", NO_COLOR="1"), printed_help(capsys, "report")):
        assert "results.parquet" in plain
        assert not set("╭─│\x1b") & set(plain)


def test_transformers_does_not_ask_for_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    monkeypatch.setattr("rmtllmf_jax.cli.report.Report.run", lambda _: print(os.environ[name]))
    for before, during in ((None, "1"), ("0", "0")):  # the user's own wins
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
        main(["report", "run"])
        assert capsys.readouterr().out.strip() == during
        assert os.environ.get(name) == before


# --quiet


def busy(_: object) -> None:
    """Say all that a command can say."""
    with progress_bar("busy", 2) as advance:
        advance(1)
    note("a note")
    logging.getLogger("rmtllmf_jax.progress").info("a line of progress")
    logging.getLogger("rmtllmf_jax.sweep.parts").warning("a warning")
    logging.getLogger("rmtllmf_jax.sweep.parts").error("an error")
    print("downloads hidden:", os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_quiet_leaves_results_and_errors(
    place: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr("rmtllmf_jax.cli.report.Report.run", busy)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    words = ["report", "run"]
    main([*words[:place], "--quiet", *words[place:]])
    assert capfd.readouterr() == ("downloads hidden: 1\n", "")
    assert caplog.messages == ["an error"]
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ


def test_without_quiet_there_is_more(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr("rmtllmf_jax.cli.report.Report.run", busy)
    also = logging.StreamHandler()  # orbax brings one
    logging.getLogger().addHandler(also)
    main(["report", "run"])
    logging.getLogger().removeHandler(also)
    found = capfd.readouterr()
    assert found.out == "a note\ndownloads hidden: None\n"
    said = ("a line of progress", "a warning", "an error")
    assert [found.err.count(each) for each in said] == [1, 1, 1]
    assert caplog.messages == ["a warning", "an error"]


def test_silence_ends_with_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    def stop_in_silence() -> None:
        with silenced():
            assert log.level == logging.ERROR
            note("not heard")
            raise RuntimeError

    log = logging.getLogger("rmtllmf_jax")
    before = log.level
    with pytest.raises(RuntimeError):
        stop_in_silence()
    note("heard")
    assert log.level == before
    assert capsys.readouterr().out == "heard\n"


def test_quiet_is_no_option_with_a_value() -> None:
    """The recipe after it still sets the defaults."""
    found = parse(["reproduce", "--quiet", "paper", "--out", "o"])
    assert isinstance(found, Reproduce)
    assert found.model == "openai/clip-vit-base-patch16"


def test_the_variable_that_hides_downloads_is_the_hubs() -> None:
    assert hasattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS")


# Exit codes


@pytest.mark.parametrize(
    ("ends_with", "code"),
    [
        (None, 0),
        (InputError("bad"), 2),
        (KeyboardInterrupt(), 130),
        (Stopped(signal.SIGTERM), 143),
        (Stopped(signal.SIGHUP), 129),
    ],
)
def test_exit_codes(
    ends_with: BaseException | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_: object) -> None:
        if ends_with is not None:
            raise ends_with

    monkeypatch.setattr("rmtllmf_jax.cli.report.Report.run", run)
    try:
        main(["report", "run"])
        seen = 0
    except SystemExit as stopped:
        seen = stopped.code
    assert seen == code
    assert capsys.readouterr().err == {
        0: "",
        2: "rmtllmf: bad\n",
    }.get(code, "rmtllmf: stopped; the same command resumes from here.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nonsense"], "--help"),
        (["sweep"], "--help"),
        (["report", "a", "--nonsense", "1"], "--help"),
        (["sweep", "--out", "o", "--scenaros", "ideal"], "--scenarios"),
        (["completion", "tcsh"], "tcsh"),
        (["info", "--recipe", "papper"], "unknown recipe 'papper'. Did you mean 'paper'?"),
    ],
)
def test_usage_that_cannot_be_read_is_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


# --json


def test_a_plan_as_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tuple(TaskSize.of(task_facts(name)) for name in ("dtd", "mnist"))
    grid = Grid((("dtd", "mnist"),), ("clean",), ("none",), 1, 1)
    found = plan(backbone_of(TINY), tasks, grid, Settings(), RUN_RECIPES["paper"])
    print_json(found, Devices("TPU v4", 4, 1000), Speed(2e12, 1e12, 1e11))
    printed = json.loads(capsys.readouterr().out)
    assert printed["cells"] == {"clean": {"none": 1}}
    assert printed["hours"] == pytest.approx(sum(part["hours"] for part in printed["work"]))
    assert printed["hours"] == pytest.approx(found.hours(Speed(2e12, 1e12, 1e11)))
    assert printed["disk"] == sum(file["size"] for file in printed["files"]) > 0
    assert printed["flops"] == found.flops
    assert printed["devices"] == {"kind": "TPU v4", "count": 4, "memory": 1000, "cpu": False}
    print_json(found, Devices("unheard of", 1, None), None)
    printed = json.loads(capsys.readouterr().out)
    assert printed["hours"] is None
    assert {part["hours"] for part in printed["work"]} == {None}


# The page


def test_the_page_has_all_commands_and_codes() -> None:
    page = PAGE.read_text()
    for name in COMMANDS:
        assert f"`{name}`" in page
    codes = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert codes == ["0", "1", "2", "129", "130", "141", "143"]
    assert [code for code in codes if code not in entry.__doc__] == []
