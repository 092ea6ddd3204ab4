"""``mpreg-mq dlq show``."""

from __future__ import annotations

import json

import click
import msgspec

from mpreg_mq.cli.options import log_argument, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog
from mpreg_mq.replay.dead_letters import dead_letters
from mpreg_mq.replay.formats import format_time
from mpreg_mq.replay.inspection import dead_letter_row
from mpreg_mq.replay.wording import payload_as_data


@click.command(epilog="\b\nExample:\n  mpreg-mq dlq show orders.db 12-a1b2")
@log_argument
@click.argument("messages", nargs=-1, required=True)
@queue_option()
@json_option
def command(log: EventLog, messages: tuple[str, ...], queue: str | None, output: Output) -> None:
    """The dead letters of LOG whose ids are, or begin with, MESSAGES: reason, headers and payload."""
    with progress(output, log, "reading") as advance:
        found = [
            (name, entry)
            for name, entry in dead_letters(log, queue=queue, progress=advance)
            if any(entry.ended.message_id.startswith(text) for text in messages)
        ]
    if not found:
        raise EventLogError(f"{log.location}: no dead letter has an id that begins with {' or '.join(messages)}")
    for name, entry in found:
        row = dead_letter_row(name, entry)
        payload = payload_as_data(entry.enqueued.payload)
        headers = dict(entry.enqueued.options.headers or {})
        if output.as_json:
            output.record({**row, "headers": headers, "payload": payload})
            continue
        output.line(f"{name}/{row['message_id']} on {row['topic']}")
        output.line(f"  sent {format_time(row['sent_at'])}, dead since {format_time(row['dead_at'])}")
        output.line(f"  {row['reason']}")
        for key, value in headers.items():
            output.line(f"  header {key}: {value}")
        plain = json.loads(msgspec.json.encode(payload, enc_hook=repr))
        for line in json.dumps(plain, indent=2, ensure_ascii=False).splitlines():
            output.line(f"  {line}")
