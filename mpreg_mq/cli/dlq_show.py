"""``mpreg-mq dlq show``."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import click
import msgspec

from mpreg_mq.cli.options import progress, queue_option, source_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.remote import Server
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog
from mpreg_mq.replay.dead_letters import dead_letters
from mpreg_mq.replay.formats import format_time
from mpreg_mq.replay.inspection import dead_letter_row
from mpreg_mq.replay.wording import payload_as_data


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq dlq show orders.db 12-a1b2\n  mpreg-mq dlq show ws://127.0.0.1:9000 12 -q orders"
)
@source_argument
@click.argument("messages", nargs=-1, required=True)
@queue_option()
@json_option
def command(source: EventLog | Server, messages: tuple[str, ...], queue: str | None, output: Output) -> None:
    """Dead letters whose ids are, or begin with, MESSAGES: reason, headers and payload; of a log, or of a server."""
    if isinstance(source, Server):
        where, found = source.url, source.dead_letters_whole(queue, messages)
    else:
        where, found = source.location, _of_log(source, queue, messages, output)
    if not found:
        raise EventLogError(f"{where}: no dead letter has an id that begins with {' or '.join(messages)}")
    for row in found:
        if output.as_json:
            output.record(row)
        else:
            _tell(row, output)


def _of_log(log: EventLog, queue: str | None, beginnings: Collection[str], output: Output) -> list[dict[str, Any]]:
    with progress(output, log, "reading") as advance:
        return [
            {
                **dead_letter_row(name, entry),
                "headers": dict(entry.enqueued.options.headers or {}),
                "payload": payload_as_data(entry.enqueued.payload),
            }
            for name, entry in dead_letters(log, queue=queue, progress=advance)
            if entry.ended.message_id.startswith(tuple(beginnings))
        ]


def _tell(row: dict[str, Any], output: Output) -> None:
    output.line(f"{row['queue']}/{row['message_id']} on {row['topic']}")
    output.line(f"  sent {format_time(row['sent_at'])}, dead since {format_time(row['dead_at'])}")
    output.line(f"  {row['reason']}")
    for key, value in row["headers"].items():
        output.line(f"  header {key}: {value}")
    plain = json.loads(msgspec.json.encode(row["payload"], enc_hook=repr))
    for line in json.dumps(plain, indent=2, ensure_ascii=False).splitlines():
        output.line(f"  {line}")
