"""``mpreg-mq export-test``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from mpreg_mq.cli.options import log_argument, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog
from mpreg_mq.replay.formats import plural
from mpreg_mq.replay.rerun.story import story_as_test, story_of


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq export-test orders.db 12\n  mpreg-mq export-test orders.db 12 -o tests/test_12.py"
)
@log_argument
@click.argument("message")
@queue_option("The queue, where several have such a message.")
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="The file [test_<queue>_<message>.py]."
)
@json_option
def command(log: EventLog, message: str, queue: str | None, out: Path | None, output: Output) -> None:
    """Write a pytest file that tells the story of MESSAGE to the current code, which must decide as it did then.

    It needs neither LOG nor a queue that runs. Payloads are in it: look whether they may leave the place they are in.
    """
    with progress(output, log, "reading", 2) as advance:
        found, events = story_of(log, message, queue=queue, progress=advance)
    path = out or Path(f"test_{re.sub(r'[^A-Za-z0-9]', '_', f'{found.queue}_{found.message_id}')}.py")
    if path.exists():
        raise EventLogError(f"export-test: {path} exists; name another file with --out, or remove it first")
    path.write_text(story_as_test(found, events, Path(log.location).name), encoding="utf-8")
    if output.as_json:
        output.record({"file": str(path), "message_id": found.message_id, "events": len(events)})
    else:
        output.line(f"{plural(len(events), 'event')} of {found.queue}/{found.message_id} written to {path}")
