"""The entry point: parse, run, and turn bad input into one clear line.

Exit codes: 0 done, 1 `doctor`, `gradcheck` or a dry run found something wrong, 2 bad input or
usage, a full disk, or no device, 130, 143 and 129 stopped by Ctrl-C, SIGTERM and SIGHUP, 141 the
reader of the output closed it (`| head`). Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import operator
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import tyro

from rmtllmf_jax.cli.apply_task_vector import ApplyTaskVector
from rmtllmf_jax.cli.channel import Channel
from rmtllmf_jax.cli.doctor import Doctor
from rmtllmf_jax.cli.earlier import as_now
from rmtllmf_jax.cli.evaluate import Evaluate
from rmtllmf_jax.cli.export import Export
from rmtllmf_jax.cli.finetune import Finetune
from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.cli.generate import Generate
from rmtllmf_jax.cli.gradcheck import Gradcheck
from rmtllmf_jax.cli.help_text import WIDTH, NoPlace, described, help_registry, line_up
from rmtllmf_jax.cli.import_task_vector import ImportTaskVector
from rmtllmf_jax.cli.info import Info
from rmtllmf_jax.cli.options import default_of
from rmtllmf_jax.cli.predict import Predict
from rmtllmf_jax.cli.report import Report
from rmtllmf_jax.cli.reproduce import Reproduce, changed_defaults, recipe_in
from rmtllmf_jax.cli.statistics import Statistics
from rmtllmf_jax.cli.streams import open_streams, refuse, until_nobody_reads
from rmtllmf_jax.cli.sweep import Sweep
from rmtllmf_jax.common.errors import InputError, first_line, require_known
from rmtllmf_jax.common.extras import needed_by
from rmtllmf_jax.common.files import as_os_error
from rmtllmf_jax.common.interrupts import exit_code, stopping
from rmtllmf_jax.common.progress import silenced

# What tyro offers for files are names, in which readline then does not know folders from files.
_FILES = 'COMPREPLY=($(compgen -f -- "$cur"))'

_BASH = """
# Where tyro has nothing to offer, readline offers files.
_rmtllmf() {
  _tyro_rmtllmf "$@"
  [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=()
}
complete -o default -F _rmtllmf rmtllmf
"""


@runtime_checkable
class Command(Protocol):
    """A sub-command: options that have been read."""

    def run(self) -> None:
        """Run it."""
        ...


@dataclass(kw_only=True)
class Completion:
    """Print the script that makes a shell complete sub-commands, options, choices and files.

    For bash, put the example into ~/.bashrc. For zsh, write the script into a folder of $fpath:
    rmtllmf completion zsh > "${fpath[1]}/_rmtllmf". For fish:
    rmtllmf completion fish > ~/.config/fish/completions/rmtllmf.fish.

    Example: eval "$(rmtllmf completion bash)"
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""

    def run(self) -> None:
        """Run the sub-command."""
        print(completion_script(self.shell), end="")


def completion_script(shell: str) -> str:
    """Return tyro's script for a shell; in bash with files as readline completes them."""
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        parse(["--tyro-write-completion", shell, "-"])
    script = printed.getvalue()
    return script.replace(_FILES, "COMPREPLY=()") + _BASH if shell == "bash" else script


COMMANDS: Mapping[str, type[Command]] = {
    "reproduce": Reproduce,
    "finetune": Finetune,
    "sweep": Sweep,
    "report": Report,
    "fuse": Fuse,
    "import-task-vector": ImportTaskVector,
    "apply-task-vector": ApplyTaskVector,
    "statistics": Statistics,
    "export": Export,
    "evaluate": Evaluate,
    "predict": Predict,
    "generate": Generate,
    "doctor": Doctor,
    "channel": Channel,
    "gradcheck": Gradcheck,
    "info": Info,
    "completion": Completion,
}
"""The sub-commands, in the order of `--help`."""

_OVERVIEW = """usage: rmtllmf COMMAND [--quiet] [OPTIONS]

 Fuse task vectors that arrive over noisy and attacked MIMO uplinks.

 Example: rmtllmf reproduce demo --out runs/demo

 commands
 ------------------------------------------------------------------------------
{}

 options
 ------------------------------------------------------------------------------
{}

 Exit codes: 0 done, 1 doctor, gradcheck or a dry run found something wrong, 2
 bad input or usage, a full disk or no device, 130 stopped by Ctrl-C (143 by
 SIGTERM, 129 by SIGHUP), 141 the reader of the output closed it."""

_QUIET = "--quiet"
_QUIET_HELP = "Print only results and errors: no progress, notes or warnings."
_OPTIONS = {
    "-h, --help": "Show this page. rmtllmf COMMAND --help has the options of a command, their "
    "defaults and units, and examples.",
    "--version": "Print the version.",
    _QUIET: _QUIET_HELP,
}
_DOWNLOADS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _defaults(changes: Mapping[str, Any]) -> Reproduce:
    """Return `reproduce` before anything is given: changed defaults, and what must be given."""
    options = object.__new__(Reproduce)  # tyro.MISSING has none of the types of __init__
    for option in fields(Reproduce):
        value = default_of(option)
        setattr(options, option.name, tyro.MISSING if value is MISSING else value)
    vars(options).update(changes)
    return options


def parse(argv: Sequence[str]) -> Command:
    """Return the sub-command that the arguments describe."""
    return _read(argv)[0]


def _read(argv: Sequence[str]) -> tuple[Command, bool]:
    """Return the sub-command that the arguments describe, and if it is to be quiet."""
    argv = as_now(argv)
    words = [word for word in argv if word != _QUIET]
    if words == ["--version"]:
        print(f"rmtllmf {version('rmtllmf-jax')}")
        sys.exit(0)
    if words in ([], ["-h"], ["--help"]):
        print(overview())
        sys.exit(0)
    if not words[0].startswith("-"):
        require_known("command", words[0], COMMANDS)
    reproduces = words[:1] == ["reproduce"]
    commands: list[Any] = []
    for name, kind in COMMANDS.items():
        about: dict[str, Any] = {
            "description": described(kind) if name == words[0] else _first_line(kind)
        }
        if kind is Reproduce:
            about["default"] = _defaults(changed_defaults(words) if reproduces else {})
        commands.append(Annotated[kind, tyro.conf.subcommand(name, **about)])
    quiet = field(default=False, metadata={"help": _QUIET_HELP})
    command = functools.reduce(operator.or_, commands)
    line = make_dataclass("CommandLine", [("command", command), ("quiet", bool, quiet)])
    read: Any = tyro.cli(
        line,
        args=argv,
        prog="rmtllmf",
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.CascadeSubcommandArgs,  # --quiet before the sub-command or after it
        ),
        registry=help_registry(),
    )
    if reproduces and (seen := recipe_in(words[1:])) != read.command.recipe:
        raise InputError(  # the defaults would be those of another recipe
            f"the recipe is {read.command.recipe!r} or {seen!r}: give it right after `reproduce`."
        )
    return read.command, read.quiet


