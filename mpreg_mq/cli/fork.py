"""``mpreg-mq fork``."""

from __future__ import annotations

import click

from mpreg_mq.cli.options import MOMENT_HELP, log_argument, moment, progress
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog
from mpreg_mq.replay.fork import fork
from mpreg_mq.replay.formats import plural


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq fork orders.db --at 4711 before.db\n"
    "  mpreg-mq fork orders.db --at -10m try.db && mpreg-mq dlq redrive try.db -q orders"
)
@log_argument
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--at", "at", help=f"Up to: {MOMENT_HELP} [the end].")
@json_option
def command(log: EventLog, out: str, at: str | None, output: Output) -> None:
    """Make OUT, a new SQLite log that is LOG up to a moment, to try things on."""
    moment_ = moment("--at", at, log)
    with progress(output, log, "copying") as advance:
        forked = fork(log, out, at=moment_, progress=advance)
    if output.as_json:
        output.record({"out": out, "events": forked.events, "position": forked.position})
        return
    output.line(f"{plural(forked.events, 'event')} copied into {out}")
    asked = None if moment_ is None else moment_.position
    if asked is not None and forked.position < min(asked, log.last_position()):
        output.note(
            f"position {asked:,} is within a decision; the copy ends before that, at position {forked.position:,}"
        )
