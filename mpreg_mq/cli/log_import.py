"""``mpreg-mq log import``."""

from __future__ import annotations

from contextlib import closing

import attrs
import click

from mpreg_mq.cli.options import log_argument, progress
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog, open_log
from mpreg_mq.events.transfer import import_log
from mpreg_mq.replay.formats import plural


@click.command(epilog="\b\nExample:\n  mpreg-mq log import orders.jsonl.gz restored.db")
@log_argument
@click.argument("target", type=click.Path(dir_okay=False))
@json_option
def command(log: EventLog, target: str, output: Output) -> None:
    """Append the events of LOG, an export or another log, to the log TARGET, which is made where it is missing.

    TARGET must have none of the streams of LOG.
    """
    with closing(open_log(target)) as into, progress(output, log, "importing") as advance:
        done = import_log(log, into, on_progress=lambda step: advance(step.position))
    if output.as_json:
        output.record({"target": target, **attrs.asdict(done)})
    else:
        output.line(f"{plural(done.events, 'event')} imported into {target}")