def overview() -> str:
    """Return the page of `rmtllmf --help`: every command in a line or two, and the exit codes."""
    commands = {name: _first_line(kind) for name, kind in COMMANDS.items()}
    entries = ("\n".join(map(line_up, each, each.values())) for each in (commands, _OPTIONS))
    return _OVERVIEW.format(*entries)


def _first_line(command: type) -> str:
    return (command.__doc__ or "").partition("\n")[0]


class _Page(io.StringIO):
    """What tyro prints for standard output, before it is shown there."""

    def __init__(self) -> None:
        super().__init__()
        self._to = sys.stdout

    def isatty(self) -> bool:
        return self._to.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._to.encoding

    def text(self) -> str:
        """Return the page with its usage in lines, and one empty line at a time."""
        usage, *rest = self.getvalue().split("\n")
        lines = textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 7, break_on_hyphens=False)
        text = "\n".join(line.rstrip() for line in [*(lines or [""]), *rest])
        return re.sub(r"\n{3,}", "\n\n", text)


@contextmanager
def _plain_help() -> Iterator[None]:
    """Take the boxes off tyro's help where it goes to a file, and the colours with NO_COLOR."""
    options = tyro._experimental_options
    before = options.copy()
    colourless = bool(os.environ.get("NO_COLOR"))
    options["ansi_codes"] &= not colourless
    options["utf8_boxes"] &= sys.stdout.isatty() and not colourless
    page = _Page()
    try:
        with redirect_stdout(page):
            yield
    finally:
        options.update(before)
        print(page.text(), end="")


@contextmanager
def _progress_in_log() -> Iterator[None]:
    """Write the lines that stand for a progress bar where there is no terminal (a batch job)."""
    logger = logging.getLogger("rmtllmf_jax.progress")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    before = logger.propagate
    logger.propagate = False  # orbax gives the root logger a handler: every line would come twice
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


@contextmanager
def _switched_on(*names: str) -> Iterator[None]:
    """Set environment variables to 1 where the user has not set them."""
    added = [name for name in names if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _named(argv: Sequence[str]) -> str:
    """Return the command among the arguments."""
    return next(word for word in argv if word in COMMANDS)


def _said_by_the_machine(error: Exception) -> str | None:
    """Return what a disk, a file or a device has against going on; `None` for a bug."""
    if isinstance(error, RuntimeError | AssertionError) and not _has_devices():
        return (
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: JAX cannot start on it "
            f"({first_line(error)}). Set it to what this machine and this installation have (cpu "
            "always works), or leave it out."
        )
    told = None if isinstance(error, BrokenPipeError) else as_os_error(error)
    full = told is not None and told.errno in _FULL
    if told is None or not (full or (isinstance(error, OSError) and told.filename)):
        return None
    hint = " Make room, then the same command resumes." if full else ""
    return f"{told.filename or 'a file or standard output'}: {told.strerror}.{hint}"


def _has_devices() -> bool:
    """Return whether JAX, if it is in use, starts on a device."""
    if "jax" not in sys.modules:
        return True
    import jax

    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    open_streams()
    with until_nobody_reads():
        try:
            with _plain_help():
                command, quiet = _read(arguments)
            # Transformers would tell everybody to install torch.
            hidden = ("TRANSFORMERS_NO_ADVISORY_WARNINGS", *(_DOWNLOADS if quiet else ()))
            around = silenced() if quiet else _progress_in_log()
            with _switched_on(*hidden), around, stopping(), needed_by(_named(arguments)):
                command.run()
        except (InputError, NoPlace) as error:
            refuse(str(error))
        except KeyboardInterrupt as stop:
            print("rmtllmf: stopped; the same command resumes from here.", file=sys.stderr)
            sys.exit(exit_code(stop))
        except Exception as error:
            if (message := _said_by_the_machine(error)) is None:
                raise
            refuse(message)
