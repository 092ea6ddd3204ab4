"""The command line as such: help, errors, exit statuses, and that starting it imports next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mpreg_mq.cli.commands import root
from mpreg_mq.cli.lazy import LazyGroup


def _all_commands(group: LazyGroup, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            found.append(((*path, name), command))
            if isinstance(command, LazyGroup):
                found += _all_commands(command, (*path, name))
    return found


assert isinstance(root, LazyGroup)
COMMANDS = [pytest.param(path, id=" ".join(path)) for path, _ in _all_commands(root)]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    """Given any command, when asked for --help or -h, then it says what it does and shows an example of itself."""
    for flag in ("--help", "-h"):
        result = CliRunner().invoke(root, [*path, flag], prog_name="mpreg-mq")
        assert result.exit_code == 0, result.output
        assert "Example" in result.output
        assert f"mpreg-mq {' '.join(path)}" in result.output.split("Example", 1)[1]


def test_help_imports_no_command() -> None:
    """Given a new process, when it prints the help, then no command's module and no mpreg was imported."""
    code = (
        "import sys\n"
        "from mpreg_mq.cli.commands import root\n"
        "root(['--help'], standalone_mode=False)\n"
        "loaded = [m for m in sys.modules if m.startswith('mpreg_mq.cli.') or m.split('.')[0] in ('mpreg', 'rich')]\n"
        "assert sorted(loaded) == ['mpreg_mq.cli.commands', 'mpreg_mq.cli.lazy'], loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "log" in result.stdout


def test_no_command_imports_mpreg() -> None:
    """Given every command's module is imported, then mpreg was not."""
    groups = [command for _, command in _all_commands(root) if isinstance(command, LazyGroup)]
    modules = sorted({module for group in (root, *groups) for module, _ in group.lazy.values()})
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert 'mpreg' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest() -> None:
    """Given a misspelt command, then the exit status is 2 and the message names the one that was meant."""
    result = CliRunner().invoke(root, ["lgo", "info"])
    assert result.exit_code == 2
    assert "Did you mean: log" in result.output


def test_an_error_is_one_line_on_stderr(tmp_path: Path) -> None:
    """Given a log that does not exist, then nothing is created, stdout is empty and the exit status is 1."""
    path = tmp_path / "none.db"
    result = CliRunner().invoke(root, ["log", "info", str(path)], prog_name="mpreg-mq")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mpreg-mq: open")
    assert "there is no such file" in result.stderr
    assert not path.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_know_the_program(shell: str) -> None:
    """Given a shell, when asked for its completion script, then it calls mpreg-mq."""
    result = CliRunner().invoke(root, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert "_MPREG_MQ_COMPLETE" in result.stdout


def test_completion_completes_commands() -> None:
    """Given a half-typed word, when the shell asks, then the commands that begin so are offered."""
    result = CliRunner().invoke(
        root,
        [],
        prog_name="mpreg-mq",
        env={"_MPREG_MQ_COMPLETE": "bash_complete", "COMP_WORDS": "mpreg-mq lo", "COMP_CWORD": "1"},
    )
    assert result.stdout.split() == ["plain,log"]
