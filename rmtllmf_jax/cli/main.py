"""The entry point: parse, run, and turn bad input into one clear line.

Exit codes: 0 done, 1 `doctor` found an error or `gradcheck` a gradient that differs, 2 bad input or
usage, 130 stopped by Ctrl-C, 141 nobody reads what is printed any more (`| head`). Anything else is
a bug and keeps its traceback.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Annotated, Any, Protocol, TextIO, runtime_checkable

import tyro

from rmtllmf_jax.cli.channel import Channel
from rmtllmf_jax.cli.doctor import Doctor
from rmtllmf_jax.cli.export import Export
from rmtllmf_jax.cli.finetune import Finetune
from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.cli.gradcheck import Gradcheck
from rmtllmf_jax.cli.import_task_vector import ImportTaskVector
from rmtllmf_jax.cli.report import Report
from rmtllmf_jax.cli.reproduce import Reproduce, changed_defaults
from rmtllmf_jax.cli.sweep import Sweep
from rmtllmf_jax.common.errors import InputError


@runtime_checkable
class Command(Protocol):
    """A sub-command: options that have been read."""

    def run(self) -> None:
        """Run it."""
        ...


def _defaults(changes: Mapping[str, Any]) -> Reproduce:
    """Return `reproduce` before anything is given: changed defaults, and what must be given."""
    options = object.__new__(Reproduce)  # tyro.MISSING has none of the types of __init__
    for field in fields(Reproduce):
        value = field.default
        if field.default_factory is not MISSING:
            value = field.default_factory()
        setattr(options, field.name, tyro.MISSING if value is MISSING else value)
    vars(options).update(changes)
    return options


def parse(argv: Sequence[str]) -> Command:
    """Return the sub-command that the arguments describe."""
    subcommand = tyro.conf.subcommand
    reproduce = _defaults(changed_defaults(argv))
    commands = (
        Annotated[Reproduce, subcommand("reproduce", default=reproduce)]
        | Annotated[Finetune, subcommand("finetune")]
        | Annotated[Sweep, subcommand("sweep")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Fuse, subcommand("fuse")]
        | Annotated[ImportTaskVector, subcommand("import-task-vector")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Doctor, subcommand("doctor")]
        | Annotated[Channel, subcommand("channel")]
        | Annotated[Gradcheck, subcommand("gradcheck")]
    )
    return tyro.cli(
        commands,
        args=argv,
        prog="rmtllmf",
        description="Fuse task vectors that arrive over noisy and attacked MIMO uplinks.",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
    )


@contextmanager
def _progress_in_log() -> Iterator[None]:
    """Write the lines that stand for a progress bar where there is no terminal (a batch job)."""
    logger = logging.getLogger("rmtllmf_jax.progress")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _until_nobody_reads() -> Iterator[None]:
    """End quietly, with the exit code of other tools, when the reader of a pipe has gone."""
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, and not when Python is on its way out
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _nobody_reads(stream)]
        if not closed:
            raise  # another pipe: a bug
        for stream in closed:  # what is still in the buffer has to go somewhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)


def _nobody_reads(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    with _until_nobody_reads():
        try:
            with _progress_in_log():
                parse(arguments).run()
        except InputError as error:
            print(f"rmtllmf: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("rmtllmf: stopped; the same command goes on from here.", file=sys.stderr)
            sys.exit(130)
