"""Events as the commands that list them take and print them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from rich.text import Text

from mpreg_mq.cli.options import MOMENT_HELP, moment, queue_option
from mpreg_mq.cli.output import Output
from mpreg_mq.errors import InvalidOptionError, InvalidTopicError
from mpreg_mq.events import EVENT_TYPES, EventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.replay.endings import ends
from mpreg_mq.replay.formats import format_time, printable
from mpreg_mq.replay.records import EventFilter
from mpreg_mq.replay.source import QUEUE_STREAMS
from mpreg_mq.replay.wording import in_words, record_fields, subject

_BAD = (e.DeliveryFailed, e.LeaseExpired, e.CircuitOpened, e.MessageRejected, e.QuorumMissed)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--queue --message --topic --type --since --until``, given to the command as ``wanted``."""

    @wraps(command)
    def with_filter(
        *args: Any,
        log: EventLog,
        queue: str | None,
        message: str | None,
        topic: str | None,
        type_: str | None,
        since: str | None,
        until: str | None,
        **kwargs: Any,
    ) -> Any:
        try:
            wanted = EventFilter(
                queue, message, topic, type_, moment("--since", since, log), moment("--until", until, log)
            )
        except (InvalidOptionError, InvalidTopicError) as error:
            raise click.UsageError(str(error)) from None
        return command(*args, log=log, wanted=wanted, **kwargs)

    options = (
        queue_option("Only events of this queue."),
        click.option("-m", "--message", help="Only events of messages whose id begins so."),
        click.option("-t", "--topic", help="Only events of messages whose topic matches this pattern."),
        click.option(
            "--type", "type_", type=click.Choice(sorted(EVENT_TYPES)), metavar="TYPE", help="Only events of this type."
        ),
        click.option("--since", help=f"From here on: {MOMENT_HELP}."),
        click.option("--until", help="Up to here; likewise."),
    )
    for option in reversed(options):
        with_filter = option(with_filter)
    return with_filter


def show_record(record: RecordedEvent, output: Output) -> None:
    """Print an event as one line, or as one JSON object."""
    if output.as_json:
        output.record(record_fields(record))
        return
    event = record.event
    place = record.stream.removeprefix(QUEUE_STREAMS)
    line = (
        f"{record.position:>7}  {format_time(event.at)}  {place}  {printable(subject(event)) or '-'}  {in_words(event)}"
    )
    if output.data.is_terminal:
        output.data.print(Text(line, style=_style(event)), soft_wrap=True)
    else:
        output.line(line)


def _style(event: e.Event) -> str:
    if isinstance(event, e.MessageAcknowledged | e.MessageCompleted | e.CircuitClosed):
        return "green"
    return "red" if isinstance(event, _BAD) or ends(event) else ""
