"""A click group that imports a command's module when the command is used, so that starting stays quick."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import click

from mpreg_mq.errors import MessageQueueError

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
ERROR = 1
"""Exit status of an error; click's own for wrong usage is 2."""
BROKEN = 3
"""Exit status where a promise was broken."""


class LazyGroup(click.Group):
    """A group whose commands are known by name, module and one line of help.

    Args:
        commands: by name, the module that holds the command as ``command``, and what it does in one line.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", HELP_NAMES)
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table, which is the order of the help."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now; None where there is none."""
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry[0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and say which one was probably meant where there is none."""
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            near = get_close_matches(args[0], self.lazy, 3) or list(self.lazy)
            ctx.fail(f"No such command {args[0]!r}. Did you mean: {', '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with their lines, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what mpreg-mq raises on purpose, and what the system refuses, is one line on stderr."""
        try:
            return super().invoke(ctx)
        except (MessageQueueError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            click.echo(f"mpreg-mq: {error}", err=True)
            ctx.exit(ERROR)
