"""Where commands write: data to stdout, as tables for people or as NDJSON; everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])

WIDE = 200
"""Columns of output that goes to no terminal, where nothing is gained by folding lines."""

_encode = msgspec.json.Encoder(enc_hook=repr).encode


class Output:
    """The two streams of a command. NO_COLOR is honoured, and colour goes to terminals only."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        # There is none where the shell has closed it (>&-).
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self.data = Console(width=None if is_terminal else WIDE, highlight=False)
        self.notes = Console(stderr=True, highlight=False)

    def line(self, text: str = "", end: str = "\n") -> None:
        """One line of data, as it stands."""
        click.echo(text + end, nl=False)

    def table(self, table: Table) -> None:
        """A table, without blanks at the ends of lines where it goes to no terminal."""
        if self.data.is_terminal:
            self.data.print(table)
            return
        with self.data.capture() as captured:
            self.data.print(table)
        for line in captured.get().splitlines():
            click.echo(line.rstrip())

    def record(self, fields: Mapping[str, Any]) -> None:
        """One JSON object on a line of its own (NDJSON)."""
        click.echo(_encode(fields))

    def note(self, text: str) -> None:
        """One line for people, on stderr."""
        click.echo(text, err=True)


def json_option(command: F) -> F:
    """``--json``; the command gets an :class:`Output` as ``output``."""
    return click.option(
        "--json", "output", is_flag=True, help="Print JSON lines.", callback=lambda ctx, param, value: Output(value)
    )(command)
