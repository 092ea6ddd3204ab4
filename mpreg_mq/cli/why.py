"""``mpreg-mq why``."""

from __future__ import annotations

from typing import Any

import attrs
import click

from mpreg_mq.cli.options import MOMENT_HELP, log_argument, moment, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog
from mpreg_mq.replay.formats import format_time, printable
from mpreg_mq.replay.why import Explanation, why


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq why orders.db 12\n  mpreg-mq why orders.db 12-a1b2 --at 2026-05-01T10:15Z\n"
    "  mpreg-mq why orders.db @4711        the send that was refused at position 4711\n"
    "  mpreg-mq why orders.db invoice-77   who holds the deduplication key invoice-77"
)
@log_argument
@click.argument("message")
@click.option("--at", "at", help=f"When: {MOMENT_HELP} [the end of the log].")
@queue_option("The queue, where several have such a message.")
@json_option
def command(log: EventLog, message: str, at: str | None, queue: str | None, output: Output) -> None:
    """Why MESSAGE is where it is, in plain words, from the rules that the queue decides by.

    MESSAGE is an id, its number or its beginning; or a deduplication key; or @ and the position of a refused send.
    """
    moment_ = moment("--at", at, log)
    with progress(output, log, "reading", 2) as advance:
        answer = why(log, message, at=moment_, queue=queue, progress=advance)
    if output.as_json:
        output.record(_fields(answer))
        return
    following: Explanation | None = answer
    while following is not None:
        _show(following, output)
        following = following.then


def _show(answer: Explanation, output: Output) -> None:
    output.line(f"{answer.queue}/{answer.subject} at {format_time(answer.now)}")
    output.line(f"  {printable(answer.answer)}")
    for fact in answer.facts:
        output.line(f"  - {printable(fact)}")


def _fields(answer: Explanation) -> dict[str, Any]:
    return attrs.asdict(answer, value_serializer=_plain)


def _plain(instance: Any, field: Any, value: Any) -> Any:
    return getattr(value, "value", value)
