"""``mpreg-mq log copy``."""

from __future__ import annotations

from contextlib import closing

import attrs
import click

from mpreg_mq.cli.options import log_argument, progress
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog, open_log
from mpreg_mq.events.copying import copy_log
from mpreg_mq.replay.formats import plural


@click.command(epilog="\b\nExample:\n  mpreg-mq log copy sqlite:///orders.db nats://localhost:4222/ORDERS?replicas=3")
@log_argument
@click.argument("target")
@json_option
def command(log: EventLog, target: str, output: Output) -> None:
    """Copy LOG to the log TARGET, of any store, which is made where it is missing; then compare them event by event.

    No queue may run on either. TARGET must have none of the streams of LOG.
    """
    with closing(open_log(target)) as into, progress(output, log, "copying") as advance:
        done = copy_log(log, into, on_progress=lambda step: advance(step.position))
        location = into.location
    if output.as_json:
        output.record({"target": location, "verified": True, **attrs.asdict(done)})
    else:
        output.line(f"{plural(done.events, 'event')} copied to {location}, and compared: the same")
