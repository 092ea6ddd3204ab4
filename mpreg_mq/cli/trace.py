"""``mpreg-mq trace``."""

from __future__ import annotations

from pathlib import Path

import click

from mpreg_mq.cli.options import MOMENT_HELP, log_argument, moment, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.replay.formats import format_seconds, format_time
from mpreg_mq.replay.trace import Trace, trace
from mpreg_mq.replay.wording import record_fields


@click.command(epilog="\b\nExamples:\n  mpreg-mq trace orders.db 12\n  mpreg-mq trace orders.db 12-a1b2 --svg life.svg")
@log_argument
@click.argument("message")
@queue_option("The queue, where several have such a message.")
@click.option("--until", help=f"Up to: {MOMENT_HELP}.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw it into this file as well.")
@json_option
def command(
    log: EventLog, message: str, queue: str | None, until: str | None, svg: Path | None, output: Output
) -> None:
    """The life of MESSAGE (an id, its number or its beginning), with what it was redriven from and as."""
    end = moment("--until", until, log)
    with progress(output, log, "reading", 2) as advance:
        found = trace(log, message, queue=queue, until=end, progress=advance)
    if svg is not None:
        from mpreg_mq.replay.trace_svg import trace_svg

        svg.write_text(trace_svg(found), encoding="utf-8")
        output.note(f"drawn into {svg}")
    if output.as_json:
        for step in found.steps:
            output.record(
                {"message_id": step.message_id, "after_seconds": step.after_seconds, **record_fields(step.record)}
            )
        return
    _show(found, output)


def _show(found: Trace, output: Output) -> None:
    output.line(f"{found.queue}/{found.message_id} on {found.topic}")
    if found.origin:
        output.line("published to a topic exchange: " + ", ".join(f"{k} {v}" for k, v in found.origin.items()))
    redriven = len(found.messages) > 1
    columns = ("position", "time", "after", *(("message",) if redriven else ()), "what happened")
    rows = [
        (
            str(step.record.position),
            format_time(step.record.event.at),
            f"+{format_seconds(step.after_seconds)}" if number else "",
            *((f"{step.queue}/{step.message_id}",) if redriven else ()),
            step.text,
        )
        for number, step in enumerate(found.steps)
    ]
    output.table(table(columns, rows, right=("position", "after")))
    if not found.finished:
        output.note(f"not finished: mpreg-mq why says what it waits for ({found.message_id})")
