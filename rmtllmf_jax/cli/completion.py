"""`rmtllmf completion`: sub-commands and options at the press of the tabulator key."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from typing import Literal

import tyro

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


def completion_script(shell: str, parse: Callable[[list[str]], object]) -> str:
    """Return tyro's script for a shell; in bash with files as readline completes them.

    `parse` reads the arguments of the whole command line.
    """
    with redirect_stdout(StringIO()) as printed, suppress(SystemExit):
        parse(["--tyro-write-completion", shell, "-"])
    script = printed.getvalue()
    return script.replace(_FILES, "COMPREPLY=()") + _BASH if shell == "bash" else script
