"""`rmtllmf completion`: the scripts, run by the shells that they are for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rmtllmf_jax.cli.main import COMMANDS, completion_script, main


def completed_in_bash(*words: str, cwd: Path) -> list[str]:
    """Return what bash is offered for the last of the words."""
    (cwd / "completion.bash").write_text(completion_script("bash"))
    script = """
source completion.bash
complete -p rmtllmf >&2
[[ $(complete -p rmtllmf) =~ -F\\ ([^\\ ]+) ]]
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"${BASH_REMATCH[1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, cwd=cwd
    )
    assert "-o default" in done.stderr, done.stderr  # files, where nothing is offered
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sw"], {"sweep"}),
        (["--quiet", "do"], {"doctor"}),
        (["sweep", "--sc"], {"--scenarios", "--scale"}),
        (["sweep", "--out", "a", "--tra"], {"--trackers", "--transport"}),
        (["--qui"], {"--quiet"}),
        (["fuse", "--dtype", "b"], {"bfloat16"}),
        (["sweep", "--out", "ru"], set()),  # readline's turn
        (["report", "ru"], set()),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert set(completed_in_bash("rmtllmf", *words, cwd=tmp_path)) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_offers_all_commands(tmp_path: Path) -> None:
    assert set(COMMANDS) < set(completed_in_bash("rmtllmf", "", cwd=tmp_path))


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes(tmp_path: Path) -> None:
    (tmp_path / "_rmtllmf").write_text(completion_script("zsh"))
    script = "words=(rmtllmf sw); CURRENT=2; _describe() { print -l ${(P)2} }; source ./_rmtllmf"
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("sweep:"), done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(tmp_path: Path) -> None:
    (tmp_path / "rmtllmf.fish").write_text(completion_script("fish"))
    script = 'source rmtllmf.fish; complete -C "rmtllmf sw"'
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["fish", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.startswith("sweep\t"), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    printed = capsys.readouterr()
    assert printed.out == completion_script(shell)
    assert "import-task-vector" in printed.out
    assert "compgen" not in printed.out
    assert printed.err == ""
