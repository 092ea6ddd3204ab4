"""Arguments and options that commands share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem, split_arg_string

from mpreg_mq.cli.output import Output
from mpreg_mq.cli.remote import SCHEMES, Server
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.events import EventLog
from mpreg_mq.replay.moments import Moment, parse_moment
from mpreg_mq.replay.records import Progress
from mpreg_mq.replay.source import open_history, queue_names

F = TypeVar("F", bound=Callable[..., Any])

MOMENT_HELP = "a position, a time (2026-05-01T10:15Z), 'now', or -5m for five minutes before the last event"
PROGRESS_FROM = 50_000
"""Events from which on a progress bar is shown."""
REDRAW_SECONDS = 0.1


def log_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """``LOG``, opened read-only for the command as ``log`` and closed after it."""

    @wraps(command)
    def with_log(*args: Any, log: str, **kwargs: Any) -> Any:
        with closing(open_history(log)) as history:
            return command(*args, log=history, **kwargs)

    return click.argument("log", type=click.Path())(with_log)


def source_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """``SOURCE``: a log, opened as by :func:`log_argument`, or a server's URL with ``--token``; given as ``source``."""

    @wraps(command)
    def with_source(*args: Any, source: str, token: str | None, **kwargs: Any) -> Any:
        if source.startswith(SCHEMES):
            return command(*args, source=Server(source, token), **kwargs)
        with closing(open_history(source)) as history:
            return command(*args, source=history, **kwargs)

    token_option = click.option(
        "--token", envvar="MPREG_MQ_TOKEN", help="What the server's access rules ask for [$MPREG_MQ_TOKEN]."
    )
    return click.argument("source", type=click.Path())(token_option(with_source))


def _complete_queue(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    # What cannot be read completes to nothing; the command will say why.
    with contextlib.suppress(Exception), closing(open_history(_log_typed(ctx))) as log:
        return [CompletionItem(name) for name in queue_names(log) if name.startswith(incomplete)]
    return []


def _log_typed(ctx: click.Context) -> str:
    """The log on the command line; click has not parsed arguments where an option still wants its value."""
    typed = ctx.params.get("log") or ctx.params.get("source")
    words = [typed] if typed else split_arg_string(os.environ.get("COMP_WORDS", ""))
    return next(word for word in words if Path(word).is_file())


def queue_option(help: str = "Only this queue.", *, required: bool = False) -> Callable[[F], F]:
    """``--queue``, which completes to the queues of the log."""
    return click.option("-q", "--queue", required=required, help=help, shell_complete=_complete_queue)


def moment(name: str, text: str | None, log: EventLog) -> Moment | None:
    """The moment of an option; what is none is a usage error.

    Raises:
        click.BadParameter: the text names no moment.
    """
    if text is None:
        return None
    try:
        return parse_moment(text, log)
    except InvalidOptionError as error:
        raise click.BadParameter(str(error), param_hint=name) from None


@contextlib.contextmanager
def progress(
    output: Output, log: EventLog, what: str, passes: int = 1, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """A progress bar on stderr for a long log, where somebody sees it; nothing otherwise.

    It is drawn by who reads the log and not by a thread of its own, which would take turns from the reading.
    """
    last = log.last_position()
    if last < PROGRESS_FROM or not output.notes.is_terminal:
        yield lambda position: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.notes, transient=True, auto_refresh=False, get_time=clock) as bar:
        task = bar.add_task(what, total=last * passes)
        bar.refresh()
        done = reached = 0
        drawn = clock()

        def advance(position: int) -> None:
            nonlocal done, reached, drawn
            if position < reached:
                done += reached
            reached = position
            due = clock() - drawn >= REDRAW_SECONDS
            bar.update(task, completed=min(done + position, last * passes), refresh=due)
            if due:
                drawn = clock()

        yield advance
